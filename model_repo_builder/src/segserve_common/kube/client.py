"""A synchronous client of one API server, over the official package's connection pool. Objects are JSON values.

The generated models are not used: they cost a pod memory and a command its start, and custom resources have no models.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final, Self
from urllib.parse import urlencode

import urllib3
from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import RESTClientObject
from kubernetes.config.config_exception import ConfigException
from urllib3.exceptions import HTTPError

from segserve_common.api_errors import ApiError, UnavailableError
from segserve_common.errors import ControlError
from segserve_common.kube.config import KubeConfigError, KubeContext, authorization, default_context
from segserve_common.kube.kinds import Json, Kind
from segserve_common.kube.names import FIELD_MANAGER
from segserve_common.kube.requests import (
    APPLY_PATCH,
    MERGE_PATCH,
    YAML,
    Request,
    Selector,
    WatchEvent,
    check_response,
    decode_event,
    decode_object,
    delete_request,
    page_request,
    watch_request,
    with_type,
    without_managed_fields,
)

CONNECT_TIMEOUT_S: Final = 5.0
CALL_TIMEOUT_S: Final = 15.0
WATCH_S: Final = 290
# The server sends a bookmark about every minute: a connection that is silent for longer is dead.
SILENCE_S: Final = 70.0


class KubeClient:
    """Requests to one API server, by default in one namespace. Safe for use from many threads.

    Every method raises an `ApiError` if the request fails; a subclass says by `describe_error` what it raises instead.
    """

    field_manager = FIELD_MANAGER

    def __init__(
        self,
        configuration: Configuration,
        namespace: str,
        *,
        call_timeout_s: float = CALL_TIMEOUT_S,
        silence_s: float = SILENCE_S,
        pool: urllib3.PoolManager | None = None,
    ) -> None:
        self.namespace = namespace
        self.server = str(configuration.host)
        self._configuration = configuration
        self._pool: urllib3.PoolManager = pool or RESTClientObject(configuration).pool_manager
        self._timeout = urllib3.Timeout(connect=min(CONNECT_TIMEOUT_S, call_timeout_s), read=call_timeout_s)
        self._stream_timeout = urllib3.Timeout(connect=self._timeout.connect_timeout, read=silence_s)
        self._streams: set[urllib3.BaseHTTPResponse] = set()
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; open streams end at once, and later requests fail."""
        with self._lock:
            self._closed = True
            for stream in self._streams:
                # Closing a socket would not wake the thread that reads from it.
                with suppress(OSError, RuntimeError, ValueError):
                    stream.shutdown()
        self._pool.clear()

    def list(
        self, kind: Kind, *, labels: Mapping[str, str] | None = None, fields: str = "", everywhere: bool = False
    ) -> tuple[list[Json], str]:
        """Return all objects with these labels and fields, by namespace and name, and the version to watch from."""
        selector = Selector(kind, labels or {}, fields, everywhere)
        namespace = None if everywhere else self.namespace
        items: list[Json] = []
        next_page = ""
        while True:
            page = self._object(page_request(selector, namespace, next_page), selector.kind, {"items", "metadata"})
            items += with_type(page["items"] or (), selector.kind)
            next_page = page["metadata"].get("continue", "")
            if not next_page:
                break
        return sorted(items, key=_namespace_and_name), str(page["metadata"].get("resourceVersion", ""))

    def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Json:
        """Return one object; raises `NotFoundError` if it does not exist."""
        return without_managed_fields(self._object(Request("get", "GET", self.path(kind, name, namespace)), kind))

    def managed_fields(self, kind: Kind, name: str, namespace: str | None = None) -> Sequence[Json]:
        """Return which tool owns which fields of an object, and since when."""
        request = Request("get", "GET", self.path(kind, name, namespace))
        owners: Sequence[Json] = self._object(request, kind)["metadata"].get("managedFields") or ()
        return owners

    def create(self, kind: Kind, manifest: Json, *, namespace: str | None = None) -> Json:
        """Create an object, or a review, which has the shape of one."""
        path = kind.path(namespace or self.namespace)
        params = {"fieldManager": self.field_manager}
        return self._object(Request("create", "POST", path, params, manifest, YAML), kind, frozenset())

    def apply(
        self, kind: Kind, manifest: Json, *, namespace: str | None = None, force: bool = False, dry_run: bool = False
    ) -> Json:
        """Apply a manifest by server-side apply, and return the object."""
        params = {"fieldManager": self.field_manager, "force": str(force).lower()}
        path = self.path(kind, manifest["metadata"]["name"], namespace)
        request = Request(
            "apply", "PATCH", path, params | ({"dryRun": "All"} if dry_run else {}), manifest, APPLY_PATCH
        )
        return without_managed_fields(self._object(request, kind))

    def patch(self, kind: Kind, name: str, patch: Json, *, namespace: str | None = None) -> Json:
        """Merge a patch into an object, and return it."""
        params = {"fieldManager": self.field_manager}
        path = self.path(kind, name, namespace)
        return without_managed_fields(
            self._object(Request("patch", "PATCH", path, params, patch, MERGE_PATCH), kind, frozenset({"metadata"}))
        )

    def delete(self, kind: Kind, name: str, *, namespace: str | None = None) -> None:
        """Delete an object, and in the background what it owns."""
        self._object(delete_request(kind, namespace or self.namespace, name, None), kind, frozenset())

    def text(self, path: str, params: Mapping[str, str] | None = None) -> str:
        """Return the text at a path."""
        return self._content(Request("get", "GET", path, params or {}, accept="*/*"), None).decode(errors="replace")

    def watch(self, selector: Selector, version: str) -> Iterator[WatchEvent]:
        """Yield the changes after a version, until the server ends the answer after some minutes.

        Raises `GoneError` if the version has expired, and `UnavailableError` after a silence longer than bookmarks
        leave.
        """
        namespace = None if selector.everywhere else self.namespace
        request = watch_request(selector, namespace, version, WATCH_S)
        try:
            with self._stream(request, self._stream_timeout) as lines:
                for line in lines:
                    yield decode_event(request, line)
        except ApiError as error:
            raise self.describe_error(error, selector.kind) from error

    @contextmanager
    def lines(self, path: str, params: Mapping[str, str]) -> Iterator[Iterator[str]]:
        """Open a stream of lines, each with its line end, that may be silent for any time.

        A last line without a line end was cut off with the stream.
        """
        timeout = urllib3.Timeout(connect=self._timeout.connect_timeout, read=None)
        try:
            with self._stream(Request("get", "GET", path, params, accept="*/*"), timeout) as lines:
                yield lines
        except ApiError as error:
            raise self.describe_error(error, None) from error

    def path(self, kind: Kind, name: str, namespace: str | None = None, *subresources: str) -> str:
        """Return the path of an object, in the client's namespace if none is named."""
        return kind.path(namespace or self.namespace, name, *subresources)

    def describe_error(self, error: ApiError, kind: Kind | None) -> ControlError:
        """Return the error to raise for a request that failed; `kind` is None if it was not about objects."""
        del kind
        return error

    def _object(self, request: Request, kind: Kind, keys: frozenset[str] | set[str] = frozenset({"metadata"})) -> Json:
        content = self._content(request, kind)
        try:
            return decode_object(request, content, keys)
        except ApiError as error:
            raise self.describe_error(error, kind) from error

    def _content(self, request: Request, kind: Kind | None) -> bytes:
        try:
            with self._answered(request):
                response = self._send(request, self._timeout, preload_content=True)
                check_response(request, response.status, response.data, response.headers)
                return response.data
        except ApiError as error:
            raise self.describe_error(error, kind) from error

    @contextmanager
    def _stream(self, request: Request, timeout: urllib3.Timeout) -> Iterator[Iterator[str]]:
        with self._answered(request):
            response = self._send(request, timeout, preload_content=False)
            try:
                with self._lock:
                    if self._closed:
                        raise UnavailableError(f"{request}: the client was closed")
                    self._streams.add(response)
                if not 200 <= response.status < 300:
                    check_response(request, response.status, response.read(), response.headers)
                yield _lines(response)
            finally:
                with self._lock:
                    self._streams.discard(response)
                # What is left of the stream is of no use, and neither is its connection.
                response.close()

    def _send(self, request: Request, timeout: urllib3.Timeout, *, preload_content: bool) -> urllib3.BaseHTTPResponse:
        headers = request.headers | {"User-Agent": "segserve"} | authorization(self._configuration)
        body = request.text.encode() if request.body is not None else None
        return self._pool.request(
            request.method,
            f"{self.server}{request.path}" + (f"?{urlencode(request.params)}" if request.params else ""),
            body=body,
            headers=headers,
            timeout=timeout,
            retries=False,
            preload_content=preload_content,
        )

    @contextmanager
    def _answered(self, request: Request) -> Iterator[None]:
        """Turn what breaks a connection, or closes it under a reading thread, into an `UnavailableError`."""
        try:
            yield
        except (HTTPError, OSError, RuntimeError) as error:
            raise UnavailableError(f"{request}: {type(error).__name__}: {error}", server_message=str(error)) from error


def connect(namespace: str) -> KubeClient:
    """Return the client of this pod's service account, or, outside of a cluster, of the kubeconfig.

    Raises `KubeConfigError` if there is neither.
    """
    return client_of(default_context(), namespace)


def client_of(context: KubeContext, namespace: str | None = None) -> KubeClient:
    """Return the client of a context, in its own namespace if none is named."""
    return KubeClient(configuration_of(context), namespace or context.namespace)


def configuration_of(context: KubeContext) -> Configuration:
    """Return the configuration of a context; `KubeConfigError` if it cannot be used."""
    try:
        return context.configuration()
    except (ConfigException, OSError, ValueError) as error:
        raise KubeConfigError(f"context {context.name!r} cannot be used: {error}") from error


def _lines(response: urllib3.BaseHTTPResponse) -> Iterator[str]:
    rest = b""
    while data := response.read1(2**16):
        *whole, rest = (rest + data).split(b"\n")
        yield from (f"{line.decode(errors='replace')}\n" for line in whole)
    if rest:
        yield rest.decode(errors="replace")


def _namespace_and_name(item: Mapping[str, Any]) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]
