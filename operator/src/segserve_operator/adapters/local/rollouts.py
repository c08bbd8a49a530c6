"""Rollouts' records as files: `objects/SegmentationRollout/<name>/`, the oldest rows of each in files beside it."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from segserve_common.files import write_private
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
class _Kept:
    """A record as it was last read or written, and when its file was; None where it cannot be read."""

    stamp: int
    record: Record | None
    chunks: tuple[tuple[Row, ...], ...] = ()


@dataclass(slots=True)
class RolloutFiles:
    """The records of one platform, in the folder of its resources."""

    objects: Path
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def read(self, name: str) -> Record | None:
        """Return a record; None where there is none, or what is there cannot be read."""
        folder = self._folder(name)
        try:
            stamp = (folder / "status.yaml").stat().st_mtime_ns
            if name not in self._kept or self._kept[name].stamp != stamp:
                self._kept[name] = self._read(folder, stamp)
        except FileNotFoundError:
            self._kept.pop(name, None)
            return None
        return self._kept[name].record

    def write(self, record: Record) -> None:
        """Write a record: first the rows that are kept apart, last what refers to them."""
        folder = self._folder(record.name)
        known = self._kept.get(record.name)
        apart = chunks(record.rows)
        for number, rows in enumerate(apart):
            if known is None or known.chunks[number : number + 1] != (rows,):
                write_private(chunk_file(folder, number), pack_rows(rows))
        now = datetime.now(UTC)
        self._write_spec(folder, record, now)
        write_yaml(folder / "status.yaml", status_of(record, now))
        self._kept[record.name] = _Kept((folder / "status.yaml").stat().st_mtime_ns, record, apart)

    def drop(self, name: str) -> None:
        """Remove a record; one that is gone already is fine."""
        shutil.rmtree(self._folder(name), ignore_errors=True)
        self._kept.pop(name, None)

    def drop_of(self, model: str) -> None:
        """Remove all records of a model."""
        for name in self._names_of(model):
            self.drop(name)

    def _read(self, folder: Path, stamp: int) -> _Kept:
        try:
            manifest = {**_mapping(folder / "spec.yaml"), "status": _mapping(folder / "status.yaml")}
            record = record_of(manifest, _rows(folder, manifest["status"].get("chunkedRows", 0)))
        except UnreadableRecordError as error:
            log.warning("%s; the rollout goes on from its model's status", error)
            return _Kept(stamp, None)
        return _Kept(stamp, record, chunks(record.rows))

    def _write_spec(self, folder: Path, record: Record, now: datetime) -> None:
        manifest, path = manifest_of(record), folder / "spec.yaml"
        new = not path.exists()
        if not new and _spec(path) == manifest["spec"]:
            return
        born = now.strftime("%Y-%m-%dT%H:%M:%SZ")
        metadata = {**manifest["metadata"], "creationTimestamp": born, "generation": 1}
        write_yaml(path, {**manifest, "metadata": metadata})
        if new:
            self._forget_oldest(record)

    def _forget_oldest(self, latest: Record) -> None:
        others = [name for name in self._names_of(latest.model) if name != latest.name]
        for name in others[: max(len(others) - HISTORY, 0)]:
            self.drop(name)

    def _names_of(self, model: str) -> list[str]:
        """Return the names of a model's records, oldest first."""
        paths = [p for p in self.objects.glob(f"{KIND}/*/spec.yaml") if (_spec(p) or {}).get("model") == model]
        return [path.parent.name for path in sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path))]

    def _folder(self, name: str) -> Path:
        return self.objects / KIND / name


def _mapping(path: Path) -> dict[str, Any]:
    try:
        found = read_yaml(path)
    except ValueError as error:
        raise UnreadableRecordError(path.parent.name, str(error)) from error
    if not isinstance(found, dict):
        raise UnreadableRecordError(path.parent.name, f"{path.name} holds no mapping")
    return found


def _spec(path: Path) -> dict[str, Any] | None:
    """Return a record's spec; None where the file is gone or was broken."""
    try:
        spec = _mapping(path).get("spec")
    except (UnreadableRecordError, FileNotFoundError):
        return None
    return spec if isinstance(spec, dict) else None


def _rows(folder: Path, count: int) -> tuple[Row, ...]:
    """Return the rows that are kept apart; none where any of them is lost."""
    found: list[Row] = []
    for number in range(-(-count // CHUNK_ROWS)):
        try:
            found += unpack_rows(chunk_file(folder, number).read_text())
        except (FileNotFoundError, ValueError) as error:
            log.warning("SegmentationRollout %r has lost its oldest evidence: %s", folder.name, error)
            return ()
    return tuple(found[:count])


def chunk_file(folder: Path, number: int) -> Path:
    """Return the file of a chunk of the rows that are kept apart, packed; `folder` is the record's."""
    return folder / f"rows-{number}"
