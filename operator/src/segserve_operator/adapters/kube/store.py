"""Resources of one pool as objects of the API: statuses with preconditions, records as ControllerRevisions."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.agent.protocol import AssignedModel
from segserve_common.kube.errors import ConflictError, NotFoundError
from segserve_common.kube.kinds import EVENTS, MODELS, POOLS, REVISIONS
from segserve_common.kube.names import FINALIZER, MODEL_LABEL, REVISION_LABEL
from segserve_operator.adapters.kube.merge import merge_patch
from segserve_operator.adapters.kube.objects import revision_object, scale_selector, template_digest
from segserve_operator.adapters.kube.pods import is_terminating
from segserve_operator.adapters.kube.rollouts import CachedRollout, ClusterRollouts
from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.api.triton_pool import TritonPoolStatus
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.observed import ModelObserved, PoolObserved, Wanted
from segserve_operator.mapping.specs import annotations_of, wanted_of
from segserve_operator.mapping.statuses import from_api, pool_from_api, pool_to_api, to_api

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.adapters.kube.api import Api
    from segserve_operator.adapters.kube.contexts import PoolContexts
    from segserve_operator.adapters.kube.interning import ModelInterner
    from segserve_operator.adapters.kube.view import PoolKey, View
    from segserve_operator.core.models.events import Event
    from segserve_operator.core.models.observed import ModelStatus, PoolStatus
    from segserve_operator.core.rollout.record import Record

MESSAGE_LENGTH: Final = 1024
COMPONENT: Final = "segserve"


@dataclass(slots=True)
class StoreCache:
    """What was read of specs and records, by uid; the same value is kept once."""

    specs: dict[str, tuple[int, Wanted | FailureReason]] = field(default_factory=dict)
    models: dict[tuple[str, str, bool], ModelObserved] = field(default_factory=dict)
    records: dict[str, AssignedModel] = field(default_factory=dict)
    rollouts: dict[str, CachedRollout] = field(default_factory=dict)


@dataclass(slots=True)
class ClusterStore:
    """The models of one pool. Writes refer to what the last `models` returned: a later change makes them conflict."""

    api: Api
    view: View
    contexts: PoolContexts
    key: PoolKey
    parsed: StoreCache
    known: ModelInterner
    clock: Callable[[], float]
    _seen: dict[str, Json] = field(default_factory=dict)

    async def observed_pool(self) -> PoolObserved | None:
        """Return the pool; None where there is none, or it is being deleted."""
        found, context = self.contexts.resource(self.key), self.contexts.get(self.key)
        if found is None or context is None:
            return None
        return PoolObserved(
            name=self.key.pool,
            generation=found["metadata"]["generation"],
            template=template_digest(context),
            shared=context.spec.isolation == "shared",
            status=pool_from_api(TritonPoolStatus.model_validate(found.get("status") or {})),
        )

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model of the pool; one whose spec cannot be read says why."""
        found = self.view.of_pool(MODELS, self.key)
        self._seen = {model["metadata"]["name"]: model for model in found}
        known = {model["metadata"]["uid"] for model in found}
        for uid in self.parsed.specs.keys() - known:
            del self.parsed.specs[uid]
        missing = self.contexts.resource(self.key) is None
        states = [(m["metadata"]["uid"], m["metadata"]["resourceVersion"], missing) for m in found]
        former = self.parsed.models
        self.parsed.models = {
            state: former.get(state) or self._observe(model, pool_missing=missing)
            for state, model in zip(states, found, strict=True)
        }
        return tuple(self.parsed.models.values())

    def _observe(self, model: Json, *, pool_missing: bool) -> ModelObserved:
        metadata = model["metadata"]
        absent = FailureReason(
            "PoolNotFound", f"there is no TritonPool {self.key.pool!r} in namespace {self.key.namespace}"
        )
        spec = absent if pool_missing else self._spec(model)
        return ModelObserved(
            name=metadata["name"],
            generation=metadata["generation"],
            wanted=spec if isinstance(spec, Wanted) else None,
            problem=spec if isinstance(spec, FailureReason) else None,
            status=from_api(SegmentationModelStatus.model_validate(model.get("status") or {})),
            deleting=is_terminating(model),
            annotations=annotations_of(model),
        )

    def _spec(self, model: Json) -> Wanted | FailureReason:
        uid, generation = model["metadata"]["uid"], model["metadata"]["generation"]
        known = self.parsed.specs.get(uid)
        if known is None or known[0] != generation:
            wanted = wanted_of(model)
            if isinstance(wanted, Wanted):
                wanted = replace(wanted, assigned=self.known.same(wanted.assigned))
            known = (generation, wanted)
            self.parsed.specs[uid] = known
        return known[1]

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name; of several with one name, the latest."""
        found = [record for record in self.view.of_pool(REVISIONS, self.key) if not is_terminating(record)]
        known = {record["metadata"]["uid"] for record in found}
        for uid in self.parsed.records.keys() - known:
            del self.parsed.records[uid]
        return {
            record["metadata"]["labels"][REVISION_LABEL]: self._record(record)
            for record in sorted(found, key=lambda record: int(record["revision"]))
        }

    def _record(self, record: Json) -> AssignedModel:
        uid = record["metadata"]["uid"]
        if uid not in self.parsed.records:
            self.parsed.records[uid] = self.known.same(AssignedModel.model_validate(record["data"]))
        return self.parsed.records[uid]

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Record what a revision is made of: as an object more, for one is never changed; then the former ones go."""
        model = self._seen[assigned.model]
        former = self._records_of(MODEL_LABEL, assigned.model)
        manifest = revision_object(
            namespace=self.key.namespace,
            pool=self.key.pool,
            model=assigned.model,
            uid=model["metadata"]["uid"],
            assigned=assigned,
            revision=revision,
            number=max((int(record["revision"]) for record in former), default=0) + 1,
        )
        with suppress(ConflictError):  # it is there: an earlier pass ended before it heard so
            await self.api.create(REVISIONS, self.key.namespace, manifest)
        for record in former:
            metadata = record["metadata"]
            if metadata["labels"][REVISION_LABEL] == revision and metadata["name"] != manifest["metadata"]["name"]:
                await self._delete(record)

    async def drop_revision(self, revision: str) -> None:
        """Remove a record; one that is gone already is fine."""
        for record in self._records_of(REVISION_LABEL, revision):
            await self._delete(record)

    def _records_of(self, label: str, value: str) -> list[Json]:
        found = self.view.of_pool(REVISIONS, self.key)
        return [record for record in found if record["metadata"]["labels"].get(label) == value]

    async def _delete(self, record: Json) -> None:
        if not is_terminating(record):
            metadata = record["metadata"]
            await self.api.delete(REVISIONS, self.key.namespace, metadata["name"], uid=metadata["uid"])

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return by name the records that may still change; one that cannot be read counts as absent."""
        standings = [model.status.rollout for model in self.parsed.models.values()]
        names = [standing.rollout for standing in standings if standing is not None and standing.matters(now_s)]
        return await self._rollouts().read(names)

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record; of a model's former ones the latest are kept. A model that is gone is fine.

        Raises `ConflictError` where somebody changed it meanwhile.
        """
        model = self._seen.get(record.model)
        if model is not None and not is_terminating(model):
            await self._rollouts().write(record, model["metadata"]["uid"])

    def _rollouts(self) -> ClusterRollouts:
        return ClusterRollouts(self.api, self.key, self.clock, self.parsed.rollouts)

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status if that is still as it was seen, after the finalizer, so that all can be undone.

        Raises `ConflictError` where it is not. A model that is gone is fine.
        """
        found = self._seen.get(model)
        if found is None:
            return
        with suppress(NotFoundError):
            finalizers = found["metadata"].get("finalizers", [])
            if FINALIZER not in finalizers and not is_terminating(found):
                found = await self._patch(MODELS, found, {"metadata": {"finalizers": [*finalizers, FINALIZER]}})
            present = found.get("status") or {}
            former = SegmentationModelStatus.model_validate(present)
            wanted = to_api(status, former, self._now()).to_dict()
            self._seen[model] = await self._patch(MODELS, found, {"status": merge_patch(present, wanted)}, status=True)

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Write the pool's status; a pool that is gone is fine."""
        found, context = self.contexts.resource(self.key), self.contexts.get(self.key)
        if found is None or context is None:
            return
        present = found.get("status") or {}
        former = TritonPoolStatus.model_validate(present)
        wanted = pool_to_api(status, former, self._now(), scale_selector(context, status.main_group))
        with suppress(NotFoundError):
            await self._patch(POOLS, found, {"status": merge_patch(present, wanted.to_dict())}, status=True)

    async def emit(self, model: str | None, event: Event) -> None:
        """Post an Event; the same notice of the same state is the same Event."""
        kind, about = (
            (MODELS, self._seen.get(model)) if model is not None else (POOLS, self.contexts.resource(self.key))
        )
        if about is None:
            return
        with suppress(ConflictError):
            await self.api.create(EVENTS, self.key.namespace, _event(kind, about, event, self._now()))

    async def forget(self, model: str) -> None:
        """Let a deleted model go, unless it is another by now."""
        found = self._seen.get(model)
        if found is None or FINALIZER not in found["metadata"].get("finalizers", ()):
            return
        kept = [name for name in found["metadata"]["finalizers"] if name != FINALIZER]
        with suppress(NotFoundError):
            await self._patch(MODELS, found, {"metadata": {"finalizers": kept}})

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.clock(), UTC)

    async def _patch(self, kind: Kind, found: Json, patch: dict[str, Any], *, status: bool = False) -> Json:
        metadata = {**patch.get("metadata", {}), "resourceVersion": found["metadata"]["resourceVersion"]}
        name = found["metadata"]["name"]
        return await self.api.patch(kind, self.key.namespace, name, {**patch, "metadata": metadata}, status=status)


def _event(kind: Kind, about: Json, event: Event, now: datetime) -> Json:
    metadata = about["metadata"]
    said = f"{metadata['uid']} {metadata['generation']} {event.reason} {event.message}"
    at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {
            "name": f"{metadata['name']}.{hashlib.sha256(said.encode()).hexdigest()[:16]}",
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
