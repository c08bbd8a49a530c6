"""An asynchronous client of one API server, over the official package's connection pool. Objects are JSON values."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self, TypeAlias
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.client.rest import RESTClientObject
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import load_incluster_config
from kubernetes.aio.config.kube_config import KubeConfigLoader

from segserve_common.api_errors import ConflictError, NotFoundError, UnavailableError
from segserve_common.http.urls import is_proxied
from segserve_common.kube.config import KubeConfigError, KubeContext, default_context, read_context
from segserve_common.kube.kinds import Json, Kind
from segserve_common.kube.names import FIELD_MANAGER
from segserve_common.kube.requests import (
    APPLY_PATCH,
    JSON,
    MERGE_PATCH,
    METADATA_LIST,
    YAML,
    Request,
    Selector,
    check_response,
    decode_object,
    delete_request,
    page_request,
    with_type,
    without_managed_fields,
)

OnCall: TypeAlias = Callable[[str, Kind, int, float], None]
"""Gets, after each request, its verb, its kind, the status (0 if no answer came) and the seconds that it took."""

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 30.0


def _ignore(verb: str, kind: Kind, status: int, seconds: float) -> None:
    """Count nothing."""


class AsyncKubeClient:
    """Requests to one API server, each within `call_timeout_s`; every method raises an `ApiError` if one fails.

    A `metadata.resourceVersion` or `metadata.uid` in what is sent is a precondition: `ConflictError` if the object has
    another now.
    """

    def __init__(
        self, configuration: Configuration, *, on_call: OnCall = _ignore, call_timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._configuration = configuration
        self._on_call = on_call
        self._timeout_s = call_timeout_s
        self._rest = RESTClientObject(configuration)

    @classmethod
    @asynccontextmanager
    async def connect(
        cls,
        kubeconfig: Path | None = None,
        url: str | None = None,
        *,
        on_call: OnCall = _ignore,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> AsyncIterator[Self]:
        """Yield the client of a URL or kubeconfig, else of this pod's service account, else of `$KUBECONFIG`.

        At the end its connections are closed; requests in flight fail. Raises `KubeConfigError`.
        """
        if url is not None:
            configuration = Configuration(host=url)
        else:
            configuration = await _configuration_of(_context_of(kubeconfig) if kubeconfig else default_context())
        client = cls(configuration, on_call=on_call, call_timeout_s=call_timeout_s)
        try:
            yield client
        finally:
            await client._rest.close()

    async def has(self, kind: Kind) -> bool:
        """Return whether the server serves a kind."""
        try:
            group = await self._object(Request("has", "GET", kind.root), kind, frozenset({"resources"}))
        except NotFoundError:
            return False
        return any(resource["name"] == kind.plural for resource in group["resources"])

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return all objects with these labels, of all namespaces if that is None, as they were at the first page."""
        return with_type([item async for item in self._items("list", Selector(kind, labels), namespace, JSON)], kind)

    async def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        """Yield the objects that `list` returns; only one page of them is in memory."""
        async for item in self._items("list", Selector(kind, labels), namespace, JSON):
            yield with_type([item], kind)[0]

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return the resourceVersion of each object by (namespace, name); only their metadata is read."""
        versions: dict[tuple[str, str], str] = {}
        async for item in self._items("versions", Selector(kind, labels), namespace, METADATA_LIST):
            metadata = item["metadata"]
            versions[metadata["namespace"], metadata["name"]] = metadata["resourceVersion"]
        return versions

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Return one object."""
        return without_managed_fields(await self._object(Request("get", "GET", kind.path(namespace, name)), kind))

    async def create(self, kind: Kind, namespace: str | None, manifest: Json) -> Json:
        """Create an object, without a namespace a cluster-wide one; `ConflictError` if there is one of that name."""
        params = {"fieldManager": FIELD_MANAGER}
        request = Request("create", "POST", kind.path(namespace), params, manifest, YAML)
        return without_managed_fields(await self._object(request, kind))

    async def apply(self, kind: Kind, namespace: str | None, manifest: Json) -> Json:
        """Apply a manifest by server-side apply, taking over the fields of others, and return the object."""
        body = {"apiVersion": kind.api_version, "kind": kind.name, **manifest}
        path = kind.path(namespace, manifest["metadata"]["name"])
        request = Request("apply", "PATCH", path, {"fieldManager": FIELD_MANAGER, "force": "true"}, body, APPLY_PATCH)
        return without_managed_fields(await self._object(request, kind))

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status, and return it."""
        path = kind.path(namespace, name, *(["status"] if status else []))
        verb = "status" if status else "patch"
        request = Request(verb, "PATCH", path, {"fieldManager": FIELD_MANAGER}, patch, MERGE_PATCH)
        return without_managed_fields(await self._object(request, kind))

    async def delete(self, kind: Kind, namespace: str | None, name: str, *, uid: str | None = None) -> bool:
        """Delete an object, and in the background what it owns; an object of another uid is left alone.

        Return whether it is still there, until its finalizers have done their work or its grace period is over.
        """
        try:
            answer = await self._object(delete_request(kind, namespace, name, uid), kind, frozenset())
        except NotFoundError:
            return False
        except ConflictError:
            if namespace is None or uid is None or await self._has_uid(kind, namespace, name, uid):
                raise
            return False
        return "deletionTimestamp" in answer.get("metadata", {})  # of what is gone it is a Status, or its last state

    async def _has_uid(self, kind: Kind, namespace: str, name: str, uid: str) -> bool:
        try:
            return bool((await self.get(kind, namespace, name))["metadata"]["uid"] == uid)
        except NotFoundError:
            return False

    async def _items(self, verb: str, selector: Selector, namespace: str | None, accept: str) -> AsyncIterator[Json]:
        next_page = ""
        while True:
            request = page_request(selector, namespace, next_page, verb=verb, accept=accept)
            page = await self._object(request, selector.kind, frozenset({"items", "metadata"}))
            for item in page["items"] or ():
                yield item
            next_page = page["metadata"].get("continue", "")
            if not next_page:
                return

    async def _object(self, request: Request, kind: Kind, keys: frozenset[str] = frozenset({"metadata"})) -> Json:
        status, began_s = 0, time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._send(request)
                content: bytes = await response.read()
            status = response.status
            check_response(request, status, content, response.headers)
        except (aiohttp.ClientError, ConfigException, TimeoutError, OSError, ValueError) as error:
            raise UnavailableError(f"{request}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            self._on_call(request.verb, kind, status, time.monotonic() - began_s)
        return decode_object(request, content, keys)

    async def _send(self, request: Request) -> Any:
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        query = f"?{urlencode(request.params, quote_via=quote)}" if request.params else ""
        return await self._rest.request(
            request.method,
            f"{self._configuration.host}{request.path}{query}",
            headers=request.headers | ({"Authorization": token} if token else {}),
            # The official client serialises what is of a JSON type, and sends text of any other as it is.
            body=request.text if request.content_type == YAML else request.body,
            _request_timeout=aiohttp.ClientTimeout(connect=min(CONNECT_TIMEOUT_S, self._timeout_s)),
        )


def _context_of(kubeconfig: Path) -> KubeContext:
    context = read_context(kubeconfig)
    if isinstance(context, KubeContext):
        return context
    raise KubeConfigError(f"{kubeconfig} names no current context")


async def _configuration_of(context: KubeContext) -> Configuration:
    configuration = Configuration()
    configuration.client_session_kwargs = {"trust_env": is_proxied(context.server)}
    try:
        if context.file is None:
            load_incluster_config(configuration)
            return configuration
        loader = KubeConfigLoader(context.content, context.name, config_base_path=str(context.file.parent))
        await loader.load_and_set(configuration)
    except (ConfigException, OSError, ValueError) as error:
        raise KubeConfigError(f"context {context.name!r} cannot be used: {error}") from error

    async def refresh_plugin_token(configuration: Configuration) -> None:
        await loader.load_from_exec_plugin()
        configuration.api_key["BearerToken"] = loader.token

    if hasattr(loader, "exec_plugin_expiry"):
        configuration.refresh_api_key_hook = refresh_plugin_token
    elif context.token_file is not None:
        configuration.refresh_api_key_hook = context.read_token_file
    context.check_credentials(configuration)
    return configuration
