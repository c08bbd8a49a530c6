"""Resources as files, as the command line reads and writes them: what it imports is light, for short commands."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from segserve_common.files import DamagedFileError, UnreadableFileError, read_tail
from segserve_common.kube.names import DOMAIN
from segserve_operator.adapters.local.files import StateFolder, bound_log, read_digested_yaml, read_yaml, write_yaml
from segserve_operator.core.world.event import Event
from segserve_operator.mapping.manifests import annotations_of, named_models

if TYPE_CHECKING:
    from segserve_operator.api.resources import Resource
    from segserve_operator.api.triton_pool import TritonPool

MOST_BYTES: Final = 256 * 1024
_KEPT_BYTES: Final = 128 * 1024
_TAIL_BYTES: Final = 16 * 1024
"""The last event is within them; a longer one is written again if it is repeated."""
_DEPTH: Final = 3
"""Fields of a specification are named by so many parts, such as spec.rollout.steps."""

_TIME: Final = "%Y-%m-%dT%H:%M:%SZ"
MODEL: Final = "SegmentationModel"
POOL: Final = "TritonPool"
ROLLOUT: Final = "SegmentationRollout"
DEFAULT_POOL: Final = "default"
MAX_NAME_LENGTH: Final = 253
log = logging.getLogger("segserve")


def add_event(folder: Path, event: Event, now_s: float) -> None:
    """Append an event, unless it repeats the last one; a file that cannot be written is left alone."""
    path = _file(folder)
    if path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK)):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", errors="replace") as file:
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        if [known for _, known in _parsed(file.readlines()[-1:])] == [event]:
            return
        file.write(json.dumps({"at": round(now_s, 3), **asdict(event)}) + "\n")
    bound_log(path, limit_bytes=MOST_BYTES, kept_bytes=_KEPT_BYTES)


def read_events(folder: Path) -> list[tuple[float, Event]]:
    """Return the events with their Unix times in seconds, oldest first; unreadable ones are left out."""
    try:
        lines = read_tail(_file(folder), MOST_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return []
    return list(_parsed(lines))


def _parsed(lines: Iterable[str]) -> Iterator[tuple[float, Event]]:
    for line in lines:
        try:
            read = json.loads(line)
            datetime.fromtimestamp(at_s := float(read["at"]), UTC)  # raises if it is not a time
            yield at_s, Event(read["kind"], str(read["reason"]), str(read["message"]))
        except (ValueError, TypeError, LookupError, ArithmeticError, OSError, RecursionError):
            continue


def _changed(path: str, before: object, after: object) -> list[str]:
    if before == after:
        return []
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)) or path.count(".") + 1 >= _DEPTH:
        return [path]
    keys = dict.fromkeys((*before, *after))
    return [field for key in keys for field in _changed(f"{path}.{key}", before.get(key), after.get(key))]


def _file(folder: Path) -> Path:
    return folder / "events.jsonl"


class ResourceNotFoundError(Exception):
    """There is no resource of this kind and name; `names` are the existing ones."""

    def __init__(self, kind: str, name: str, names: list[str]) -> None:
        from segserve_operator.api.checks import did_you_mean

        super().__init__(f"no {kind} {name!r}{did_you_mean(name, names)}; there are: {', '.join(names) or 'none'}")


@dataclass(slots=True)
class ResourceFiles:
    """The resources of one state folder.

    Users and the platform write different files, so neither overwrites changes of the other.
    """

    state: StateFolder
    _parsed: dict[Path, tuple[int, Any]] = field(default_factory=dict)

    def apply(self, resource: Resource, manifest: Mapping[str, Any]) -> str:
        """Create or change a resource, and return `created`, `configured` or `unchanged`."""
        with self._locked():
            current, applied = self.preview(resource, manifest)
            if applied is current:
                return "unchanged"
            folder = self._folder(resource.kind, resource.metadata.name)
            write_yaml(folder / "spec.yaml", applied)
            if current is not None:
                fields = _changed("spec", current.get("spec"), applied.get("spec"))
                message = (
                    f"generation {applied['metadata']['generation']}: {', '.join(fields) or 'labels or annotations'}"
                )
                add_event(folder, Event("Normal", "Edited", message), time.time())
        return "created" if current is None else "configured"

    def preview(self, resource: Resource, manifest: Mapping[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
        """Return a resource as it is (None if it does not exist) and as `apply` would leave it: the same if equal."""
        current = self._stored(resource.kind, resource.metadata.name)
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
        """Return the pool of this machine: the TritonPool resource, or the default pool without one."""
        from segserve_operator.api.meta import ObjectMeta, Problem, SpecError
        from segserve_operator.api.triton_pool import TritonPool
        from segserve_operator.mapping.reading import read_pool

        name = self._pool_name()
        if not self.names(POOL):
            return TritonPool(metadata=ObjectMeta(name=name))
        try:
            return read_pool(self.get(POOL, name), name)
        except DamagedFileError as error:
            advice = "apply the pool again, or remove the file for the default one"
            raise SpecError([Problem(name, "", f"{error}; {advice}")]) from error

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
        from segserve_operator.api.loading import parse

        manifest = self.pool().to_dict()
        gateway = manifest["spec"]["gateway"] | fields
        manifest["spec"]["gateway"] = {name: value for name, value in gateway.items() if value is not None}
        manifest.pop("status", None)
        self.apply(parse(manifest, option), manifest)

    def delete(self, kind: str, name: str) -> None:
        """Mark a resource for deletion: it is removed once it is no longer served, a rollout's record at once."""
        path = self._folder(kind, name) / "spec.yaml"
        with self._locked():
            current = self._stored(kind, name)
            if current is None:
                raise ResourceNotFoundError(kind, name, self.names(kind))
            if kind == ROLLOUT:
                shutil.rmtree(path.parent)
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
        # `Path.glob` takes several times as long, and a supervisor looks all the time.
        found = glob.iglob("*/spec.yaml", root_dir=self.state.objects / kind)  # noqa: PTH207
        return sorted(path.partition("/")[0] for path in found)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return a resource with its status, as the API of a cluster does.

        Raises `DamagedFileError` for a pool, or for a rollout's record.
        """
        manifest = self._stored(kind, name)
        if manifest is None:
            raise ResourceNotFoundError(kind, name, self.names(kind))
        path = self._folder(kind, name) / "status.yaml"
        if kind == MODEL:
            status = self._status(path)
        else:
            status, as_written = self._cached(path, read_digested_yaml) if path.exists() else (None, True)
            if kind == ROLLOUT and not as_written:
                _check_rollout(path, {**manifest, "status": status})
        return {**manifest, "status": status} if status is not None else dict(manifest)

    def damage(self, kind: str, name: str) -> DamagedFileError | None:
        """Return what is wrong with the file of a resource's specification."""
        try:
            self._manifest(self._folder(kind, name) / "spec.yaml")
        except DamagedFileError as error:
            return error
        return None

    def _stored(self, kind: str, name: str) -> dict[str, Any] | None:
        """Return a resource without its status, None if it does not exist; of a damaged one all but its name is lost.

        Raises `DamagedFileError` for a pool: nothing goes on without one.
        """
        folder = self._folder(kind, name)
        try:
            return self._manifest(folder / "spec.yaml")
        except DamagedFileError:
            if kind != MODEL:
                raise
        seen = (self._status(folder / "status.yaml") or {}).get("observedGeneration")
        changed = datetime.fromtimestamp((folder / "spec.yaml").stat().st_mtime, UTC)
        metadata = {"name": name, "creationTimestamp": changed.strftime(_TIME), "generation": seen or 1}
        return {"apiVersion": f"{DOMAIN}/v1alpha1", "kind": kind, "metadata": metadata, "spec": {}}

    def _status(self, path: Path) -> dict[str, Any] | None:
        """Return a model's status; an unreadable status has a text in place of its roles, which says so."""
        try:
            status: dict[str, Any] = self._cached(path, read_model_status)
        except FileNotFoundError:
            return None
        except DamagedFileError as error:
            return {"roles": f"{error}; what serves goes on, and without the file the specification is rolled out"}
        return status

    def named(self, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the stored models that a model names as its second network, by name."""
        names = set(named_models(manifest).values())
        return {name: self.get(MODEL, name) for name in names and names.intersection(self.names(MODEL))}

    def events(self, model: str) -> Iterator[tuple[str, float, Event]]:
        """Yield the events of a model and of its pool: what they are about, Unix times in seconds, and the events."""
        for kind, name, about in ((MODEL, model, "model"), (POOL, self._pool_name(), "pool")):
            for at_s, event in read_events(self._folder(kind, name)):
                yield f"{about} {name}", at_s, event

    def _pool_name(self) -> str:
        return next(iter(self.names(POOL)), DEFAULT_POOL)

    def _folder(self, kind: str, name: str) -> Path:
        if name in ("", ".", "..") or "/" in name or len(name) > MAX_NAME_LENGTH:
            # No resource can have this name, and no path outside the folder may be read or written.
            raise ResourceNotFoundError(kind, name, self.names(kind))
        return self.state.objects / kind / name

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        try:
            manifest: dict[str, Any] = self._cached(path, _read_manifest)
        except FileNotFoundError:
            return None
        return manifest

    def _cached(self, path: Path, parse: Callable[[Path], Any]) -> Any:
        mtime_ns = path.stat().st_mtime_ns
        if path not in self._parsed or self._parsed[path][0] != mtime_ns:
            try:
                self._parsed[path] = (mtime_ns, parse(path))
            except UnreadableFileError:
                raise
            except DamagedFileError as error:
                log.error("%s", error)
                self._parsed[path] = (mtime_ns, error)
        found = self._parsed[path][1]
        if isinstance(found, DamagedFileError):
            raise found
        return found

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.state.create()
        self.state.objects.mkdir(exist_ok=True)
        with (self.state.objects / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _read_manifest(path: Path) -> dict[str, Any]:
    """Return a resource; raises `DamagedFileError` for one whose head this platform did not write."""
    manifest = read_yaml(path)
    try:
        metadata = manifest["metadata"]
        heads = [metadata["name"], metadata["creationTimestamp"], *(metadata.get("annotations") or {}).values()]
        for time_key in ("creationTimestamp", "deletionTimestamp"):
            if (time_text := metadata.get(time_key)) is not None:
                datetime.fromisoformat(time_text)
        if not all(isinstance(each, str) for each in heads) or metadata["name"] != path.parent.name:
            raise ValueError(f"it is of {metadata['name']!r}")
        if type(metadata["generation"]) is not int or not isinstance(manifest["spec"], dict):
            raise TypeError("it has no generation, or no spec")
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedFileError(path, f"it is no resource: {error}") from error
    return dict(manifest)


def read_model_status(path: Path) -> dict[str, Any]:
    """Return a model's status, as far as it can be read; this platform's own is not checked, which takes a second."""
    status, as_written = read_digested_yaml(path)
    if as_written and isinstance(status, dict):
        return status
    from segserve_operator.mapping.reading import read_status

    known, unreadable = read_status(status)
    plain = known.to_dict()
    if unreadable is None and plain.get("roles"):
        return plain
    return {**plain, "roles": f"{path}: {unreadable.message if unreadable else 'it names no revision'}"}


def _check_rollout(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise `DamagedFileError` for a record that this platform did not write."""
    from segserve_operator.mapping.reading import read_rollout

    try:
        read_rollout(manifest)
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise DamagedFileError(path, error) from error


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
    return datetime.now(UTC).strftime(_TIME)
