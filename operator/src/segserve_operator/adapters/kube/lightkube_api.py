"""The Kubernetes API over HTTP: lightkube's configuration, credentials and client, one request at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx2
import msgspec
from lightkube.config.client_adapter import AsyncClient, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

from segserve_builder.cluster.names import FIELD_MANAGER
from segserve_operator.adapters.kube.api import (
    PODS,
    ApiError,
    ConflictError,
    ForbiddenError,
    GoneError,
    InvalidError,
    Json,
    Kind,
    NotFoundError,
    ThrottledError,
    UnavailableError,
)
from segserve_operator.adapters.kube.requests import (
    APPLY,
    MERGE,
    PAGE,
    deletion,
    label_selector,
    path,
    root,
    stripped,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    from lightkube.config.kubeconfig import SingleConfig

OnCall: TypeAlias = Callable[[str, Kind, int, float], None]
"""Is told of each request: what for, the kind, the status code (0 where no answer came) and the seconds it took."""

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 30.0
LOG_LINES: Final = 5000
LOG_BYTES: Final = 4 * 1024 * 1024

_JSON: Final = "application/json"
_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

_ERRORS: Final[Mapping[int, type[ApiError]]] = {
    401: ForbiddenError,
    403: ForbiddenError,
    404: NotFoundError,
    408: UnavailableError,
    409: ConflictError,
    410: GoneError,
    429: ThrottledError,
}


def _ignore(verb: str, kind: Kind, code: int, seconds: float) -> None:
    """Tell nobody."""


class LightkubeApi:
    """Implements `Api` against a real server; `aclose` ends its connections."""

    def __init__(
        self, config: SingleConfig, *, on_call: OnCall = _ignore, call_timeout_s: float = CALL_TIMEOUT_S
    ) -> None:
        self._on_call = on_call
        self._timeout_s = call_timeout_s
        timeout = httpx2.Timeout(call_timeout_s, connect=min(CONNECT_TIMEOUT_S, call_timeout_s))
        self._client = AsyncClient(config, ConnectionParams(timeout=timeout))

    @classmethod
    def connect(
        cls, kubeconfig: Path | None = None, url: str | None = None, *, on_call: OnCall = _ignore
    ) -> LightkubeApi:
        """Return the API that a kubeconfig or a URL names, else the one around this pod, else `$KUBECONFIG`'s."""
        if url is not None:
            found = KubeConfig.from_dict(
                {
                    "clusters": [{"name": "url", "cluster": {"server": url}}],
                    "users": [{"name": "nobody", "user": {}}],
                    "contexts": [{"name": "url", "context": {"cluster": "url", "user": "nobody"}}],
                    "current-context": "url",
                }
            )
        else:
            found = KubeConfig.from_file(kubeconfig) if kubeconfig else KubeConfig.from_env()
        config = found.get()
        assert config is not None, "there is no default that could be None"
        return cls(config, on_call=on_call)

    async def aclose(self) -> None:
        """Close the connections; calls under way fail."""
        await self._client.aclose()

    async def __aenter__(self) -> LightkubeApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def has(self, kind: Kind) -> bool:
        """Ask the server what it serves."""
        try:
            found = await self._call("has", kind, "GET", root(kind), needs={"resources"})
        except NotFoundError:
            return False
        return any(resource["name"] == kind.plural for resource in found["resources"])

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Read page by page; each is what the server had when the first was asked for."""
        found: list[Json] = []
        async for item in self._items("list", kind, namespace, labels, _JSON):
            item["apiVersion"], item["kind"] = kind.api_version, kind.name
            found.append(stripped(item))
        return found

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Read the objects' metadata alone."""
        found: dict[tuple[str, str], str] = {}
        async for item in self._items("versions", kind, namespace, labels, _METADATA):
            metadata = item["metadata"]
            found[metadata["namespace"], metadata["name"]] = metadata["resourceVersion"]
        return found

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Read one object."""
        return stripped(await self._call("get", kind, "GET", path(kind, namespace, name)))

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Send a POST."""
        return stripped(
            await self._call(
                "create", kind, "POST", path(kind, namespace), body=manifest, params={"fieldManager": FIELD_MANAGER}
            )
        )

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Apply with force: what the manifest says is ours, whoever set it."""
        return stripped(
            await self._call(
                "apply",
                kind,
                "PATCH",
                path(kind, namespace, manifest["metadata"]["name"]),
                body={"apiVersion": kind.api_version, "kind": kind.name, **manifest},
                params={"fieldManager": FIELD_MANAGER, "force": "true"},
                sent=APPLY,
            )
        )

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Send a merge patch, to the status subresource where asked for."""
        return stripped(
            await self._call(
                "status" if status else "patch",
                kind,
                "PATCH",
                path(kind, namespace, name, *(["status"] if status else [])),
                body=patch,
                params={"fieldManager": FIELD_MANAGER},
                sent=MERGE,
            )
        )

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete with the uid as a precondition."""
        try:
            await self._call("delete", kind, "DELETE", path(kind, namespace, name), body=deletion(uid), needs=set())
        except NotFoundError:
            return
        except ConflictError:
            if uid is None or await self._is(kind, namespace, name, uid):
                raise

    async def pod_log(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> bytes:
        """Read the end of a container's log: at most `LOG_LINES`, and of these the first `LOG_BYTES`."""
        chosen = {"container": container, "previous": str(previous).lower()}
        params = {**chosen, "tailLines": str(LOG_LINES), "limitBytes": str(LOG_BYTES)}
        answer = await self._answer("log", PODS, "GET", path(PODS, namespace, pod, "log"), params=params, accept="*/*")
        return answer.content

    async def _is(self, kind: Kind, namespace: str, name: str, uid: str) -> bool:
        try:
            found = await self.get(kind, namespace, name)
        except NotFoundError:
            return False
        return bool(found["metadata"]["uid"] == uid)

    async def _items(
        self, verb: str, kind: Kind, namespace: str | None, labels: Mapping[str, str], accept: str
    ) -> AsyncIterator[Json]:
        params = {"limit": str(PAGE)}
        if labels:
            params["labelSelector"] = label_selector(labels)
        while True:
            page = await self._call(
                verb, kind, "GET", path(kind, namespace), params=params, accept=accept, needs={"items", "metadata"}
            )
            for item in page["items"] or ():
                yield item
            if not page["metadata"].get("continue"):
                return
            params["continue"] = page["metadata"]["continue"]

    async def _call(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        params: Mapping[str, str] | None = None,
        sent: str = _JSON,
        accept: str = _JSON,
        needs: AbstractSet[str] = frozenset({"metadata"}),
    ) -> Json:
        """Send one request and return the answer's JSON, which has these keys, or raise the error that fits."""
        answer = await self._answer(verb, kind, method, path, body=body, params=params, sent=sent, accept=accept)
        try:
            return _object(msgspec.json.decode(answer.content), needs)
        except ValueError as error:
            raise UnavailableError(f"{verb} {path}: {type(error).__name__} {error}".rstrip()) from error

    async def _answer(
        self,
        verb: str,
        kind: Kind,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        params: Mapping[str, str] | None = None,
        sent: str = _JSON,
        accept: str = _JSON,
    ) -> httpx2.Response:
        """Send one request and return the answer, or raise the error that fits."""
        code, began = 0, time.monotonic()
        headers = {"Accept": accept} | ({"Content-Type": sent} if body is not None else {})
        content = msgspec.json.encode(body) if body is not None else None
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._client.request(method, path, params=params, headers=headers, content=content)
            code = answer.status_code
            if not answer.is_success:
                raise _error(f"{verb} {path}", answer)
            return answer
        except (httpx2.HTTPError, TimeoutError, OSError, ConfigError, ValueError) as error:
            raise UnavailableError(f"{verb} {path}: {type(error).__name__} {error}".rstrip()) from error
        finally:
            self._on_call(verb, kind, code, time.monotonic() - began)


def _object(found: Any, needs: AbstractSet[str]) -> Json:
    if not isinstance(found, dict) or not needs <= found.keys():
        raise ValueError(f"answered {str(found)[:200]!r}, which is no Kubernetes object")
    return found


def _error(call: str, answer: httpx2.Response) -> ApiError:
    """Return the error for an answer; its message has the server's words."""
    code, status = answer.status_code, _status(answer)
    fitting = _ERRORS.get(code, InvalidError if 400 <= code < 500 else UnavailableError)
    causes = (status.get("details") or {}).get("causes") or ()
    if code == 422 and any(cause.get("field") == "metadata.uid" for cause in causes):
        fitting = ConflictError  # another object has this name now
    words = status.get("message") or answer.text[:200]
    return fitting(f"{call}: {code} {words}", retry_after_s=_patience(answer))


def _status(answer: httpx2.Response) -> Json:
    try:
        status: Any = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return {}
    return status if isinstance(status, dict) else {}


def _patience(answer: httpx2.Response) -> float:
    # Kubernetes sends whole seconds; a proxy's date is as good as no answer.
    asked = answer.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0
