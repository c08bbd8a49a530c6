"""Resources as files, with the manifests that they have on a cluster; users write specs, the platform statuses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from segserve_builder.agent.protocol import AssignedModel
from segserve_common.files import write_private
from segserve_operator.adapters.local.events import add_event, edit_event, read_events
from segserve_operator.adapters.local.files import StateFolder, read_yaml, write_yaml
from segserve_operator.adapters.local.rollouts import KIND as ROLLOUT
from segserve_operator.adapters.local.rollouts import RolloutFiles
from segserve_operator.api.checks import did_you_mean
from segserve_operator.api.errors import SpecError
from segserve_operator.api.loading import parse
from segserve_operator.api.meta import ObjectMeta
from segserve_operator.api.resources import Resource
from segserve_operator.api.triton_pool import TritonPool
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.events import Event
from segserve_operator.core.models.observed import ModelObserved, ModelStatus, PoolObserved, PoolStatus, Roles, Wanted
from segserve_operator.core.rollout.record import Record
from segserve_operator.mapping.reading import read_pool, read_status
from segserve_operator.mapping.specs import access_of, annotations_of, credentials_of, limits_of, wanted_of
from segserve_operator.mapping.statuses import from_api, to_api

MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
DEFAULT_POOL: Final = "default"
MAX_NAME_LENGTH: Final = 253

log = logging.getLogger("segserve")


class ResourceNotFoundError(Exception):
    """There is no resource of this kind and name; `names` are those that exist."""

    def __init__(self, kind: str, name: str, names: list[str]) -> None:
        super().__init__(f"no {kind} {name!r}{did_you_mean(name, names)}; there are: {', '.join(names) or 'none'}")


@dataclass(slots=True)
class LocalStore:
    """The resources of one state folder.

    Users and the platform write different files, so neither overwrites changes of the other.
    """

    state: StateFolder
    _parsed: dict[Path, tuple[int, Any]] = field(default_factory=dict)
    _specs: dict[str, tuple[Any, Wanted | FailureReason]] = field(default_factory=dict)
    _rollouts: RolloutFiles = field(init=False)

    def __post_init__(self) -> None:
        self._rollouts = RolloutFiles(self.state.objects)

    # For users: called by the command line.

    def apply(self, resource: Resource, manifest: Mapping[str, Any]) -> str:
        """Create or change a resource, and return `created`, `configured` or `unchanged`."""
        with self._locked():
            current, applied = self.preview(resource, manifest)
            if applied is current:
                return "unchanged"
            folder = self._folder(resource.kind, resource.metadata.name)
            write_yaml(folder / "spec.yaml", applied)
            if current is not None:
                add_event(folder, edit_event(current, applied), time.time())
        return "created" if current is None else "configured"

    def preview(self, resource: Resource, manifest: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return a resource as it is (None if it does not exist) and as `apply` would leave it: the same if equal."""
        current = self._manifest(self._folder(resource.kind, resource.metadata.name) / "spec.yaml")
        deleting = current is not None and "deletionTimestamp" in current["metadata"]
        if current is not None and not deleting and _same(current, manifest):
            return current, current
        metadata = dict(manifest["metadata"]) | _annotations(current if not deleting else None, manifest)
        created = _now() if current is None else current["metadata"]["creationTimestamp"]
        generation = current["metadata"]["generation"] if current is not None else 0
        if current is None or deleting or current["spec"] != manifest["spec"]:
            generation += 1
        metadata |= {"creationTimestamp": created, "generation": generation}
        return current, {**manifest, "metadata": metadata}

    def pool(self) -> TritonPool:
        """Return the pool of this machine: the TritonPool resource, or the default pool if there is none."""
        name = self._pool_name()
        if not self.names(POOL):
            return TritonPool(metadata=ObjectMeta(name=name))
        return read_pool(self.get(POOL, name), name)[0]

    def set_gateway_port(self, port: int) -> None:
        """Change the gateway port of the pool, from the next start of the platform."""
        self._change_gateway("--port", port=port)

    def set_gateway_tls(self, secret_name: str | None) -> None:
        """Change the certificate of the pool's gateway, or do without TLS, from the next start of the platform."""
        self._change_gateway("--tls", tls=None if secret_name is None else {"secretName": secret_name})

    def set_gateway_access_log(self, sampling_ratio: float | None) -> None:
        """Log failed requests and this share of the others, or none at all for None."""
        log = None if sampling_ratio is None else {"samplingRatio": sampling_ratio}
        self._change_gateway("--access-log", accessLog=log)

    def set_gateway_keys(self, secret: str, key: str) -> None:
        """Let the gateway take the API keys of a Secret of this machine, beside what the pool says already."""
        auth = self.pool().to_dict()["spec"]["gateway"].get("auth", {})
        keys, entry = auth.setdefault("apiKeys", []), {"secretRef": {"name": secret, "key": key}}
        if entry not in keys:
            keys.append(entry)
            self._change_gateway("--auth", auth=auth)

    def _change_gateway(self, option: str, **fields: Any) -> None:
        """Apply the pool with other fields of its gateway, without those that are None, as an option says."""
        manifest = self.pool().to_dict()
        gateway = manifest["spec"]["gateway"] | fields
        manifest["spec"]["gateway"] = {name: value for name, value in gateway.items() if value is not None}
        manifest.pop("status", None)
        self.apply(parse(manifest, option), manifest)

    def delete(self, kind: str, name: str) -> None:
        """Mark a resource for deletion: it is removed once it is no longer served, a rollout's record at once."""
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
        """Set annotations of a resource, or remove those whose value is None; its generation stays."""
        path = self._folder(kind, name) / "spec.yaml"
        with self._locked():
            current = self._manifest(path)
            if current is None:
                raise ResourceNotFoundError(kind, name, self.names(kind))
            metadata = current["metadata"]
            annotations = {**metadata.get("annotations", {}), **changes}
            remaining = {key: value for key, value in annotations.items() if value is not None}
            write_yaml(path, {**current, "metadata": {**metadata, "annotations": remaining}})

    def names(self, kind: str) -> list[str]:
        """Return the names of all resources of a kind."""
        return sorted(path.parent.name for path in self.state.objects.glob(f"{kind}/*/spec.yaml"))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource with its status, as the API of a cluster does."""
        folder = self._folder(kind, name)
        manifest = self._manifest(folder / "spec.yaml")
        if manifest is None:
            raise ResourceNotFoundError(kind, name, self.names(kind))
        try:
            status = self._manifest(folder / "status.yaml")
        except ValueError as error:
            log.error("%s: %s", folder, error)
            status = {"roles": str(error)}  # which is read as roles that nobody knows
        return {**manifest, "status": status} if status is not None else dict(manifest)

    # For the platform.

    async def observed_pool(self) -> PoolObserved:
        """Return the pool of this machine; it always exists, and has no status."""
        try:
            gateway = self.pool().spec.gateway
        except SpecError:
            return PoolObserved(self._pool_name())
        return PoolObserved(
            self._pool_name(),
            credentials=credentials_of(gateway),
            session_affinity=gateway.session_affinity is not None,
            plain_http=gateway.plain_http is not False,
        )

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Do nothing: the state of the pool is that of its processes."""

    async def emit(self, model: str | None, event: Event) -> None:
        """Keep an event; one about a model that is gone is dropped."""
        folder = self._folder(MODEL, model) if model is not None else self._folder(POOL, self._pool_name())
        if model is None or folder.exists():
            add_event(folder, event, time.time())

    def events(self, model: str) -> Iterator[tuple[str, float, Event]]:
        """Yield the events of a model and of its pool: what they are about, Unix times in seconds, and the events."""
        for kind, name, about in ((MODEL, model, "model"), (POOL, self._pool_name(), "pool")):
            for at_s, event in read_events(self._folder(kind, name)):
                yield f"{about} {name}", at_s, event

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return all models with their spec and status; an invalid one has a problem instead of a spec."""
        models, pool = [], self._pool_name()
        for name in self.names(MODEL):
            with contextlib.suppress(ResourceNotFoundError):
                models.append(self._observe(self.get(MODEL, name), pool))
        return tuple(models)

    def _observe(self, manifest: Mapping[str, Any], pool: str) -> ModelObserved:
        metadata = manifest["metadata"]
        status, unreadable = read_status(manifest.get("status") or {})
        spec = unreadable or _pool_mismatch(pool, manifest) or self._spec(manifest)
        return ModelObserved(
            name=metadata["name"],
            generation=metadata["generation"],
            wanted=spec if isinstance(spec, Wanted) else None,
            problem=spec if isinstance(spec, FailureReason) else None,
            status=from_api(status),
            deleting="deletionTimestamp" in metadata,
            annotations=annotations_of(manifest),
            access=access_of(manifest),
            limits=limits_of(manifest),
        )

    def _pool_name(self) -> str:
        return next(iter(self.names(POOL)), DEFAULT_POOL)

    def _spec(self, manifest: Mapping[str, Any]) -> Wanted | FailureReason:
        name, spec = manifest["metadata"]["name"], manifest["spec"]
        if name not in self._specs or self._specs[name][0] is not spec:
            self._specs[name] = (spec, wanted_of(manifest))
        return self._specs[name][1]

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
        """Write a model's status; conditions that did not change keep their times. Without the model, do nothing."""
        folder = self._folder(MODEL, model)
        if not folder.exists():
            return
        present = self.get(MODEL, model).get("status") or {}
        former, unreadable = read_status(present)
        desired = to_api(status, former, datetime.now(UTC)).to_dict()
        if unreadable is not None and status.roles == Roles() and "roles" in present:
            desired["roles"] = present["roles"]  # nobody knows them: they are not none
        write_yaml(folder / "status.yaml", desired)

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

    def _folder(self, kind: str, name: str) -> Path:
        if name in ("", ".", "..") or "/" in name or len(name) > MAX_NAME_LENGTH:
            # No resource can have this name, and no path outside the folder may be read or written.
            raise ResourceNotFoundError(kind, name, self.names(kind))
        return self.state.objects / kind / name

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = self._cached(path, read_yaml)
        except FileNotFoundError:
            return None
        return manifest

    def _cached(self, path: Path, parse: Callable[[Path], Any]) -> Any:
        mtime_ns = path.stat().st_mtime_ns
        if path not in self._parsed or self._parsed[path][0] != mtime_ns:
            self._parsed[path] = (mtime_ns, parse(path))
        return self._parsed[path][1]

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.state.create()
        self.state.objects.mkdir(exist_ok=True)
        with (self.state.objects / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read_revision(path: Path) -> AssignedModel | None:
    """Return a revision's record, None if it cannot be read: then what its servers were told to load stands for it."""
    try:
        return AssignedModel.read(json.loads(path.read_text()))
    except ValueError as error:
        log.error("%s cannot be read: %s", path, error)
        return None


def _pool_mismatch(pool: str, manifest: Mapping[str, Any]) -> FailureReason | None:
    name = manifest["spec"].get("pool", DEFAULT_POOL)
    if name == pool:
        return None
    return FailureReason("PoolNotFound", f"spec.pool is {name!r}; the pool of this machine is {pool!r}")


def _annotations(current: Mapping[str, Any] | None, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the annotations of a resource after `apply`: requests that were made by annotation stay."""
    annotations = manifest["metadata"].get("annotations") or {}
    requests = annotations_of(current) if current is not None else {}
    return {"annotations": {**requests, **annotations}} if requests or annotations else {}


def _same(current: Mapping[str, Any], manifest: Mapping[str, Any]) -> bool:
    metadata = manifest["metadata"] | _annotations(current, manifest)
    current_metadata = {key: current["metadata"].get(key) for key in metadata}
    return bool(current["spec"] == manifest["spec"] and current_metadata == metadata)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
