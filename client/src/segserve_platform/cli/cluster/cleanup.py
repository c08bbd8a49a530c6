"""Objects left behind if the operator was uninstalled before its models were deleted, and their removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from segserve_common.kube.kinds import CHILDREN, DEPLOYMENTS, MODELS, PODS, POOLS, Kind
from segserve_common.kube.names import FINALIZER, MANAGED_LABELS, POOL_FINALIZER
from segserve_platform.platforms.cluster.context_client import ContextClient
from segserve_platform.platforms.cluster.doctor import OPERATOR
from segserve_platform.platforms.errors import ForbiddenError, NotFoundError, NotInstalledError
from segserve_platform.platforms.port import Json

_FINALIZERS: Final = {MODELS: FINALIZER, POOLS: POOL_FINALIZER}
KINDS: Final = tuple(kind for kind in CHILDREN if kind is not PODS)  # pods go with their Deployments


@dataclass(frozen=True, slots=True)
class Leftover:
    """One removal: of an object, or if `finalizers` is not None, of its finalizers except these."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    version: str
    why: str
    finalizers: tuple[str, ...] | None = None

    def __str__(self) -> str:
        what = f"finalizer {_FINALIZERS[self.kind]} of " if self.finalizers is not None else ""
        return f"{self.namespace}: {what}{self.kind.name.lower()}/{self.name} ({self.why})"


def leftovers(client: ContextClient, *, everywhere: bool, of_all: bool) -> list[Leftover]:
    """Return what is left in the namespace or everywhere: blocked models and pools, then objects without an owner.

    One is blocked if it is being deleted and has segserve's finalizer; `of_all` includes all that have the finalizer.
    """
    # Children first: the owner of a child created between both lists is then known.
    children = [(kind, item) for kind in KINDS for item in _listed(client, kind, MANAGED_LABELS, everywhere=everywhere)]
    models, pools = (_listed(client, kind, {}, everywhere=everywhere) for kind in (MODELS, POOLS))
    living = {item["metadata"]["uid"] for item in (*models, *pools)}
    held = [
        _held(kind, item)
        for kind, items in ((MODELS, models), (POOLS, pools))
        for item in items
        if _is_held(kind, item, of_all=of_all)
    ]
    return [*held, *_orphans(children, living)]


def running_operator(client: ContextClient) -> str | None:
    """Return a running operator that would do the cleanup itself; None if there is none, or the user may not see it."""
    try:
        deployments, _ = client.list(DEPLOYMENTS, labels=OPERATOR, everywhere=True)
    except ForbiddenError:
        return None
    ready = [each["metadata"] for each in deployments if (each.get("status") or {}).get("readyReplicas")]
    return f"deployment/{ready[0]['name']} in {ready[0]['namespace']}" if ready else None


def remove(client: ContextClient, leftover: Leftover) -> None:
    """Remove one leftover; one that is gone by now is ignored, one that has changed is left alone with an error."""
    try:
        if leftover.finalizers is None:
            client.delete(leftover.kind, leftover.name, namespace=leftover.namespace, uid=leftover.uid)
            return
        metadata = {"finalizers": [*leftover.finalizers], "resourceVersion": leftover.version}
        client.patch(leftover.kind, leftover.name, {"metadata": metadata}, namespace=leftover.namespace)
    except NotFoundError:
        return


def _listed(client: ContextClient, kind: Kind, labels: Mapping[str, str], *, everywhere: bool) -> list[Json]:
    """Return all objects of a kind; none if the server does not have the kind (in this version)."""
    try:
        return client.list(kind, labels=labels, everywhere=everywhere)[0]
    except NotInstalledError:
        return []


def _is_held(kind: Kind, item: Json, *, of_all: bool) -> bool:
    metadata = item["metadata"]
    return _FINALIZERS[kind] in metadata.get("finalizers", ()) and (of_all or "deletionTimestamp" in metadata)


def _held(kind: Kind, item: Json) -> Leftover:
    others = tuple(name for name in item["metadata"]["finalizers"] if name != _FINALIZERS[kind])
    going = "deletionTimestamp" in item["metadata"]
    return _leftover(kind, item, "it is being deleted" if going else "it is kept, without its finalizer", others)


def _orphans(children: Sequence[tuple[Kind, Json]], living: set[str]) -> Iterator[Leftover]:
    reported: set[str] = set()
    for kind, item in children:
        metadata = item["metadata"]
        owners = metadata.get("ownerReferences") or []
        has_owner = any(owner["uid"] in living for owner in owners)
        if "deletionTimestamp" not in metadata and metadata["uid"] not in reported and not has_owner:
            reported.add(metadata["uid"])
            named = ", ".join(f"{owner['kind'].lower()}/{owner['name']}" for owner in owners)
            yield _leftover(kind, item, f"{named} was deleted" if named else "no owner")


def _leftover(kind: Kind, item: Json, why: str, finalizers: tuple[str, ...] | None = None) -> Leftover:
    metadata = item["metadata"]
    return Leftover(
        kind, metadata["namespace"], metadata["name"], metadata["uid"], metadata["resourceVersion"], why, finalizers
    )
