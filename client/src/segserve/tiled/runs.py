"""Runs: the state of one tiled segmentation in its folder, from the first tile to the stitched result."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from segserve.errors import CheckpointError, ImageTooLargeError
from segserve.rendering.progress import Tick
from segserve.results.values import ModelInfo
from segserve.tiled.checkpoint import SEGMENTS, Checkpoint, RunManifest, read_json, write_json
from segserve.tiled.grid import Grid, Tile
from segserve.tiled.job import TileJob, TileRequest
from segserve.tiled.maps import NPY, ZARR, MapFile, PixelMap, labels_dtype, nodata_of
from segserve.tiled.options import Options
from segserve.tiled.results import (
    IDS,
    LABELS,
    MAX_PIXELS_IN_MEMORY,
    OBJECTS,
    RESULT,
    TiledObjects,
    TiledSemanticResult,
    from_folder,
    in_memory,
)
from segserve.tiled.sources import PixelSource
from segserve.tiled.stitching import StitchedTotals, count_labels, paint_ids, write_objects, write_segments
from segserve.tiled.tile_results import WITH_MAP, Record, kind_of

CHECKPOINT: Final = "checkpoint"
_OWN: Final = frozenset({RESULT, OBJECTS, *(f"{name}.{form}" for name in (LABELS, IDS) for form in ("zarr", "npy"))})


@dataclass
class Run:
    """One image, one model, one set of options. `folder` holds maps and tables.

    `described` is the content of `result.json` if the run was completed before.
    """

    options: Options
    info: ModelInfo
    manifest: RunManifest
    checkpoint: Checkpoint
    grid: Grid
    folder: Path
    map_format: str
    described: dict[str, Any] | None = None
    sent: int = 0
    tick: Tick = lambda _done, _total: None
    _done: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def kind(self) -> str:
        """The model's task."""
        return self.manifest.kind

    def job(self) -> TileJob:
        """Return the description of the tiles; its map exists."""
        options = self.options
        request = TileRequest(options.model, options.score_threshold, options.max_detections, options.timeout_s)
        revision = None if options.on_revision_change == "allow" else self.info.revision
        return TileJob(self.grid, request, options.send, revision, self._tile_map(), self.manifest.nodata)

    def missing(self) -> list[Tile]:
        """Return the tiles that are not answered yet."""
        if self.described is not None:
            return []
        self._done = self.checkpoint.done()
        self.tick(len(self._done), len(self.grid))
        return [tile for tile in self.grid if tile.index not in self._done]

    def keep(self, tile: Tile, record: Record) -> None:
        """Store a tile's answer, after its map was written. Thread-safe."""
        self.checkpoint.write(tile.index, record)
        with self._lock:
            self.sent += 1
            self._done.add(tile.index)
            self.tick(len(self._done), len(self.grid))

    def finish(self) -> TiledSemanticResult | TiledObjects:
        """Stitch the tiles and return the result; `result.json`, written last, marks a complete folder."""
        described = self.described or self._describe(self._stitch())
        if self.options.out is None:
            return in_memory(self.folder, described, sent=self.sent)
        tile_map = self._tile_map()
        if tile_map is not None:
            tile_map.sweep()
        write_json(self.folder / RESULT, described, indent=1)
        self.checkpoint.clear()
        return from_folder(self.folder, described, sent=self.sent)

    def prepare(self) -> None:
        """Create the map that tiles are written to, if this run has one and no tile is answered."""
        tile_map = self._tile_map()
        if tile_map is not None and not self.checkpoint.done():
            tile_map.create(self._attributes())

    def _stitch(self) -> StitchedTotals:
        if self.kind == "semantic":
            return count_labels(self.grid, self.checkpoint)
        table, at_least = self.folder / OBJECTS, self.options.same_at_least
        tile_map = self._tile_map()
        if tile_map is not None:
            maps = tile_map.open(), self._ids()
            return write_segments(self.grid, self.checkpoint, self.info, table, maps, at_least=at_least)
        totals = write_objects(self.grid, self.checkpoint, self.info, table, at_least=at_least)
        if self.options.id_map:
            paint_ids(self.grid, table, self._ids())
        return totals

    def _tile_map(self) -> MapFile | None:
        """Return the map that each tile's cell is written to: of classes, or of the tiles' own segment ids."""
        if self.kind == "semantic":
            largest = max(_largest(self.info), self.manifest.nodata or 0)
            return self._map(self.folder / LABELS, labels_dtype(largest))
        return self._map(self.checkpoint.folder / SEGMENTS, "uint16") if self.kind == "panoptic" else None

    def _ids(self) -> PixelMap:
        return self._map(self.folder / IDS, "uint32").create(self._attributes())

    def _map(self, path: Path, dtype: str) -> MapFile:
        name = f"{path}{ZARR if self.map_format == 'zarr' else NPY}"
        return MapFile(name, self.grid.height, self.grid.width, dtype, self.grid.core)

    def _attributes(self) -> dict[str, Any]:
        attributes = {"model": self.info.model, "revision": self.info.revision, "classes": self._classes()}
        return attributes if self.manifest.nodata is None else attributes | {"nodata": self.manifest.nodata}

    def _classes(self) -> list[dict[str, Any]]:
        return [
            {"id": known.id, "name": known.name, "colour": None if known.colour is None else list(known.colour)}
            for known in self.info.classes
        ]

    def _describe(self, totals: StitchedTotals) -> dict[str, Any]:
        areas = {self.info.class_of(class_id).name: area for class_id, area in sorted(totals.areas.items())}
        return {
            "model": self.info.model,
            "kind": self.kind,
            "revisions": list(totals.revisions),
            "size": [self.grid.height, self.grid.width],
            "classes": self._classes(),
            "areas": areas,
            "tiles": len(self.grid),
            "objects": totals.objects,
            "tilesAtLimit": totals.at_limit,
            "run": self.manifest.to_dict(),
        }


@contextmanager
def open_run(source: PixelSource, info: ModelInfo, options: Options, *, for_workers: bool) -> Iterator[Run]:
    """Yield a new or resumed run; a folder that is not to be kept is deleted after the block.

    Raises `CheckpointError` if the folder holds another run, and `ImageTooLargeError` if a result without a folder is
    too large for memory.
    """
    grid = Grid(source.height, source.width, options.tile, options.overlap)
    kind = kind_of(info)
    has_map = kind in WITH_MAP or options.id_map
    if options.out is None and has_map and grid.height * grid.width > MAX_PIXELS_IN_MEMORY:
        raise ImageTooLargeError(
            f"the map of {grid.height} x {grid.width} pixels is too large for memory (up to {MAX_PIXELS_IN_MEMORY}); "
            "set a folder with out="
        )
    with ExitStack() as stack:
        kept = options.out or options.checkpoint
        # Only if needed: a killed run leaves it behind.
        folder = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segserve-tiled-")))
        manifest = _manifest(source, info, kind, grid, options, is_kept=kept is not None)
        map_format = "zarr" if for_workers else options.labels if options.out is not None else "npy"
        described = _finished(folder, manifest, options)
        if described is not None:
            yield Run(options, info, manifest, _checkpoint_of(folder, options), grid, folder, map_format, described)
            return
        run = Run(options, info, manifest, _opened(folder, options, manifest), grid, folder, map_format)
        run.prepare()
        yield run


def _largest(info: ModelInfo) -> int:
    return max((known.id for known in info.classes), default=1 << 15)


def _manifest(
    source: PixelSource, info: ModelInfo, kind: str, grid: Grid, options: Options, *, is_kept: bool
) -> RunManifest:
    return RunManifest(
        model=info.model,
        revision=info.revision,
        kind=kind,
        height=source.height,
        width=source.width,
        channels=source.channels,
        dtype=str(source.dtype),
        source=source.digest() if is_kept else None,
        tile=grid.tile,
        overlap=grid.overlap,
        blend=options.blend,
        send=options.send,
        score_threshold=options.score_threshold,
        max_detections=options.max_detections,
        same_at_least=options.same_at_least,
        id_map=options.id_map,
        labels=options.labels if options.out is not None else None,
        nodata=None if source.mask is None else nodata_of(_largest(info)) if kind == "semantic" else 0,
    )


def _checkpoint_of(folder: Path, options: Options) -> Checkpoint:
    """Return the checkpoint for the tiles of a run into `folder`."""
    return Checkpoint(options.checkpoint or folder / CHECKPOINT)


def _opened(folder: Path, options: Options, manifest: RunManifest) -> Checkpoint:
    """Return the checkpoint of a run into `folder`, newly created if it is missing.

    Raises `CheckpointError` if the folder holds another run or other files; `start_over` deletes a run, and never other
    files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = _checkpoint_of(folder, options)
    if options.start_over:
        found.clear()
        # The result first: without it, the rest counts as an unfinished run.
        (folder / RESULT).unlink(missing_ok=True)
        for name in sorted(_OWN):
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    if found.manifest() is None and options.out is not None:
        others = sorted(path.name for path in folder.iterdir() if path != found.folder)
        if others:
            raise CheckpointError(
                f"the folder {str(folder)!r} is not empty and holds no run to resume: "
                f"{', '.join(others[:5])}{', ...' if len(others) > 5 else ''}. Use a new folder"
            )
    any_revision = options.on_revision_change == "allow"
    return Checkpoint.open(found.folder, manifest, any_revision=any_revision)


def _finished(folder: Path, manifest: RunManifest, options: Options) -> dict[str, Any] | None:
    """Return the content of `result.json` for a complete run, else None.

    Raises `CheckpointError` if it belongs to another run.
    """
    value = read_json(folder / RESULT)
    if value is None or options.start_over:
        return None
    known = RunManifest.of(value["run"])
    known.check_same(manifest, folder, any_revision=options.on_revision_change == "allow")
    return value
