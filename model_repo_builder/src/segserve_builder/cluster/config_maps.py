"""What runs in a pod and the Kubernetes API: ConfigMaps of one namespace, read, watched and patched by name."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import httpx2
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECT_S: Final = 5.0
ANSWER_S: Final = 15.0
WATCH_S: Final = 290
# The API sends a bookmark about every minute: a connection that is silent for longer leads nowhere.
SILENCE_S: Final = 70.0
_GONE: Final = 410

ConfigMap: TypeAlias = "Mapping[str, Any]"


class ApiError(Exception):
    """A call to the Kubernetes API that did not do what it should."""


class ApiLostError(ApiError):
    """Nobody answers there, or not in time."""


class ApiRefusedError(ApiError):
    """The API answered with an error; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(f"{status}: {message}")


class ExpiredError(ApiRefusedError):
    """The version to watch from is forgotten already: list anew."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the API said of one name: the version it is known by, and the object; None where it is not there."""

    version: str
    config_map: ConfigMap | None


@dataclass(frozen=True, slots=True)
class Bookmark:
    """What the API says where nothing changed: the version to watch from later."""

    version: str


class ConfigMaps:
    """The ConfigMaps of one namespace. Safe to use from many threads; every call raises `ApiError`."""

    def __init__(self, client: httpx2.Client, namespace: str) -> None:
        self._client = client
        self._url = f"api/v1/namespaces/{namespace}/configmaps"
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """End the watches at once; no call does anything after that."""
        with self._lock:
            self._closed = True
            for open_socket in self._sockets:
                # Closing it would not wake up the thread that reads from it.
                with suppress(OSError):
                    open_socket.shutdown(socket.SHUT_RDWR)
        self._client.close()

    def get(self, name: str) -> ConfigMap:
        """Return the ConfigMap called `name`."""
        with _asking():
            return _object(self._client.get(f"{self._url}/{name}"))

    def list_one(self, name: str) -> Seen:
        """Return what is stored under `name` now, and the version to watch it from."""
        with _asking():
            listed = _object(self._client.get(self._url, params=_only(name)))
        return Seen(listed["metadata"]["resourceVersion"], next(iter(listed.get("items") or ()), None))

    def watch(self, name: str, version: str) -> Iterator[Seen | Bookmark]:
        """Yield what becomes of `name` after `version`, until the API ends the answer after some minutes.

        Raises `ExpiredError` where the API does not know that version any more, and `ApiLostError` where it has been
        silent for `SILENCE_S`.
        """
        params = _only(name) | {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S, read=SILENCE_S)
        with (
            _asking(),
            self._client.stream("GET", self._url, params=params, timeout=timeout) as response,
            self._ended_by_close(response),
        ):
            if not response.is_success:
                response.read()
            _check(response)
            for line in response.iter_lines():
                yield _event(json.loads(line))

    def patch_binary(self, name: str, key: str, content: str) -> None:
        """Set one key of the ConfigMap's binary data, and leave the others as they are."""
        patch = json.dumps({"binaryData": {key: content}})
        headers = {"Content-Type": "application/merge-patch+json"}
        with _asking():
            _check(self._client.patch(f"{self._url}/{name}", content=patch, headers=headers))

    @contextmanager
    def _ended_by_close(self, response: httpx2.Response) -> Iterator[None]:
        open_socket = response.extensions["network_stream"].get_extra_info("socket")
        with self._lock:
            if self._closed:
                raise ApiLostError("the link was closed")
            self._sockets.add(open_socket)
        try:
            yield
        finally:
            with self._lock:
                self._sockets.discard(open_socket)


def connect(namespace: str) -> ConfigMaps:
    """Return the link that a pod's service account gives, or, outside of a cluster, the kubeconfig's.

    Raises lightkube's `ConfigError` where there is neither.
    """
    config = KubeConfig.from_env().get()
    if config is None:
        raise ConfigError("there is neither a service account nor a kubeconfig with a current context")
    timeout = httpx2.Timeout(ANSWER_S, connect=CONNECT_S)
    return ConfigMaps(Client(config, ConnectionParams(timeout=timeout)), namespace)


def _only(name: str) -> dict[str, str]:
    # The one form of a list or watch that rights to single names allow.
    return {"fieldSelector": f"metadata.name={name}"}


def _event(event: Mapping[str, Any]) -> Seen | Bookmark:
    kind, said = event["type"], event["object"]
    if kind == "ERROR":
        raise _refusal(int(said.get("code") or 500), str(said.get("message")))
    version = said["metadata"]["resourceVersion"]
    if kind == "BOOKMARK":
        return Bookmark(version)
    return Seen(version, None if kind == "DELETED" else said)


def _object(response: httpx2.Response) -> dict[str, Any]:
    _check(response)
    found: dict[str, Any] = response.json()
    return found


def _check(response: httpx2.Response) -> None:
    if not response.is_success:
        raise _refusal(response.status_code, response.text[:500])


def _refusal(status: int, message: str) -> ApiRefusedError:
    return (ExpiredError if status == _GONE else ApiRefusedError)(status, message)


@contextmanager
def _asking() -> Iterator[None]:
    try:
        yield
    except (httpx2.HTTPError, httpx2.StreamError, OSError, RuntimeError) as error:
        raise ApiLostError(f"{type(error).__name__}: {error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ApiLostError(f"an answer that is none of the Kubernetes API: {error!r}") from error
