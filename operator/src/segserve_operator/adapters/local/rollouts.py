"""Records of rollouts as files in `objects/SegmentationRollout/<name>/`; their oldest rows are in separate files."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from segserve_common.files import DamagedFileError, read_file, write_private
from segserve_operator.adapters.local.files import read_yaml, write_yaml
from segserve_operator.api.segmentation_rollout import SegmentationRollout
from segserve_operator.core.rollout.record import Record, Row
from segserve_operator.mapping.packed_evidence import (
    CHUNK_ROWS,
    UnreadableRecordError,
    chunks,
    pack_rows,
    unpack_rows,
)
from segserve_operator.mapping.rollouts import HISTORY, manifest_of, record_of, status_of

KIND: Final = SegmentationRollout.__name__

log = logging.getLogger("segserve")


@dataclass(frozen=True, slots=True)
class _CachedRecord:
    """A record as last read or written (None if unreadable), and the modification time of its file in ns."""

    mtime_ns: int
    record: Record | None
    chunks: tuple[tuple[Row, ...], ...] = ()


@dataclass(slots=True)
class RolloutFiles:
    """The records of one platform, in the folder of its resources."""

    objects: Path
    _cache: dict[str, _CachedRecord] = field(default_factory=dict)

    def read(self, name: str) -> Record | None:
        """Return a record, or None if it is missing or unreadable."""
        folder = self._folder(name)
        try:
            mtime_ns = (folder / "status.yaml").stat().st_mtime_ns
            if name not in self._cache or self._cache[name].mtime_ns != mtime_ns:
                self._cache[name] = self._read(folder, mtime_ns)
        except FileNotFoundError:
            self._cache.pop(name, None)
            return None
        return self._cache[name].record

    def write(self, record: Record) -> None:
        """Write a record: first the rows in separate files, last the status that refers to them."""
        folder = self._folder(record.name)
        cached = self._cache.get(record.name)
        row_chunks = chunks(record.rows)
        for number, rows in enumerate(row_chunks):
            if cached is None or cached.chunks[number : number + 1] != (rows,):
                write_private(chunk_file(folder, number), pack_rows(rows))
        now = datetime.now(UTC)
        self._write_spec(folder, record, now)
        write_yaml(folder / "status.yaml", status_of(record, now))
        self._cache[record.name] = _CachedRecord((folder / "status.yaml").stat().st_mtime_ns, record, row_chunks)

    def drop(self, name: str) -> None:
        """Remove a record, if it exists."""
        shutil.rmtree(self._folder(name), ignore_errors=True)
        self._cache.pop(name, None)

    def drop_of(self, model: str) -> None:
        """Remove all records of a model."""
        for name in self._names_of(model):
            self.drop(name)

    def _read(self, folder: Path, mtime_ns: int) -> _CachedRecord:
        try:
            manifest = {**_mapping(folder / "spec.yaml"), "status": _mapping(folder / "status.yaml")}
            record = record_of(manifest, _rows(folder, manifest["status"].get("chunkedRows", 0)))
            if record.name != folder.name:
                raise UnreadableRecordError(folder.name, f"it has the name {record.name!r}")
        except (OSError, DamagedFileError, UnreadableRecordError) as error:
            log.warning("%s; the rollout continues from its model's status", error)
            return _CachedRecord(mtime_ns, None)
        return _CachedRecord(mtime_ns, record, chunks(record.rows))

    def _write_spec(self, folder: Path, record: Record, now: datetime) -> None:
        manifest, path = manifest_of(record), folder / "spec.yaml"
        is_new = not path.exists()
        if not is_new and _spec(path) == manifest["spec"]:
            return
        created = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {**manifest["metadata"], "creationTimestamp": created, "generation": 1}
        write_yaml(path, {**manifest, "metadata": metadata})
        if is_new:
            others = [name for name in self._names_of(record.model) if name != record.name]
            for name in others[: max(len(others) - HISTORY, 0)]:
                self.drop(name)

    def _names_of(self, model: str) -> list[str]:
        """Return the names of a model's records, oldest first."""
        paths = [p for p in self.objects.glob(f"{KIND}/*/spec.yaml") if (_spec(p) or {}).get("model") == model]
        return [path.parent.name for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path))]

    def _folder(self, name: str) -> Path:
        return self.objects / KIND / name


def _mapping(path: Path) -> dict[str, Any]:
    value = read_yaml(path)
    if not isinstance(value, dict):
        raise UnreadableRecordError(path.parent.name, f"{path.name} does not contain a mapping")
    return value


def _spec(path: Path) -> dict[str, Any] | None:
    """Return a record's spec, or None if the file is missing or unreadable."""
    try:
        spec = _mapping(path).get("spec")
    except (UnreadableRecordError, OSError, DamagedFileError):
        return None
    return spec if isinstance(spec, dict) else None


def _rows(folder: Path, count: int) -> tuple[Row, ...]:
    """Return the first `count` rows from their separate files, or none if any of the files is lost."""
    rows: list[Row] = []
    if type(count) is not int:
        raise UnreadableRecordError(folder.name, f"chunkedRows is {count!r}")
    for number in range(-(-count // CHUNK_ROWS)):
        try:
            rows += read_file(chunk_file(folder, number), unpack_rows)
        except (OSError, DamagedFileError) as error:
            log.warning("SegmentationRollout %r: its oldest evidence is lost: %s", folder.name, error)
            return ()
    return tuple(rows[:count])


def chunk_file(folder: Path, number: int) -> Path:
    """Return the file of one chunk of packed rows in the record's folder."""
    return folder / f"rows-{number}"
