"""The operator's cache of the cluster: every object that it reads, as of the last event, own write or audit.

Any client can set labels, so they alone do not make the operator hold an object.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, POOLS
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    MANAGED_LABELS,
    POOL_LABEL,
    SERVER,
    SHARDS,
    assignment_name,
    plan_name,
    report_name,
    reports_name,
)

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator, Mapping

    from segserve_builder.agent.protocol import AssignedModel
    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api

MAX_KEPT_BYTES: Final = 64 * 2**20
"""Content of ConfigMaps of one namespace that is kept; 1,000 servers with 100 models each have about 20 MB."""
DEFAULT_POOL: Final = "default"
REMEMBERED_DELETIONS: Final = 10_000
READ_AT_ONCE: Final = 100
_UNREAD_ANNOTATION: Final = "kubectl.kubernetes.io/last-applied-configuration"


@dataclass(slots=True)
class KnownObjects:
    """Distinguishes what belongs to a pool or its models from what only has its labels.

    ConfigMaps, which hold most, are only known if they have the name that their group gives them, and up to
    `max_kept_bytes` per namespace.
    """

    max_kept_bytes: int = MAX_KEPT_BYTES
    _sizes: dict[tuple[str, str], int] = field(default_factory=dict)
    _kept: Counter[str] = field(default_factory=Counter)

    def knows(self, kind: Kind, item: Json, pool: str | None, *, has_owner: bool) -> bool:
        """Return whether to keep an object; `has_owner` says whether its `pool`, or a model of that, exists."""
        if kind in (MODELS, POOLS):
            return True
        if pool is None or not has_owner:
            return False
        return kind != CONFIG_MAPS or (_is_named_by_us(item, pool) and self._has_room(item))

    def forget(self, kind: Kind, namespace: str, name: str) -> None:
        """Count an object no longer, which was deleted or is not known any more."""
        if kind == CONFIG_MAPS:
            self._kept[namespace] -= self._sizes.pop((namespace, name), 0)

    def _has_room(self, item: Json) -> bool:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        size = _size(item)
        before = self._sizes.get((namespace, name), 0)
        if self._kept[namespace] - before + size > self.max_kept_bytes:
            return False
        self._kept[namespace] += size - before
        self._sizes[namespace, name] = size
        return True


def _is_named_by_us(item: Json, pool: str) -> bool:
    metadata = item["metadata"]
    labels = metadata.get("labels") or {}
    name, group = metadata["name"], labels.get(GROUP_LABEL, "")
    if labels.get(COMPONENT_LABEL) == GATEWAY:
        return name in (reports_name(pool, GATEWAY), *(plan_name(pool, shard) for shard in range(SHARDS)))
    if labels.get(COMPONENT_LABEL) != SERVER or not group:
        return False
    shards = (assignment_name(pool, group, shard) for shard in range(SHARDS))
    owners = metadata.get("ownerReferences") or ()
    return name in (reports_name(pool, group), *shards, *(report_name(owner["name"]) for owner in owners))


def _size(item: Mapping[str, Mapping[str, str] | None]) -> int:
    parts = (item.get("data") or {}, item.get("binaryData") or {})
    return sum(len(key) + len(value) for part in parts for key, value in part.items())


@dataclass(frozen=True, slots=True, order=True)
class PoolKey:
    """The namespace and name of a pool, which one pass reconciles."""

    namespace: str
    pool: str


def key_of(kind: Kind, item: Mapping[str, Any]) -> PoolKey | None:
    """Return the pool that an object belongs to, None if it belongs to none."""
    metadata = item["metadata"]
    match kind.name:
        case MODELS.name:
            pool = (item.get("spec") or {}).get("pool", DEFAULT_POOL)
        case POOLS.name:
            pool = metadata["name"]
        case _:
            pool = (metadata.get("labels") or {}).get(POOL_LABEL)
    return PoolKey(metadata["namespace"], pool) if pool else None


def selector(kind: Kind) -> Mapping[str, str]:
    """Return the labels that select the objects of a kind to list and watch."""
    return {} if kind in (MODELS, POOLS) else MANAGED_LABELS


class View:
    """Objects by kind, namespace and name. Of two states of an object it keeps the newer one.

    resourceVersions are compared as numbers, which they are on every API server (KEP-5504). Pools outside of the
    namespaces `enabled` are read and left alone; None are all namespaces that are read. Objects that are not `known`
    are kept only as versions, so that they take no memory; with None, all are known.
    """

    def __init__(
        self, kinds: Iterable[Kind], enabled: Container[str] | None = None, known: KnownObjects | None = None
    ) -> None:
        self.kinds = tuple(kinds)
        self._enabled = enabled
        self._known = known
        self._unknown: dict[Kind, dict[tuple[str, str], int]] = {kind: {} for kind in self.kinds}
        self._unread: dict[PoolKey, set[tuple[Kind, str]]] = defaultdict(set)
        self._objects: dict[Kind, dict[tuple[str, str], Json]] = {kind: {} for kind in self.kinds}
        self._by_pool: dict[Kind, dict[PoolKey, set[str]]] = {kind: defaultdict(set) for kind in self.kinds}
        self._sorted: dict[Kind, dict[PoolKey, list[Json]]] = {kind: {} for kind in self.kinds}
        """What `of_pool` returned last, until an object of it changes: a pass calls it again and again."""
        self._changes: Counter[PoolKey] = Counter()
        self._gone: OrderedDict[str, int] = OrderedDict()
        self.answers: dict[str, tuple[str, str]] = {}
        """Digests by uid: of a manifest that admission changes, and of what the object has in its place."""
        self.covering: dict[str, tuple[Json, Json]] = {}
        """Pairs by uid: a state of an object and a manifest all of whose fields it has."""

    def get(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Return the latest state of an object, None if it is absent."""
        return self._objects[kind].get((namespace, name))

    def of_pool(self, kind: Kind, key: PoolKey) -> list[Json]:
        """Return a pool's objects of a kind, sorted by name."""
        found = self._sorted[kind].get(key)
        if found is None:
            names = self._by_pool[kind].get(key, ())
            found = [self._objects[kind][key.namespace, name] for name in sorted(names)]
            if found:
                self._sorted[kind][key] = found
        return [*found]

    def changes(self, key: PoolKey) -> int:
        """Return how often an object of a pool has changed so far."""
        return self._changes[key]

    def pools(self) -> frozenset[PoolKey]:
        """Return every pool to reconcile that has any object."""
        found = (key for by_pool in self._by_pool.values() for key, names in by_pool.items() if names)
        return frozenset(key for key in found if self._enabled is None or key.namespace in self._enabled)

    def has_pool(self, key: PoolKey) -> bool:
        """Return whether `pools` has this one; the others, of which there may be hundreds, are not looked at."""
        is_enabled = self._enabled is None or key.namespace in self._enabled
        return is_enabled and any(by_pool.get(key) for by_pool in self._by_pool.values())

    def take(self, kind: Kind, item: Json) -> frozenset[PoolKey]:
        """Store an object's state unless a newer one is stored, and return the pools to reconcile."""
        metadata = item["metadata"]
        at = (metadata["namespace"], metadata["name"])
        present = self._objects[kind].get(at)
        # A watch reports an object that loses our labels as deleted, though its uid may come back with them.
        latest = max(self._gone.get(metadata["uid"], -1), -1 if present is None else _version(present))
        # One that was not known is read again, in the same version, once it may be.
        if _version(item) <= latest or _version(item) < self._unknown[kind].get(at, -1):
            return frozenset()
        self._gone.pop(metadata["uid"], None)
        former, key = self._unlink(kind, present), key_of(kind, item)
        if not self._knows(kind, item, key):
            self._set_aside(kind, item, key)
            return frozenset() if former is None else frozenset({former})
        self._unknown[kind].pop(at, None)
        self._objects[kind][at] = _slim(item)
        if key is not None:
            self._by_pool[kind][key].add(at[1])
            self._sorted[kind].pop(key, None)
            self._changes[key] += 1
        return frozenset(pool for pool in (key, former) if pool is not None)

    def _knows(self, kind: Kind, item: Json, key: PoolKey | None) -> bool:
        if self._known is None:
            return True
        has_owner = key is not None and (
            self.get(POOLS, key.namespace, key.pool) is not None or key in self._by_pool[MODELS]
        )
        return self._known.knows(kind, item, key.pool if key is not None else None, has_owner=has_owner)

    def _set_aside(self, kind: Kind, item: Json, key: PoolKey | None) -> None:
        metadata = item["metadata"]
        at = (metadata["namespace"], metadata["name"])
        self._objects[kind].pop(at, None)
        self._unknown[kind][at] = _version(item)
        if self._known is not None:
            self._known.forget(kind, *at)
        if key is not None:
            self._unread[key].add((kind, at[1]))

    def forget_unknown(self, kind: Kind, namespace: str, name: str) -> None:
        """Forget the version of an object that is not known, and not selected any more."""
        self._unknown[kind].pop((namespace, name), None)

    def unread(self, key: PoolKey, most: int) -> list[tuple[Kind, str]]:
        """Return objects with a pool's labels that came before the pool or its models, each once; forget them."""
        if self.get(POOLS, key.namespace, key.pool) is None and key not in self._by_pool[MODELS]:
            return []
        waiting = self._unread.get(key, set())
        chosen = list(waiting)[:most]
        waiting.difference_update(chosen)
        if not waiting:
            self._unread.pop(key, None)
        return [(kind, name) for kind, name in chosen if (key.namespace, name) in self._unknown[kind]]

    def drop(self, kind: Kind, gone: Mapping[str, Any]) -> frozenset[PoolKey]:
        """Remove a deleted object, and return the pools to reconcile."""
        metadata = gone["metadata"]
        self._gone[metadata["uid"]] = _version(gone)
        self.answers.pop(metadata["uid"], None)
        self.covering.pop(metadata["uid"], None)
        while len(self._gone) > REMEMBERED_DELETIONS:
            self._gone.popitem(last=False)
        at = (metadata["namespace"], metadata["name"])
        if self._unknown[kind].get(at, _version(gone) + 1) <= _version(gone):
            del self._unknown[kind][at]
        present = self._objects[kind].get(at)
        if present is None or present["metadata"]["uid"] != metadata["uid"] or _version(present) > _version(gone):
            return frozenset()
        del self._objects[kind][at]
        if self._known is not None:
            self._known.forget(kind, *at)
        former = self._unlink(kind, present)
        return frozenset() if former is None else frozenset({former})

    def differences(self, kind: Kind, versions: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
        """Yield (namespace, name) of what the server has otherwise than the view, or only one of them has."""
        own = {at: str(version) for at, version in self._unknown[kind].items()}
        own |= {at: item["metadata"]["resourceVersion"] for at, item in self._objects[kind].items()}
        for at in own.keys() | versions.keys():
            if own.get(at) != versions.get(at):
                yield at

    def _unlink(self, kind: Kind, item: Json | None) -> PoolKey | None:
        key = key_of(kind, item) if item is not None else None
        if item is not None and key is not None:
            self._by_pool[kind][key].discard(item["metadata"]["name"])
            self._sorted[kind].pop(key, None)
            self._changes[key] += 1
            if not self._by_pool[kind][key]:
                del self._by_pool[kind][key]
        return key


async def fill(view: View, api: Api, namespaces: Iterable[str | None]) -> None:
    """List all objects into the view; before this a pass would consider existing objects missing."""
    for namespace in namespaces:
        for kind in view.kinds:
            async for item in api.each(kind, namespace, selector(kind)):
                view.take(kind, item)


async def read_known(view: View, api: Api, key: PoolKey) -> None:
    """Read objects of a pool that were seen before the pool itself, some of them in each call."""
    for kind, name in view.unread(key, READ_AT_ONCE):
        with suppress(NotFoundError):
            view.take(kind, await api.get(kind, key.namespace, name))


async def audit(view: View, api: Api, namespaces: Iterable[str | None]) -> frozenset[PoolKey]:
    """Read objects whose changes no event reported, and return the pools to reconcile."""
    changed: set[PoolKey] = set()
    for namespace in namespaces:
        for kind in view.kinds:
            versions = await api.versions(kind, namespace, selector(kind))
            for at in list(view.differences(kind, versions)):
                if namespace is None or at[0] == namespace:
                    changed |= await _read_again(view, api, kind, *at)
    return frozenset(changed)


async def _read_again(view: View, api: Api, kind: Kind, namespace: str, name: str) -> frozenset[PoolKey]:
    try:
        item = await api.get(kind, namespace, name)
    except NotFoundError:
        view.forget_unknown(kind, namespace, name)
        present = view.get(kind, namespace, name)
        return view.drop(kind, present) if present is not None else frozenset()
    labels = (item["metadata"].get("labels") or {}).items()
    present = view.get(kind, namespace, name)
    if not selector(kind).items() <= labels:
        view.forget_unknown(kind, namespace, name)
        return view.drop(kind, present) if present is not None else frozenset()
    # It was deleted and created again: the former one may have belonged to another pool.
    if present is not None and present["metadata"]["uid"] != item["metadata"]["uid"]:
        return view.drop(kind, present) | view.take(kind, item)
    return view.take(kind, item)


def _version(item: Mapping[str, Any]) -> int:
    return int(item["metadata"]["resourceVersion"])


def _slim(item: Json) -> Json:
    """Return an object without the large fields that are never read."""
    metadata = {key: value for key, value in item["metadata"].items() if key != "managedFields"}
    if _UNREAD_ANNOTATION in (metadata.get("annotations") or {}):
        kept = {key: value for key, value in metadata["annotations"].items() if key != _UNREAD_ANNOTATION}
        metadata["annotations"] = kept
    return {**item, "metadata": metadata}


class ModelInterner:
    """Returns one instance for equal models, which saves memory and makes comparing them fast."""

    def __init__(self) -> None:
        self._models: WeakValueDictionary[str, AssignedModel] = WeakValueDictionary()

    def intern(self, model: AssignedModel) -> AssignedModel:
        """Return the interned model that equals this one, or else intern this one."""
        interned = self._models.get(model.revision)
        # The same revision may have another artifact URI.
        if interned is not None and interned == model:
            return interned
        self._models[model.revision] = model
        return model
