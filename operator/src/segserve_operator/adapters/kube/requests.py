"""What requests to an API server look like, whoever sends them: paths, media types, bodies, selectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.api import Json, Kind

PAGE: Final = 500
"""So many objects are asked for at a time."""

MERGE: Final = "application/merge-patch+json"
APPLY: Final = "application/apply-patch+yaml"  # of which JSON is a part


def root(kind: Kind) -> str:
    """Return the path of a kind's group and version."""
    return f"apis/{kind.group}/{kind.version}" if kind.group else f"api/{kind.version}"


def path(kind: Kind, namespace: str | None, *names: str) -> str:
    """Return the path of a kind's objects, of all namespaces where that is None, or of one and what belongs to it."""
    within = () if namespace is None else ("namespaces", namespace)
    return "/".join((root(kind), *(quote(part, safe="") for part in (*within, kind.plural, *names))))


def label_selector(labels: Mapping[str, str]) -> str:
    """Return labels as a request chooses by them."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def deletion(uid: str | None) -> Json:
    """Return the body of a deletion: in the background what is owned, and only the object of that uid."""
    body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
    return body if uid is None else body | {"preconditions": {"uid": uid}}


def stripped(item: Json) -> Json:
    """Return an object without `managedFields`, which are half of its size, and nobody asks for them."""
    item["metadata"].pop("managedFields", None)
    return item
