"""Resources as files, with the manifests that they have on a cluster: the platform's part, which writes statuses."""

from __future__ import annotations

import contextlib
import json
import logging
import operator
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_common.files import DamagedFileError, UnreadableFileError, read_file, write_private
from segserve_operator.adapters.local.files import write_yaml
from segserve_operator.adapters.local.resource_files import (
    DEFAULT_POOL,
    MODEL,
    POOL,
    ResourceFiles,
    ResourceNotFoundError,
    add_event,
    read_model_status,
)
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.api.meta import SpecError
from segserve_operator.core.failure import FILE_DAMAGED, STATUS_UNREADABLE, FailureReason
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import (
    MAIN,
    ModelObserved,
    ModelStatus,
    PoolGateway,
    PoolObserved,
    PoolStatus,
    Wanted,
)
from segserve_operator.mapping.specs import credentials_of, model_of, model_status, wanted_of

log = logging.getLogger("segserve")


@dataclass(slots=True)
class LocalStore(ResourceFiles):
    """The resources of one state folder, and what the platform keeps of them."""

    _specs: dict[str, tuple[list[Any], Wanted | FailureReason]] = field(default_factory=dict)
    _models: dict[str, tuple[tuple[Any, ...], ModelObserved]] = field(default_factory=dict)
    """What was made of which metadata, status and spec: those of a file that has not changed are the same objects."""
    _pool: PoolObserved | None = None
    _rollouts: RolloutFiles = field(init=False)

    def __post_init__(self) -> None:
        self._rollouts = RolloutFiles(self.state.objects)

    async def observed_pool(self) -> PoolObserved:
        """Return the pool of this machine; it always exists, and has no status. A damaged one is as it was before."""
        try:
            gateway = self.pool().spec.gateway
        except SpecError:
            return self._pool or PoolObserved(self._pool_name())
        observed = PoolGateway(
            credentials_of(gateway), gateway.session_affinity is not None, plain_http=gateway.plain_http
        )
        self._pool = PoolObserved(self._pool_name(), gateway=observed)
        return self._pool

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Do nothing: the state of the pool is its processes' state."""

    async def emit(self, model: str | None, event: Event) -> None:
        """Keep an event; one about a model that is gone is dropped."""
        folder = self._folder(MODEL, model) if model is not None else self._folder(POOL, self._pool_name())
        if model is None or folder.exists():
            add_event(folder, event, time.time())

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return all models with their spec and status; an invalid one has a problem instead of a spec."""
        models, pool = [], self._pool_name()
        for name in self.names(MODEL):
            with contextlib.suppress(ResourceNotFoundError):
                manifest = self._with_held_roles(self.get(MODEL, name))
                models.append(self._model_of(manifest, pool))
        return tuple(models)

    def _with_held_roles(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Return a model whose status was lost with the revision that its servers hold as the stable one.

        Servers of the main group come first; without any the specification is rolled out.
        """
        name, status = manifest["metadata"]["name"], manifest.get("status") or {}
        stable: dict[str, Any] = {}
        if status.get("roles") and not isinstance(status["roles"], str):
            return manifest
        try:
            self._cached(self._folder(MODEL, name) / "status.yaml", read_model_status)
        except UnreadableFileError:
            return manifest  # it may be read in a moment
        except (FileNotFoundError, DamagedFileError):
            pass
        for path in sorted(self.state.groups.glob("*/assignment.json"), key=lambda path: path.parent.name != MAIN):
            with contextlib.suppress(OSError, DamagedFileError):
                since = datetime.fromtimestamp(path.stat().st_mtime, UTC).isoformat()
                for held in self._cached(path, _read_assignment).models:
                    if held.model == name and not stable:
                        stable = {"stable": {"revision": held.revision, "group": path.parent.name, "since": since}}
        return {**manifest, "status": {**status, "roles": stable}} if stable or status.get("roles") else manifest

    def _model_of(self, manifest: Mapping[str, Any], pool: str) -> ModelObserved:
        damage = self.damage(MODEL, manifest["metadata"]["name"])
        if damage is None:
            spec = _pool_mismatch(pool, manifest) or self._spec(manifest)
            parts, name = (manifest["metadata"], manifest.get("status"), spec), manifest["metadata"]["name"]
            known = self._models.get(name)
            if known is None or any(map(operator.is_not, known[0], parts)):
                self._models[name] = known = (parts, model_of(manifest, spec))
            return known[1]
        advice = "what serves goes on; apply the model again, or delete it"
        # No caller is admitted whom the lost specification may have kept out.
        return replace(model_of(manifest, FailureReason(FILE_DAMAGED, f"{damage}; {advice}")), access=())

    def _spec(self, manifest: Mapping[str, Any]) -> Wanted | FailureReason:
        name, others = manifest["metadata"]["name"], self.named(manifest)
        damage = next(filter(None, (self.damage(MODEL, other) for other in others)), None)
        if damage is not None:
            return FailureReason(FILE_DAMAGED, f"a model that it names is lost: {damage}; apply that again")
        specs = [each["spec"] for each in (manifest, *others.values())]
        known = self._specs.get(name)
        if known is None or len(known[0]) != len(specs) or any(map(operator.is_not, known[0], specs)):
            self._specs[name] = known = (specs, wanted_of(manifest, others))
        return known[1]

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""
        records = {}
        for path in sorted(self.state.revisions.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                assigned = self._cached(path, _read_revision)
                if assigned is not None:
                    records[path.stem] = assigned
        return records

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Write the record of a revision."""
        text = json.dumps(assigned.to_json(), indent=1)
        write_private(self.state.revisions / f"{revision}.json", text)

    async def drop_revision(self, revision: str) -> None:
        """Remove the record of a revision, if it exists."""
        (self.state.revisions / f"{revision}.json").unlink(missing_ok=True)

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return the records that may still change, by name; an unreadable record counts as missing."""
        states = [model.status.rollout for model in await self.models()]
        names = [state.rollout for state in states if state is not None and state.matters(now_s)]
        return {name: record for name in names if (record := self._rollouts.read(name)) is not None}

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record, and drop the model's oldest; without its model, do nothing."""
        if self._folder(MODEL, record.model).exists():
            self._rollouts.write(record)

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status; conditions that did not change keep their times. Without the model, do nothing.

        A damaged status is kept under another name. Raises `UnreadableFileError` for one that cannot be read now.
        """
        folder = self._folder(MODEL, model)
        if not folder.exists():
            return
        path = folder / "status.yaml"
        present = self.get(MODEL, model).get("status") or {}
        try:
            is_damaged = isinstance(self._cached(path, read_model_status).get("roles"), str)
        except UnreadableFileError:
            raise
        except (FileNotFoundError, DamagedFileError) as error:
            is_damaged = isinstance(error, DamagedFileError)
        if is_damaged:
            kept, stable = path.rename(path.with_name(f"{path.name}.{time.time_ns()}.damaged")), status.roles.stable
            served = f"{stable.revision} serves" if stable is not None else "no server has a revision of it"
            message = f"{path} was damaged, and is now {kept.name}: {served}; lost are its rollout and what it refused"
            add_event(folder, Event("Warning", STATUS_UNREADABLE, message), time.time())
        write_yaml(path, model_status(status, present, datetime.now(UTC)))

    async def forget(self, model: str) -> None:
        """Remove a model that is marked for deletion, unless it was applied again meanwhile."""
        folder = self._folder(MODEL, model)
        with self._locked():
            manifest = self._manifest(folder / "spec.yaml")
            if manifest is not None and "deletionTimestamp" in manifest["metadata"]:
                shutil.rmtree(folder)
                self._rollouts.drop_of(model)
                for path in self.state.revisions.glob(f"{model}-*.json"):
                    if path.stem.rpartition("-")[0] == model:
                        path.unlink(missing_ok=True)


def _read_assignment(path: Path) -> Assignment:
    return read_file(path, lambda text: Assignment.model_validate(json.loads(text)))


def _read_revision(path: Path) -> AssignedModel | None:
    """Return a revision's record, None if it cannot be read: then its servers' assignment stands for it."""
    try:
        return read_file(path, lambda text: AssignedModel.model_validate(json.loads(text)))
    except DamagedFileError as error:
        log.error("%s", error)
        return None


def _pool_mismatch(pool: str, manifest: Mapping[str, Any]) -> FailureReason | None:
    name = manifest["spec"].get("pool", DEFAULT_POOL)
    if name == pool:
        return None
    return FailureReason("PoolNotFound", f"spec.pool is {name!r}; the pool of this machine is {pool!r}")
