"""Requests to an API server, one at a time or as a stream; every refusal is an error that says what helps."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import httpx2
from lightkube.config.client_adapter import Client, ConnectionParams
from lightkube.core.exceptions import ConfigError

from segserve.platforms.errors import (
    ConflictError,
    ControlError,
    NotFoundError,
    forbidden,
    no_kubeconfig,
    not_installed,
    refused,
    unreachable,
)
from segserve_operator.adapters.kube import requests
from segserve_operator.adapters.kube.requests import stripped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Self

    from lightkube.config.kubeconfig import SingleConfig

    from segserve.platforms.port import Json
    from segserve_common.kube.kinds import Kind

FIELD_MANAGER: Final = "segserve-cli"
TIMEOUT_S: Final = 15.0
CONNECT_S: Final = 5.0


class Calls:
    """The requests of one command. Objects are JSON as the server sends them, without `managedFields`."""

    def __init__(self, config: SingleConfig, transport: httpx2.BaseTransport | None = None) -> None:
        self.context, self.server = config.context_name, str(config.cluster.server)
        self.namespace = config.namespace
        timeout = httpx2.Timeout(TIMEOUT_S, connect=CONNECT_S)
        try:
            self._client = Client(config, ConnectionParams(timeout=timeout, transport=transport))
        except (ConfigError, OSError, ValueError) as error:
            raise no_kubeconfig(f"context {self.context!r} cannot be used: {error}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def list(
        self, kind: Kind, *, labels: Mapping[str, str] | None = None, fields: str = "", everywhere: bool = False
    ) -> tuple[list[Json], str]:
        """Return all objects of a kind in the namespace, by name, and the version that a watch goes on from."""
        params = {"limit": str(requests.PAGE)} | selectors(labels, fields)
        found: list[Json] = []
        while True:
            page = self._json(kind, "GET", self.path(kind, everywhere=everywhere), params=params)
            if not {"items", "metadata"} <= page.keys():
                raise self.unreadable(json.dumps(page), "list")
            found += page["items"] or ()
            rest = page["metadata"].get("continue")
            if not rest:
                break
            params["continue"] = rest
        for item in found:
            item["apiVersion"], item["kind"] = kind.api_version, kind.name
            stripped(item)
        return sorted(found, key=_place), str(page["metadata"].get("resourceVersion", ""))

    def get(self, kind: Kind, name: str, *, namespace: str | None = None) -> Json:
        """Return one object; `NotFoundError` where there is none."""
        return stripped(self._json(kind, "GET", self.path(kind, name, namespace=namespace)))

    def apply(self, kind: Kind, manifest: Json, namespace: str, *, force: bool = False, dry_run: bool = False) -> Json:
        """Make an object have all that the manifest says, by server-side apply."""
        params = {"fieldManager": FIELD_MANAGER, "force": str(force).lower()} | ({"dryRun": "All"} if dry_run else {})
        path = self.path(kind, manifest["metadata"]["name"], namespace=namespace)
        return stripped(self._json(kind, "PATCH", path, params=params, body=manifest, sent=requests.APPLY))

    def create(self, kind: Kind, manifest: Json, *, everywhere: bool = False) -> Json:
        """Create an object, or ask a question that has the shape of one."""
        return self._json(kind, "POST", self.path(kind, everywhere=everywhere), body=manifest)

    def merge(self, kind: Kind, name: str, patch: Json, *, namespace: str | None = None) -> Json:
        """Merge a patch into an object."""
        path = self.path(kind, name, namespace=namespace)
        return self._json(kind, "PATCH", path, params={"fieldManager": FIELD_MANAGER}, body=patch, sent=requests.MERGE)

    def delete(self, kind: Kind, name: str, *, namespace: str | None = None, uid: str | None = None) -> None:
        """Delete an object, in the background what it owns."""
        path = self.path(kind, name, namespace=namespace)
        self._json(kind, "DELETE", path, body=requests.deletion(uid))

    def text(self, path: str, params: Mapping[str, str] | None = None) -> str:
        """Return what a path answers, as text."""
        return self._send(None, "GET", path, params=params).text

    @contextmanager
    def lines(self, path: str, params: Mapping[str, str], kind: Kind | None = None) -> Iterator[Iterator[str]]:
        """Open a stream of lines, each with its end, that has no time limit between them.

        A last one without its end is what was there of a line where the stream was cut.
        """
        timeout = httpx2.Timeout(TIMEOUT_S, connect=CONNECT_S, read=None)
        try:
            with self._client.stream("GET", path, params=dict(params), timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._refusal(kind, answer)
                yield _lines(answer.iter_text())
        except (httpx2.HTTPError, httpx2.StreamError, ConfigError, OSError) as error:
            raise self._unreachable(error) from error

    def path(self, kind: Kind, *names: str, namespace: str | None = None, everywhere: bool = False) -> str:
        """Return the path of a kind's objects in a namespace, the command's own where none is named."""
        return requests.path(kind, None if everywhere else namespace or self.namespace, *names)

    def unreadable(self, sent: str, expected: str) -> ControlError:
        """Return the error of an answer that no API server gives."""
        return unreachable(self.server, self.context, f"it sent {sent[:80]!r}, no {expected}")

    def _json(self, kind: Kind, method: str, path: str, *, params: Mapping[str, str] | None = None,
              body: Json | None = None, sent: str = "application/json") -> Json:  # fmt: skip
        answer = self._send(kind, method, path, params=params, body=body, sent=sent)
        try:
            found = answer.json()
        except ValueError as error:
            raise self.unreadable(answer.text, "JSON") from error
        if not isinstance(found, dict):
            raise self.unreadable(answer.text, "object")
        return found

    def _send(self, kind: Kind | None, method: str, path: str, *, params: Mapping[str, str] | None = None,
              body: Json | None = None, sent: str = "application/json") -> httpx2.Response:  # fmt: skip
        content, headers = (None, {}) if body is None else (json.dumps(body).encode(), {"Content-Type": sent})
        try:
            answer = self._client.request(method, path, params=dict(params or {}), content=content, headers=headers)
        except (httpx2.HTTPError, ConfigError, OSError) as error:
            raise self._unreachable(error) from error
        if not answer.is_success:
            raise self._refusal(kind, answer)
        return answer

    def _unreachable(self, error: Exception) -> ControlError:
        return unreachable(self.server, self.context, str(error) or type(error).__name__)

    def _refusal(self, kind: Kind | None, answer: httpx2.Response) -> ControlError:
        """Return the error that fits an answer; its text has the server's words."""
        said = _status(answer)
        message = str(said.get("message") or answer.text[:200])
        match answer.status_code:
            case 401:
                return forbidden(f"the credentials of context {self.context!r} are not accepted: {message}")
            case 403:
                return forbidden(message)
            case 404 if kind is not None and not (said.get("details") or {}).get("name"):
                return not_installed(f"{kind.plural}.{kind.group}" if kind.group else kind.plural, self.context)
            case 404:
                return NotFoundError(message)
            case 409:
                return ConflictError(_conflict(said, message))
            case 400 | 413 | 415 | 422:
                return refused(_refused(said, message))
            case code:
                return ControlError(f"{self.server} answered {code}: {message}")


def selectors(labels: Mapping[str, str] | None, fields: str) -> dict[str, str]:
    """Return the parameters of a request that chooses by labels and fields."""
    text = requests.label_selector(labels or {})
    return ({"labelSelector": text} if text else {}) | ({"fieldSelector": fields} if fields else {})


def _lines(texts: Iterator[str]) -> Iterator[str]:
    rest = ""
    for text in texts:
        *whole, rest = (rest + text).split("\n")
        yield from (f"{line}\n" for line in whole)
    if rest:
        yield rest


def _place(item: Json) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def _status(answer: httpx2.Response) -> Json:
    try:
        said: Any = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}


def _causes(said: Json) -> list[Json]:
    return list((said.get("details") or {}).get("causes") or ())


def _refused(said: Json, message: str) -> str:
    """Return a line for each field that is refused, the whole message where the server names none."""
    causes = [cause for cause in _causes(said) if cause.get("message")]
    # A cause's message repeats the value and often the whole spec; what was seen is in the file.
    told = list(dict.fromkeys(f"{cause.get('field') or 'the resource'}: {cause['message']}" for cause in causes))
    return "; ".join(told) or message


def _conflict(said: Json, message: str) -> str:
    causes = [cause for cause in _causes(said) if cause.get("reason") == "FieldManagerConflict"]
    if not causes:
        return f"{message}; try again"
    told = "; ".join(f"{cause.get('field', '?')} ({cause.get('message', 'conflict')})" for cause in causes)
    return f"set by somebody else too: {told}; change them there, or take them over with --force-conflicts (force=True)"
