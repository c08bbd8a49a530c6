"""Checkpoints: the answered tiles of a run in a folder, one file per tile, and a manifest of what they depend on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from segserve.errors import CheckpointError
from segserve_common.files import replace_file

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
TILES: Final = "tiles"
SEGMENTS: Final = "segments"
PART: Final = ".part"
"""Suffix of a large file while it is written."""


@dataclass(frozen=True, slots=True)
class RunManifest:
    """Everything that the answers of a run depend on. `source` is the digest of the image's pixels, or None if not
    computed. `nodata` is the value of maps where the image has no data, None if it has them everywhere.
    """

    model: str
    revision: str | None
    kind: str
    height: int
    width: int
    channels: int
    dtype: str
    source: str | None
    tile: int
    overlap: int
    blend: str
    send: str
    score_threshold: float | None
    max_detections: int | None
    same_at_least: float
    id_map: bool
    labels: str | None
    nodata: int | None = None
    format: int = FORMAT

    def differences(self, other: RunManifest) -> list[str]:
        """Return the differences as `name was ..., now ...`."""
        return [
            f"{one.name} was {mine!r}, now {theirs!r}"
            for one in fields(self)
            if (mine := getattr(self, one.name)) != (theirs := getattr(other, one.name))
        ]

    def check_same(self, other: RunManifest, folder: Path, *, any_revision: bool) -> None:
        """Raise `CheckpointError` with the differences if `folder` holds this run and `other` is requested."""
        compared = replace(self, revision=other.revision) if any_revision else self
        differences = compared.differences(other)
        if differences:
            raise CheckpointError(
                f"{str(folder)!r} holds another run: {'; '.join(differences)}. Use another folder, or start over "
                "(start_over=True, --start-over), which deletes that run"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest for JSON."""
        return asdict(self)

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> RunManifest:
        """Read the output of `to_dict`; raises `CheckpointError` for anything else."""
        try:
            return cls(**value)
        except TypeError as error:
            raise CheckpointError(f"the run is from another version of segserve: {error}. Start over") from None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A folder of answered tiles. Every file in it is written under another name and then moved into place."""

    folder: Path

    @classmethod
    def open(cls, folder: Path, manifest: RunManifest, *, any_revision: bool = False) -> Checkpoint:
        """Return the checkpoint of this run, newly created if the folder has no checkpoint.

        Raises `CheckpointError` with the differences if the folder holds another run. `any_revision` allows another
        revision.
        """
        found = cls(folder)
        known = found.manifest()
        if known is not None:
            known.check_same(manifest, folder, any_revision=any_revision)
            return found
        (folder / TILES).mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, manifest.to_dict())
        return found

    def manifest(self) -> RunManifest | None:
        """Return the manifest, or None if no run has started; raises `CheckpointError` if it is damaged."""
        value = read_json(self.folder / MANIFEST)
        return None if value is None else RunManifest.of(value)

    def done(self) -> set[int]:
        """Return the indices of the answered tiles."""
        return {int(path.stem) for path in (self.folder / TILES).glob("*.json")}

    def write(self, tile: int, record: Mapping[str, Any]) -> None:
        """Store a tile's answer."""
        write_json(self._path(tile), record)

    def read(self, tile: int) -> dict[str, Any]:
        """Return a tile's answer; raises `CheckpointError` if it is missing."""
        record = read_json(self._path(tile))
        if record is None:
            raise CheckpointError(f"tile {tile} is missing in the checkpoint {str(self.folder)!r}")
        return record

    def clear(self) -> None:
        """Delete the run and the map of its tiles' segments; other files in the folder stay."""
        # The manifest first: without it the rest is not a run, if this stops half-way.
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for name in (TILES, f"{SEGMENTS}.zarr"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        (self.folder / f"{SEGMENTS}.npy").unlink(missing_ok=True)
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, tile: int) -> Path:
        return self.folder / TILES / f"{tile:08d}.json"


def write_json(path: Path, value: Mapping[str, Any], *, indent: int | None = None) -> None:
    """Write JSON atomically: the file is complete whenever it exists."""
    replace_file(path, json.dumps(value, indent=indent, allow_nan=False))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return a JSON object, or None if there is no file; raises `CheckpointError` for anything else."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{str(path)!r} is damaged: expected a JSON object")
    return value
