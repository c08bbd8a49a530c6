"""Resources as files of the shape that they have on a cluster: the spec is the user's, the status ours."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from segserve_builder.agent.protocol import AssignedModel
from segserve_common.files import write_private
from segserve_operator.adapters.local.files import StateFolder, read_yaml, write_yaml
from segserve_operator.adapters.local.rollouts import KIND as ROLLOUT
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.api.checks import meant
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import ObjectMeta
from segserve_operator.api.resources import Resource
from segserve_operator.api.segmentation_model import SegmentationModelStatus
from segserve_operator.api.triton_pool import TritonPool
from segserve_operator.core.failure import Failure
from segserve_operator.core.models.events import Event
from segserve_operator.core.models.observed import ModelObserved, ModelStatus, PoolObserved, PoolStatus, Wanted
from segserve_operator.core.rollout.record import Record
from segserve_operator.mapping.specs import annotations_of, wanted_of
from segserve_operator.mapping.statuses import from_api, to_api

MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
DEFAULT_POOL: Final = "default"
LONGEST_NAME: Final = 253


class ResourceNotFoundError(Exception):
    """No resource of that kind and name."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        super().__init__(f"no {kind} {name!r}{meant(name, known)}; there are: {', '.join(known) or 'none'}")


@dataclass(slots=True)
class LocalStore:
    """One folder of resources. Users' writes and the platform's go to different files, so neither undoes the other."""

    state: StateFolder
    _parsed: dict[Path, tuple[int, Any]] = field(default_factory=dict)
    _specs: dict[str, tuple[Any, Wanted | Failure]] = field(default_factory=dict)
    _rollouts: RolloutFiles = field(init=False)

    def __post_init__(self) -> None:
        self._rollouts = RolloutFiles(self.state.objects)

    # Users' side: the command line calls these.

    def apply(self, resource: Resource, manifest: Mapping[str, Any]) -> str:
        """Create or change a resource; return `created`, `configured` or `unchanged`."""
        folder = self._folder(resource.kind, resource.metadata.name)
        with self._locked():
            current = self._manifest(folder / "spec.yaml")
            deleting = current is not None and "deletionTimestamp" in current["metadata"]
            if current is not None and not deleting and _same(current, manifest):
                return "unchanged"
            metadata = dict(manifest["metadata"]) | _annotations(current if not deleting else None, manifest)
            born = _now() if current is None else current["metadata"]["creationTimestamp"]
            changed = current is None or deleting or current["spec"] != manifest["spec"]
            generation = current["metadata"]["generation"] if current is not None else 0
            metadata |= {"creationTimestamp": born, "generation": generation + changed}
            write_yaml(folder / "spec.yaml", {**manifest, "metadata": metadata})
        return "created" if current is None else "configured"

    def pool(self) -> TritonPool:
        """Return the one pool of this machine: the TritonPool resource, or the default one where there is none."""
        name = self._pool_name()
        if not self.names(POOL):
            return TritonPool(metadata=ObjectMeta(name=name))
        pool = parse(self.get(POOL, name), name)
        assert isinstance(pool, TritonPool)
        return pool

    def set_gateway_port(self, port: int) -> None:
        """Change the pool's port; it takes effect when the platform starts."""
        manifest = self.pool().to_dict()
        manifest["spec"]["gateway"]["port"] = port
        manifest.pop("status", None)
        self.apply(parse(manifest, "--port"), manifest)

    def delete(self, kind: str, name: str) -> None:
        """Mark a resource for deletion: it goes once nothing serves it any more, a rollout's record at once."""
        path = self._folder(kind, name) / "spec.yaml"
        with self._locked():
            current = self._manifest(path)
            if current is None:
                raise ResourceNotFoundError(kind, name, self.names(kind))
            if kind == ROLLOUT:
                self._rollouts.drop(name)
                return
            current = {**current, "metadata": {**current["metadata"], "deletionTimestamp": _now()}}
            write_yaml(path, current)

    def annotate(self, kind: str, name: str, changes: Mapping[str, str | None]) -> None:
        """Set annotations of a resource, or (None) take them away; its generation stays."""
        path = self._folder(kind, name) / "spec.yaml"
        with self._locked():
            current = self._manifest(path)
            if current is None:
                raise ResourceNotFoundError(kind, name, self.names(kind))
            metadata = current["metadata"]
            annotations = {**metadata.get("annotations", {}), **changes}
            kept = {key: value for key, value in annotations.items() if value is not None}
            write_yaml(path, {**current, "metadata": {**metadata, "annotations": kept}})

    def names(self, kind: str) -> list[str]:
        """Return the names of all resources of a kind."""
        return sorted(path.parent.name for path in self.state.objects.glob(f"{kind}/*/spec.yaml"))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource with its status, as it is on a cluster."""
        folder = self._folder(kind, name)
        manifest = self._manifest(folder / "spec.yaml")
        if manifest is None:
            raise ResourceNotFoundError(kind, name, self.names(kind))
        status = self._manifest(folder / "status.yaml")
        return {**manifest, "status": status} if status is not None else dict(manifest)

    # The platform's side.

    async def observed_pool(self) -> PoolObserved:
        """Return the pool of this machine; it is always there, and keeps no status."""
        return PoolObserved(self._pool_name())

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Keep nothing: the pool's state is the processes'."""

    async def emit(self, model: str | None, event: Event) -> None:
        """Tell nobody: the supervisor's log has every action."""

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model with its spec and status; one that cannot be read says why."""
        found, pool = [], self._pool_name()
        for name in self.names(MODEL):
            with contextlib.suppress(ResourceNotFoundError):
                found.append(self._observe(self.get(MODEL, name), pool))
        return tuple(found)

    def _observe(self, manifest: Mapping[str, Any], pool: str) -> ModelObserved:
        metadata = manifest["metadata"]
        spec = _outside(pool, manifest) or self._spec(manifest)
        return ModelObserved(
            name=metadata["name"],
            generation=metadata["generation"],
            wanted=spec if isinstance(spec, Wanted) else None,
            problem=spec if isinstance(spec, Failure) else None,
            status=from_api(SegmentationModelStatus.model_validate(manifest.get("status") or {})),
            deleting="deletionTimestamp" in metadata,
            annotations=annotations_of(manifest),
        )

    def _pool_name(self) -> str:
        return next(iter(self.names(POOL)), DEFAULT_POOL)

    def _spec(self, manifest: Mapping[str, Any]) -> Wanted | Failure:
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        if name not in self._specs or self._specs[name][0] is not spec:
            self._specs[name] = (spec, wanted_of(manifest))
        return self._specs[name][1]

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""
        records = {}
        for path in sorted(self.state.revisions.glob("*.json")):
            with contextlib.suppress(FileNotFoundError):
                records[path.stem] = self._cached(path, _read_revision)
        return records

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Record what a revision is made of."""
        text = json.dumps(assigned.model_dump(mode="json", by_alias=True, exclude_none=True), indent=1)
        write_private(self.state.revisions / f"{revision}.json", text)

    async def drop_revision(self, revision: str) -> None:
        """Remove a record; one that is gone already is fine."""
        (self.state.revisions / f"{revision}.json").unlink(missing_ok=True)

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return by name the records that may still change; one that cannot be read counts as absent."""
        standings = [model.status.rollout for model in await self.models()]
        names = [standing.rollout for standing in standings if standing is not None and standing.matters(now_s)]
        return {name: record for name in names if (record := self._rollouts.read(name)) is not None}

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record; of a model's former ones the latest are kept. A model that is gone is fine."""
        if self._folder(MODEL, record.model).exists():
            self._rollouts.write(record)

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status, keeping the times of conditions that did not change."""
        folder = self._folder(MODEL, model)
        if not folder.exists():
            return
        former = SegmentationModelStatus.model_validate(self._manifest(folder / "status.yaml") or {})
        write_yaml(folder / "status.yaml", to_api(status, former, datetime.now(UTC)).to_dict())

    async def forget(self, model: str) -> None:
        """Remove a deleted model for good, unless it was applied again meanwhile."""
        folder = self._folder(MODEL, model)
        with self._locked():
            manifest = self._manifest(folder / "spec.yaml")
            if manifest is not None and "deletionTimestamp" in manifest["metadata"]:
                shutil.rmtree(folder)
                self._rollouts.drop_of(model)

    def _folder(self, kind: str, name: str) -> Path:
        if name in ("", ".", "..") or "/" in name or len(name) > LONGEST_NAME:
            # No resource can be called so, and a path that leaves the folder must not be read, let alone written.
            raise ResourceNotFoundError(kind, name, self.names(kind))
        return self.state.objects / kind / name

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = self._cached(path, read_yaml)
        except FileNotFoundError:
            return None
        return manifest

    def _cached(self, path: Path, parse: Callable[[Path], Any]) -> Any:
        stamp = path.stat().st_mtime_ns
        if path not in self._parsed or self._parsed[path][0] != stamp:
            self._parsed[path] = (stamp, parse(path))
        return self._parsed[path][1]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.state.objects.mkdir(parents=True, exist_ok=True)
        with (self.state.objects / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read_revision(path: Path) -> AssignedModel:
    return AssignedModel.model_validate_json(path.read_text())


def _outside(pool: str, manifest: Mapping[str, Any]) -> Failure | None:
    wanted = manifest["spec"].get("pool", DEFAULT_POOL)
    if wanted == pool:
        return None
    return Failure("PoolNotFound", f"spec.pool is {wanted!r}; the pool of this machine is {pool!r}")


def _annotations(current: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations that a resource has once it is applied: what was asked for by them stays asked for."""
    given = manifest["metadata"].get("annotations") or {}
    asked = annotations_of(current) if current is not None else {}
    return {"annotations": {**asked, **given}} if asked or given else {}


def _same(current: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    given = manifest["metadata"] | _annotations(current, manifest)
    kept = {key: current["metadata"].get(key) for key in given}
    return bool(current["spec"] == manifest["spec"] and kept == given)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
