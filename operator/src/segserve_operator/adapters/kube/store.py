"""Resources of one pool on a cluster: statuses written with preconditions, revisions as ControllerRevisions."""

from __future__ import annotations

import hashlib
import logging
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.agent.protocol import AssignedModel
from segserve_common.api_errors import ConflictError, NotFoundError
from segserve_common.kube.kinds import EVENTS, MODELS, POOLS, REVISIONS
from segserve_common.kube.names import FINALIZER, MODEL_LABEL, REVISION_LABEL
from segserve_operator.adapters.kube.children import merge_patch
from segserve_operator.adapters.kube.contexts import kept_condition
from segserve_operator.adapters.kube.objects import revision_object, scale_selector, template_digest
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.adapters.kube.role_notes import RestoreCache, RoleNotes
from segserve_operator.adapters.kube.rollouts import CachedRollout, ClusterRollouts
from segserve_operator.adapters.kube.updates import offered_update
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import ModelObserved, PoolGateway, PoolObserved, Wanted
from segserve_operator.mapping.manifests import named_models
from segserve_operator.mapping.reading import read_pool_status, read_status
from segserve_operator.mapping.specs import (
    credentials_of,
    min_ready_of,
    model_of,
    model_status,
    wanted_of,
)
from segserve_operator.mapping.statuses import pool_from_api, pool_to_api, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.view import ModelInterner, PoolKey, View
    from segserve_operator.api.meta import Condition, SpecError
    from segserve_operator.core.rollout.record import Record
    from segserve_operator.core.world.event import Event
    from segserve_operator.core.world.observed import ModelStatus, PoolStatus

MESSAGE_LENGTH: Final = 1024
COMPONENT: Final = "segserve"

log = logging.getLogger("segserve")


@dataclass(slots=True)
class StoreCache:
    """Parsed specs, models, revisions and rollouts, most of them by uid."""

    specs: dict[str, tuple[list[str], Wanted | FailureReason]] = field(default_factory=dict)
    models: dict[tuple[str, str, bool, tuple[str, ...]], ModelObserved] = field(default_factory=dict)
    records: dict[str, AssignedModel] = field(default_factory=dict)
    rollouts: dict[str, CachedRollout] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    """Why the record of a revision cannot be read, by its uid."""

    restore: RestoreCache = field(default_factory=RestoreCache)


@dataclass(slots=True)
class ClusterStore:
    """The models of one pool. Writes have the state that `models` last returned as their precondition."""

    api: Api
    view: View
    contexts: PoolContexts
    key: PoolKey
    parsed: StoreCache
    interner: ModelInterner
    clock: Callable[[], float]
    _observed: dict[str, Json] = field(default_factory=dict)

    async def observed_pool(self) -> PoolObserved | None:
        """Return the pool, None if it does not exist, or is being deleted and nothing keeps it."""
        resource, context = self.contexts.resource(self.key), self.contexts.get(self.key)
        if resource is None or context is None:
            return None
        gateway = context.spec.gateway
        return PoolObserved(
            name=self.key.pool,
            generation=resource["metadata"]["generation"],
            status=pool_from_api(read_pool_status(resource.get("status") or {})),
            progress=kept_condition(self.view, self.key, resource),
            ignored=self.contexts.ignored(self.key),
            template=template_digest(context),
            replicas=context.spec.replicas,
            min_ready=min_ready_of(context.spec.min_ready),
            shared=context.spec.isolation == "shared",
            update=offered_update(self.view, self.contexts, self.key),
            gateway=PoolGateway(
                credentials_of(gateway),
                gateway.session_affinity is not None,
                gateway.shadow,
                gateway.capture is True,
                gateway.plain_http,
            ),
        )

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model of the pool; one whose spec cannot be parsed has a `problem`.

        A status that is gone, or that cannot be read, is built from the revisions' records.
        """
        models = self.view.of_pool(MODELS, self.key)
        self._observed = {model["metadata"]["name"]: model for model in models}
        uids = {model["metadata"]["uid"] for model in models}
        for uid in self.parsed.specs.keys() - uids:
            del self.parsed.specs[uid]
        missing = self.contexts.resource(self.key) is None
        states = [
            (
                model["metadata"]["uid"],
                model["metadata"]["resourceVersion"],
                missing,
                tuple(_generations(self._named(model))),
            )
            for model in models
        ]
        former = self.parsed.models
        self.parsed.models = {
            state: former.get(state) or self._observe(model, pool_missing=missing)
            for state, model in zip(states, models, strict=True)
        }
        for record in self.view.of_pool(REVISIONS, self.key):
            self._record(record)  # one that cannot be read is a problem of its model
        by_uid = {state[0]: model for state, model in self.parsed.models.items()}
        restored = await self._notes().restored(by_uid, float(int(self.clock())))
        return tuple(map(self._with_unreadable_record, restored.values()))

    def _with_unreadable_record(self, model: ModelObserved) -> ModelObserved:
        """Return a model with a problem if the record of a revision that has a role cannot be read."""
        if model.problem is not None or not self.parsed.unreadable:
            return model
        for record in self.view.of_pool(REVISIONS, self.key):
            why = self.parsed.unreadable.get(record["metadata"]["uid"])
            if why is not None and _revision_of(record) in model.roles.revisions():
                name = record["metadata"]["name"]
                problem = FailureReason("RecordUnreadable", f"ControllerRevision {name} cannot be read: {why}")
                return replace(model, problem=problem)
        return model

    async def keep_notes(self, models: Iterable[ModelObserved]) -> int:
        """Write the roles of the models' statuses beside the revisions' records, and return the number of writes."""
        return await self._notes().keep(models)

    def _notes(self) -> RoleNotes:
        return RoleNotes(self.api, self.view, self.contexts, self.key, self.parsed.restore)

    def _observe(self, model: Json, *, pool_missing: bool) -> ModelObserved:
        if not pool_missing:
            return model_of(model, self._spec(model))
        absent = f"there is no TritonPool {self.key.pool!r} in namespace {self.key.namespace}"
        return model_of(model, FailureReason("PoolNotFound", absent))

    def _spec(self, model: Json) -> Wanted | FailureReason:
        uid, others = model["metadata"]["uid"], self._named(model)
        generations = _generations([model, *others])
        cached = self.parsed.specs.get(uid)
        if cached is None or cached[0] != generations:
            wanted = wanted_of(model, {other["metadata"]["name"]: other for other in others})
            if isinstance(wanted, Wanted):
                wanted = replace(wanted, assigned=self.interner.intern(wanted.assigned))
            cached = (generations, wanted)
            self.parsed.specs[uid] = cached
        return cached[1]

    def _named(self, model: Json) -> list[Json]:
        """Return the models of the pool that a model names as its second network."""
        return [self._observed[name] for name in named_models(model).values() if name in self._observed]

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name; of several with one name, the latest that can be read."""
        records = [record for record in self.view.of_pool(REVISIONS, self.key) if not is_terminating(record)]
        uids = {record["metadata"]["uid"] for record in records}
        for cache in (self.parsed.records, self.parsed.unreadable):
            for uid in cache.keys() - uids:
                del cache[uid]
        read = ((_revision_of(record), self._record(record)) for record in sorted(records, key=_number))
        return {revision: assigned for revision, assigned in read if revision and assigned is not None}

    def _record(self, record: Json) -> AssignedModel | None:
        uid = record["metadata"]["uid"]
        if uid not in self.parsed.records and uid not in self.parsed.unreadable:
            try:
                self.parsed.records[uid] = self.interner.intern(AssignedModel.model_validate(record.get("data")))
            except ValueError as error:
                self.parsed.unreadable[uid] = " ".join(str(error).split())[:MESSAGE_LENGTH]
                log.error("%s/%s: %s", self.key.namespace, record["metadata"]["name"], error)
        return self.parsed.records.get(uid)

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Create the record of a revision, then delete the former ones of this revision: records are immutable."""
        model_name = assigned.model
        model = self._observed[model_name]
        former = [record for record in self._records() if record["metadata"]["labels"].get(MODEL_LABEL) == model_name]
        manifest = revision_object(
            namespace=self.key.namespace,
            pool=self.key.pool,
            model=assigned.model,
            uid=model["metadata"]["uid"],
            assigned=assigned,
            revision=revision,
            number=max(map(_number, former), default=0) + 1,
        )
        for record in former:
            if record["metadata"]["uid"] in self.parsed.unreadable and _revision_of(record) == revision:
                await self._delete(record)
        with suppress(ConflictError):  # an earlier pass created it, and ended before the server's response
            await self.api.create(REVISIONS, self.key.namespace, manifest)
        for record in former:
            metadata = record["metadata"]
            if _revision_of(record) == revision and metadata["name"] != manifest["metadata"]["name"]:
                await self._delete(record)

    async def drop_revision(self, revision: str) -> None:
        """Delete a revision's record; no error if it does not exist."""
        for record in self._records():
            if _revision_of(record) == revision:
                await self._delete(record)

    def _records(self) -> list[Json]:
        return self.view.of_pool(REVISIONS, self.key)

    async def _delete(self, record: Json) -> None:
        if not is_terminating(record):
            metadata = record["metadata"]
            await self.api.delete(REVISIONS, self.key.namespace, metadata["name"], uid=metadata["uid"])

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return the records that may still change by name; those that cannot be read are left out."""
        states = [model.status.rollout for model in self.parsed.models.values()]
        names = [state.rollout for state in states if state is not None and state.matters(now_s)]
        return await self._rollouts().read(names)

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record, and delete the model's oldest ones; does nothing if the model is gone.

        Raises `ConflictError` if it was changed meanwhile.
        """
        model = self._observed.get(record.model)
        if model is not None and not is_terminating(model):
            await self._rollouts().write(record, model["metadata"]["uid"])

    def _rollouts(self) -> ClusterRollouts:
        states = [model.status.rollout for model in self.parsed.models.values()]
        named = frozenset(state.rollout for state in states if state is not None)
        return ClusterRollouts(self.api, self.key, self.clock, self.parsed.rollouts, len(states), named)

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write the finalizer if it is absent, then a model's status; does nothing if the model is gone.

        Raises `ConflictError` if the model has changed since `models` returned it.
        """
        item = self._observed.get(model)
        if item is None:
            return
        with suppress(NotFoundError):
            finalizers = item["metadata"].get("finalizers", [])
            # Without it a model could be gone before its routes and assignments are removed.
            if FINALIZER not in finalizers and not is_terminating(item):
                item = await self._patch(MODELS, item, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
            present = item.get("status") or {}
            patch = merge_patch(present, model_status(status, present, self._now()))
            self._observed[model] = await self._patch(MODELS, item, {"status": patch}, status=True)

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Write the pool's status; does nothing if the pool is gone."""
        resource, context = self.contexts.resource(self.key), self.contexts.get(self.key)
        if resource is None or context is None:
            return
        present = resource.get("status") or {}
        former = read_pool_status(present)
        desired = pool_to_api(status, former, self._now(), scale_selector(context, status.idle))
        with suppress(NotFoundError):
            await self._patch(POOLS, resource, {"status": merge_patch(present, desired.to_dict())}, status=True)

    async def refuse(self, error: SpecError) -> None:
        """Write why the pool's spec cannot be read into its conditions, and into those of models that have none."""
        pool = self.contexts.resource(self.key)
        if pool is None:
            return
        await self._refuse(POOLS, pool, read_pool_status(pool.get("status") or {}).conditions, error, str(error))
        for model in self.view.of_pool(MODELS, self.key):
            given = read_status(model.get("status") or {})[0].conditions
            if all(condition.reason == error.reason for condition in given):
                await self._refuse(MODELS, model, given, error, f"the pool {error}")

    async def _refuse(
        self, kind: Kind, item: Json, former: Sequence[Condition], error: SpecError, message: str
    ) -> None:
        told = refused(error.reason, message, item["metadata"]["generation"], former, self._now())
        if set(told) != set(former):
            plain = [condition.to_dict() for condition in told]
            with suppress(NotFoundError):
                await self._patch(kind, item, {"status": {"conditions": plain}}, status=True)

    async def emit(self, model: str | None, event: Event) -> None:
        """Create an Event; an equal one about the same generation is not created again."""
        if model is not None:
            kind, about = MODELS, self._observed.get(model)
        else:
            kind, about = POOLS, self.contexts.resource(self.key)
        if about is None:
            return
        with suppress(ConflictError):
            await self.api.create(EVENTS, self.key.namespace, _event(kind, about, event, self._now()))

    async def forget(self, model: str) -> None:
        """Remove the finalizer of a deleted model; raises `ConflictError` if it has changed."""
        item = self._observed.get(model)
        if item is None or FINALIZER not in item["metadata"].get("finalizers", ()):
            return
        remaining = [name for name in item["metadata"]["finalizers"] if name != FINALIZER]
        with suppress(NotFoundError):
            await self._patch(MODELS, item, {"metadata": {"finalizers": remaining}})

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    async def _patch(self, kind: Kind, item: Json, patch: dict[str, Any], *, status: bool = False) -> Json:
        metadata = {**patch.get("metadata", {}), "resourceVersion": item["metadata"]["resourceVersion"]}
        name = item["metadata"]["name"]
        return await self.api.patch(kind, self.key.namespace, name, {**patch, "metadata": metadata}, status=status)


def _revision_of(record: Json) -> str:
    """Return the revision that a record is of: as its label says, else its content; empty if neither does."""
    labels, data = record["metadata"].get("labels") or {}, record.get("data")
    return str(labels.get(REVISION_LABEL) or (data.get("revision") if isinstance(data, dict) else None) or "")


def _generations(models: Iterable[Json]) -> list[str]:
    return [f"{model['metadata']['uid']} {model['metadata']['generation']}" for model in models]


def _number(record: Json) -> int:
    return int(record.get("revision") or 0)


def _event(kind: Kind, about: Json, event: Event, now: datetime) -> Json:
    metadata = about["metadata"]
    # Named by its content, so that a repeated Event conflicts with the first.
    identity = f"{metadata['uid']} {metadata['generation']} {event.reason} {event.message}"
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}",
            "namespace": metadata["namespace"],
        },
        "involvedObject": {
            "apiVersion": kind.api_version,
            "kind": kind.name,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
        },
        "type": event.kind,
        "reason": event.reason,
        "message": event.message[:MESSAGE_LENGTH],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
    }
