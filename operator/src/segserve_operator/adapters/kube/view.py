"""The operator's picture of the cluster: every object that it reads, as of the last event, own write or audit."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.errors import NotFoundError
from segserve_common.kube.kinds import MODELS, POOLS
from segserve_common.kube.names import MANAGED_LABELS, POOL_LABEL

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api

DEFAULT_POOL: Final = "default"
REMEMBERED_DELETIONS: Final = 10_000
_UNREAD_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """A pool by name: what one pass is about."""

    namespace: str
    pool: str


def key_of(kind: Kind, found: Mapping[str, Any]) -> PoolKey | None:
    """Return the pool that an object belongs to; None where it belongs to none."""
    metadata = found["metadata"]
    match kind.name:
        case MODELS.name:
            pool = (found.get("spec") or {}).get("pool", DEFAULT_POOL)
        case POOLS.name:
            pool = metadata["name"]
        case _:
            pool = (metadata.get("labels") or {}).get(POOL_LABEL)
    return PoolKey(metadata["namespace"], pool) if pool else None


def selector(kind: Kind) -> Mapping[str, str]:
    """Return the labels of the objects of a kind that are looked at."""
    return {} if kind in (MODELS, POOLS) else MANAGED_LABELS


class View:
    """Objects by kind, namespace and name. It never goes back: of two states of an object the newer one stays.

    resourceVersions are compared as the numbers that they are on every API server (KEP-5504).
    """

    def __init__(self, kinds: Iterable[Kind]) -> None:
        self.kinds = tuple(kinds)
        self._objects: dict[Kind, dict[tuple[str, str], Json]] = {kind: {} for kind in self.kinds}
        self._by_pool: dict[Kind, dict[PoolKey, set[str]]] = {kind: defaultdict(set) for kind in self.kinds}
        self._gone: OrderedDict[str, int] = OrderedDict()

    def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Return an object as last seen."""
        return self._objects[kind].get((namespace, name))

    def of_pool(self, kind: Kind, key: PoolKey) -> list[Json]:
        """Return a pool's objects of a kind, by name."""
        names = self._by_pool[kind].get(key, ())
        return [self._objects[kind][key.namespace, name] for name in sorted(names)]

    def pools(self) -> frozenset[PoolKey]:
        """Return every pool that anything belongs to."""
        return frozenset(key for by_pool in self._by_pool.values() for key, names in by_pool.items() if names)

    def take(self, kind: Kind, found: Json) -> frozenset[PoolKey]:
        """Take over an object's state, and return the pools that this is news for."""
        metadata = found["metadata"]
        at = (metadata["namespace"], metadata["name"])
        known = self._objects[kind].get(at)
        # One that lost our labels was told to be gone, and is back once it has them again.
        seen = max(self._gone.get(metadata["uid"], -1), -1 if known is None else _version(known))
        if _version(found) <= seen:
            return frozenset()
        self._gone.pop(metadata["uid"], None)
        self._objects[kind][at] = _slim(found)
        former = self._unlink(kind, known)
        key = key_of(kind, found)
        if key is not None:
            self._by_pool[kind][key].add(at[1])
        return frozenset(pool for pool in (key, former) if pool is not None)

    def drop(self, kind: Kind, gone: Mapping[str, Any]) -> frozenset[PoolKey]:
        """Take over that an object is gone, and return the pools that this is news for."""
        metadata = gone["metadata"]
        self._gone[metadata["uid"]] = _version(gone)
        while len(self._gone) > REMEMBERED_DELETIONS:
            self._gone.popitem(last=False)
        at = (metadata["namespace"], metadata["name"])
        known = self._objects[kind].get(at)
        if known is None or known["metadata"]["uid"] != metadata["uid"] or _version(known) > _version(gone):
            return frozenset()
        del self._objects[kind][at]
        former = self._unlink(kind, known)
        return frozenset() if former is None else frozenset({former})

    def differences(self, kind: Kind, versions: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
        """Yield (namespace, name) of what the server has otherwise than the view, or only one of them has."""
        known = {at: found["metadata"]["resourceVersion"] for at, found in self._objects[kind].items()}
        for at in known.keys() | versions.keys():
            if known.get(at) != versions.get(at):
                yield at

    def _unlink(self, kind: Kind, known: Json | None) -> PoolKey | None:
        key = key_of(kind, known) if known is not None else None
        if known is not None and key is not None:
            self._by_pool[kind][key].discard(known["metadata"]["name"])
        return key


async def fill(view: View, api: Api, namespaces: Iterable[str | None]) -> None:
    """Read everything that there is: a pass must not take what it has not seen yet for missing."""
    for namespace in namespaces:
        for kind in view.kinds:
            for found in await api.list(kind, namespace, selector(kind)):
                view.take(kind, found)


async def audit(view: View, api: Api, namespaces: Iterable[str | None]) -> frozenset[PoolKey]:
    """Look for changes that no event told of, and return the pools that they are news for."""
    news: set[PoolKey] = set()
    for namespace in namespaces:
        for kind in view.kinds:
            versions = await api.versions(kind, namespace, selector(kind))
            for at in list(view.differences(kind, versions)):
                if namespace is None or at[0] == namespace:
                    news |= await _look_again(view, api, kind, *at)
    return frozenset(news)


async def _look_again(view: View, api: Api, kind: Kind, namespace: str, name: str) -> frozenset[PoolKey]:
    try:
        found = await api.get(kind, namespace, name)
    except NotFoundError:
        known = view.get(kind, namespace, name)
        return view.drop(kind, known) if known is not None else frozenset()
    labels = (found["metadata"].get("labels") or {}).items()
    known = view.get(kind, namespace, name)
    if not selector(kind).items() <= labels:
        return view.drop(kind, known) if known is not None else frozenset()
    if known is not None and known["metadata"]["uid"] != found["metadata"]["uid"]:
        return view.drop(kind, known) | view.take(kind, found)
    return view.take(kind, found)


def _version(found: Mapping[str, Any]) -> int:
    return int(found["metadata"]["resourceVersion"])


def _slim(found: Json) -> Json:
    """Return an object without what takes much memory and is never read."""
    metadata = {key: value for key, value in found["metadata"].items() if key != "managedFields"}
    if _UNREAD_ANNOTATION in (metadata.get("annotations") or {}):
        kept = {key: value for key, value in metadata["annotations"].items() if key != _UNREAD_ANNOTATION}
        metadata["annotations"] = kept
    return {**found, "metadata": metadata}
