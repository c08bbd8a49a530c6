"""The folder that a result goes to: whose it is, and what of it may be deleted."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, Final

from segserve.tiled.checkpoint import Checkpoint, Manifest, read_json
from segserve.tiled.errors import CheckpointError
from segserve.tiled.results import IDS, LABELS, OBJECTS, RESULT

if TYPE_CHECKING:
    from pathlib import Path

    from segserve.tiled.options import Options

CHECKPOINT: Final = "checkpoint"
_OWN: Final = frozenset({RESULT, OBJECTS, *(f"{name}.{form}" for name in (LABELS, IDS) for form in ("zarr", "npy"))})


def checkpoint_of(folder: Path, options: Options) -> Checkpoint:
    """Return where the tiles of a run into `folder` are kept."""
    return Checkpoint(options.checkpoint or folder / CHECKPOINT)


def opened(folder: Path, options: Options, manifest: Manifest) -> Checkpoint:
    """Return the checkpoint of a run into `folder`, new where there is none.

    Raises `CheckpointError` where the folder holds another run or other files; `start_over` deletes a run, and never
    other files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = checkpoint_of(folder, options)
    if options.start_over:
        found.clear()
        _clear(folder)
    if found.manifest() is None and options.out is not None:
        _refuse_other_files(folder, found.folder)
    any_revision = options.on_revision_change == "allow"
    return Checkpoint.open(found.folder, manifest, any_revision=any_revision)


def finished(folder: Path, manifest: Manifest, options: Options) -> dict[str, Any] | None:
    """Return what `result.json` says of a run that is complete, None where it is not.

    Raises `CheckpointError` where it is of another run.
    """
    value = read_json(folder / RESULT)
    if value is None or options.start_over:
        return None
    known = Manifest.of(value["run"])
    known.check_same(manifest, folder, any_revision=options.on_revision_change == "allow")
    return value


def _refuse_other_files(folder: Path, checkpoint: Path) -> None:
    others = sorted(path.name for path in folder.iterdir() if path != checkpoint)
    if others:
        raise CheckpointError(
            f"the folder {str(folder)!r} is not empty and holds no run that could be taken up: "
            f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}. Give a new folder"
        )


def _clear(folder: Path) -> None:
    # The result first: without it what is left is a run that was not finished.
    (folder / RESULT).unlink(missing_ok=True)
    for name in sorted(_OWN):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
