"""A Kubernetes API server in memory: versions, preconditions, owners, finalizers, garbage, watches, stale reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TypeAlias

from fakes.kube_fields import Json, Owners, copied, merged
from fakes.kube_rules import (
    Key,
    check_precondition,
    content,
    created,
    deleting,
    has_status,
    held,
    named,
    placed,
    replaced,
    selected,
    versions_of,
)
from fakes.kube_views import Lagging, OnEvent, Watch
from segserve_common.api_errors import ConflictError, InvalidError, NotFoundError
from segserve_common.kube.kinds import Kind
from segserve_common.kube.names import FIELD_MANAGER

Items: TypeAlias = list[Json]
Pairs: TypeAlias = list[tuple[Kind, Json]]
Keys: TypeAlias = list[Key]


class FakeKube:
    """Implements `Api`; its other methods are what users, controllers and kubelets do, each at once."""

    def __init__(self, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.clock = clock
        self.revision = 0
        self.watches: list[Watch] = []
        self.unserved: set[Kind] = set()
        self.admission: Callable[[Kind, Json], None] = lambda kind, item: None
        """What a mutating webhook does to each object that is created or changed, status apart."""
        self._objects: dict[Key, Json] = {}
        self._owners: dict[Key, Owners] = {}
        self._past: dict[Key, list[tuple[float, Json | None]]] = {}

    async def has(self, kind: Kind) -> bool:
        await asyncio.sleep(0)
        return kind not in self.unserved

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> Items:
        await asyncio.sleep(0)
        return self.all(kind, namespace, labels)

    async def each(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> AsyncIterator[Json]:
        for item in await self.list(kind, namespace, labels):
            yield item

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        return versions_of(await self.list(kind, namespace, labels))

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        await asyncio.sleep(0)
        found: Json = copied(self._live((kind, namespace, name)))
        return found

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        await asyncio.sleep(0)
        return self.put(kind, placed(namespace, manifest), manager=FIELD_MANAGER)

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        await asyncio.sleep(0)
        self._serve(kind)
        key = (kind, namespace, str(placed(namespace, manifest)["metadata"]["name"]))
        live = self._objects.get(key)
        if live is not None:
            check_precondition(key, live, manifest)
        elif manifest["metadata"].get("uid"):
            raise ConflictError(f"{named(key)}: there is none, and so none of that uid")
        owners = self._owners.get(key, Owners()).copy()
        said = owners.apply(FIELD_MANAGER, content(kind, live or {}), content(kind, manifest))
        return self._create(key, said, owners) if live is None else self._replace(key, said, owners)

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        await asyncio.sleep(0)
        change = self.edit_status if status else self.edit
        return change(kind, namespace, name, patch, manager=FIELD_MANAGER)

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> bool:
        await asyncio.sleep(0)
        live = self.peek(kind, namespace, name)
        if live is None or uid not in (None, live["metadata"]["uid"]):
            return False
        self.remove(kind, namespace, name)
        return self.peek(kind, namespace, name) is not None

    def peek(self, kind: Kind, namespace: str, name: str) -> Json | None:
        """Return an object, or None where there is none."""
        found: Json | None = copied(self._objects.get((kind, namespace, name)))
        return found

    def all(self, kind: Kind, namespace: str | None = None, labels: Mapping[str, str] | None = None) -> Items:
        """Return all objects of a kind, by namespace and name."""
        self._serve(kind)
        keys = sorted((key for key in self._objects if key[0] == kind), key=lambda key: key[1:])
        return selected([self._objects[key] for key in keys], namespace, labels or {})

    def everything(self) -> Pairs:
        """Return all objects of all kinds."""
        return [(kind, copied(item)) for (kind, _, _), item in self._objects.items()]

    def put(self, kind: Kind, manifest: Json, manager: str = "kubectl") -> Json:
        """Create an object as somebody else; its namespace is the manifest's."""
        self._serve(kind)
        key = (kind, str(manifest["metadata"]["namespace"]), str(manifest["metadata"]["name"]))
        if manifest["metadata"].get("resourceVersion"):
            raise InvalidError(f"{named(key)}: resourceVersion is not for objects to be created")
        if key in self._objects:
            raise ConflictError(f"{named(key)} already exists")
        owners, said = Owners(), content(kind, manifest)
        owners.update(manager, {}, said)
        return self._create(key, said, owners)

    def hold(self, kind: Kind, stored: Json, manager: str = FIELD_MANAGER) -> None:
        """Begin with an object as it is in the storage: with uid, version, owners and status."""
        key = (kind, str(stored["metadata"]["namespace"]), str(stored["metadata"]["name"]))
        self._owners[key] = Owners()
        self._owners[key].update(manager, {}, content(kind, stored))
        self._objects[key] = copied(stored)
        self._past.setdefault(key, []).append((self.clock(), self._objects[key]))
        self.revision = max(self.revision, int(stored["metadata"]["resourceVersion"]))

    def edit(self, kind: Kind, namespace: str, name: str, patch: Json, manager: str = "kubectl") -> Json:
        """Merge a patch into an object as somebody else."""
        key = (kind, namespace, name)
        live = self._live(key)
        check_precondition(key, live, patch)
        owners, said = self._owners[key].copy(), content(kind, merged(live, patch))
        owners.update(manager, content(kind, live), said)
        return self._replace(key, said, owners)

    def edit_status(self, kind: Kind, namespace: str, name: str, patch: Json, manager: str = "kubelet") -> Json:
        """Merge a patch into an object's status; all else that it says is ignored."""
        key = (kind, namespace, name)
        live = self._live(key)
        if not has_status(kind):
            raise NotFoundError(f"{named(key)} has no status of its own")
        check_precondition(key, live, patch, ("resourceVersion",))
        return self._store(key, {**live, "status": merged(live, patch).get("status", {})})

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        """Delete an object; finalizers hold it, and a pod that has a node ends when its kubelet says so (`vanish`)."""
        key = (kind, namespace, name)
        live = self._live(key)
        if not held(kind, live):
            self.vanish(kind, namespace, name)
        elif "deletionTimestamp" not in live["metadata"]:
            self._store(key, deleting(live, self._now()))

    def vanish(self, kind: Kind, namespace: str, name: str) -> None:
        """Take an object out, whatever holds it."""
        key = (kind, namespace, name)
        gone = copied(self._objects.pop(key))
        del self._owners[key]
        self.revision += 1
        gone["metadata"]["resourceVersion"] = str(self.revision)
        self._past[key].append((self.clock(), None))
        self._tell("DELETED", kind, gone)

    def collect(self) -> int:
        """Delete what has owners of which none is there any more, until nothing more goes; return how many were."""
        count = 0
        while garbage := self._garbage():
            count += len(garbage)
            for key in garbage:
                self.remove(*key)
        return count

    def subscribe(self, callback: OnEvent, kinds: Iterable[Kind] | None = None, delay_s: float = 0.0) -> Watch:
        """Tell a callback of each change from now on, so late; without kinds, of all."""
        self.watches.append(Watch(self, callback, None if kinds is None else frozenset(kinds), delay_s))
        return self.watches[-1]

    def deliver(self) -> None:
        """Hand out the events that are due."""
        for watch in list(self.watches):
            watch.deliver()

    def lagging(self, lag_s: float) -> Lagging:
        """Return an `Api` whose reads are as old as that."""
        return Lagging(self, lag_s)

    def as_of(self, at: float) -> dict[Key, Json]:
        """Return what there was at a time."""
        then = {key: [item for since, item in past if since <= at] for key, past in self._past.items()}
        return {key: items[-1] for key, items in then.items() if items and items[-1] is not None}

    def _garbage(self) -> Keys:
        uids = {item["metadata"]["uid"] for item in self._objects.values()}
        return [
            key
            for key, item in self._objects.items()
            if (owners := item["metadata"].get("ownerReferences"))
            and not any(owner["uid"] in uids for owner in owners)
            and "deletionTimestamp" not in item["metadata"]
        ]

    def _serve(self, kind: Kind) -> None:
        if kind in self.unserved:
            raise NotFoundError(f"the server could not find {kind.plural} of {kind.api_version}")

    def _live(self, key: Key) -> Json:
        self._serve(key[0])
        if key not in self._objects:
            raise NotFoundError(f"{named(key)} not found")
        return self._objects[key]

    def _create(self, key: Key, said: Json, owners: Owners) -> Json:
        whole = created(key, said, f"uid-{self.revision + 1}", self._now())
        self.admission(key[0], whole)
        self._owners[key] = owners
        return self._store(key, whole)

    def _replace(self, key: Key, said: Json, owners: Owners) -> Json:
        whole = replaced(key, self._objects[key], said, self.admission)
        self._owners[key] = owners
        stored = self._store(key, whole)
        if "deletionTimestamp" in whole["metadata"] and not held(key[0], whole):
            self.vanish(*key)
        return stored

    def _store(self, key: Key, whole: Json) -> Json:
        live = self._objects.get(key)
        if live != whole:
            self.revision += 1
            whole = copied(whole)
            whole["metadata"]["resourceVersion"] = str(self.revision)
            self._objects[key] = whole
            self._past.setdefault(key, []).append((self.clock(), whole))
            self._tell("ADDED" if live is None else "MODIFIED", key[0], whole)
        result: Json = copied(whole)
        return result

    def _tell(self, type_: str, kind: Kind, item: Json) -> None:
        for watch in list(self.watches):
            watch.put(type_, kind, item)

    def _now(self) -> str:
        return datetime.fromtimestamp(self.clock(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
