"""Kubernetes requests and answers without I/O: what the synchronous and the asynchronous client send and read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Final

from segserve_common.api_errors import GoneError, UnavailableError, error_from_response
from segserve_common.kube.kinds import CONFIG_MAPS, REVISIONS, Json, Kind

PAGE_SIZE: Final = 500
"""Number of objects that one page of a list has."""
PAGE_SIZES: Final = {CONFIG_MAPS: 25, REVISIONS: 100}
"""Pages of objects, each of which may have 1 MiB and come from any author."""
JSON: Final = "application/json"
METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"  # JSON is a subset of YAML
# A server keeps the data of a ControllerRevision byte for byte, with the spaces and the order of its JSON. A later
# patch writes it in another form, which the server takes for a change of what is immutable. YAML it converts at once.
YAML: Final = "application/yaml"


@dataclass(frozen=True, slots=True)
class Request:
    """A request: `verb` names it in messages and metrics, `body` is a JSON value."""

    verb: str
    method: str
    path: str
    params: Mapping[str, str] = field(default_factory=dict)
    body: Json | None = None
    content_type: str = JSON
    accept: str = JSON

    def __str__(self) -> str:
        return f"{self.verb} {self.path.removeprefix('/')}"

    @property
    def text(self) -> str:
        """The body as compact JSON, which is also YAML."""
        return json.dumps(self.body, separators=(",", ":"))

    @property
    def headers(self) -> dict[str, str]:
        """The headers that follow from the request."""
        return {"Accept": self.accept} | ({"Content-Type": self.content_type} if self.body is not None else {})


@dataclass(frozen=True, slots=True)
class Selector:
    """Objects of a kind with all `labels` and `fields` (`metadata.name=coins`), `everywhere` in all namespaces."""

    kind: Kind
    labels: Mapping[str, str] = field(default_factory=dict)
    fields: str = ""
    everywhere: bool = False

    @property
    def params(self) -> dict[str, str]:
        """The parameters of a list or watch."""
        labels = ",".join(f"{key}={value}" for key, value in sorted(self.labels.items()))
        return ({"labelSelector": labels} if labels else {}) | ({"fieldSelector": self.fields} if self.fields else {})


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One event of a watch: `type` is ADDED, MODIFIED, DELETED or BOOKMARK."""

    type: str
    object: Json

    @property
    def version(self) -> str:
        """The resource version to continue from."""
        return str(self.object["metadata"]["resourceVersion"])


def page_request(
    selector: Selector, namespace: str | None, next_page: str = "", *, verb: str = "list", accept: str = JSON
) -> Request:
    """Return the request of one page of a list; `next_page` is the token of the page before."""
    size = PAGE_SIZE if accept == METADATA_LIST else PAGE_SIZES.get(selector.kind, PAGE_SIZE)
    params = {"limit": str(size)} | selector.params | ({"continue": next_page} if next_page else {})
    return Request(verb, "GET", selector.kind.path(namespace), params, accept=accept)


def watch_request(selector: Selector, namespace: str | None, version: str, timeout_s: int) -> Request:
    """Return the request of a watch from a resource version on, which the server ends after `timeout_s`."""
    params = selector.params | {
        "watch": "true",
        "allowWatchBookmarks": "true",
        "resourceVersion": version,
        "timeoutSeconds": str(timeout_s),
    }
    return Request("watch", "GET", selector.kind.path(namespace), params)


def delete_request(kind: Kind, namespace: str | None, name: str, uid: str | None) -> Request:
    """Return the request that deletes an object, of that uid if one is named, and in the background what it owns."""
    body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    if uid is not None:
        body["preconditions"] = {"uid": uid}
    return Request("delete", "DELETE", kind.path(namespace, name), body=body)


def check_response(request: Request, status: int, content: bytes, headers: Mapping[str, str]) -> None:
    """Raise the `ApiError` that an answer stands for, if it is not a success."""
    if not 200 <= status < 300:
        raise error_from_response(str(request), status, content, headers.get("Retry-After"))


def decode_object(request: Request, content: bytes, keys: AbstractSet[str] = frozenset({"metadata"})) -> Json:
    """Return the JSON object of an answer; `UnavailableError` if it is something else, or lacks one of `keys`."""
    text = content.decode(errors="replace")
    try:
        value: Any = json.loads(content)
    except ValueError as error:
        raise UnavailableError(f"{request}: ValueError {error}", server_message=_not(text, "JSON")) from error
    if not isinstance(value, dict) or not keys <= value.keys():
        message = _not(text, "a Kubernetes object")
        raise UnavailableError(f"{request}: {message}", server_message=message)
    return value


def decode_event(request: Request, line: str) -> WatchEvent:
    """Return the event in a line of a watch; `GoneError` if its version has expired, else the error that it is."""
    try:
        event = json.loads(line)
        event_type, item = event["type"], event["object"]
        metadata = item["metadata"] if event_type != "ERROR" else {}
        code = int(item["code"]) if event_type == "ERROR" else 0
        if event_type not in ("ERROR", "BOOKMARK"):
            metadata["name"]  # an object without a name cannot be kept
    except (ValueError, TypeError, LookupError) as error:
        message = _not(line, "an event of a watch")
        raise UnavailableError(f"{request}: {message}", server_message=message) from error
    if event_type == "ERROR":
        raise _watch_error(request, code, str(item.get("message", code)))
    return WatchEvent(event_type, without_managed_fields(item))


def without_managed_fields(item: Json) -> Json:
    """Return an object without `managedFields`, which are half of its size; `KubeClient.managed_fields` reads them."""
    item["metadata"].pop("managedFields", None)
    return item


def with_type(items: Iterable[Json], kind: Kind) -> list[Json]:
    """Return the items of a list with `apiVersion` and `kind`, which servers leave out, without `managedFields`."""
    return [{"apiVersion": kind.api_version, "kind": kind.name, **without_managed_fields(item)} for item in items]


def _watch_error(request: Request, code: int, message: str) -> UnavailableError | GoneError:
    error = GoneError if code == 410 else UnavailableError
    return error(f"{request}: {code} {message}", status=code, server_message=message)


def _not(text: str, expected: str) -> str:
    return f"it sent {text[:80]!r}, not {expected}"
