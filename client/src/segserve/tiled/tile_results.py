"""Records of tiles: a tile's answer as JSON, with its objects in pixels of the whole image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.results.objects import Detection, Instance, KeypointDetection
from segserve.results.result import PanopticResult, Result, SemanticResult
from segserve.results.values import ModelInfo
from segserve.tiled.grid import Grid, Tile
from segserve.tiled.tile_masks import Piece, TilePatch, crop, decode, encode, is_whole, of_bitmap, of_box, within
from segserve_common.errors import BadRequestError

Record: TypeAlias = dict[str, Any]

# Tasks by the output that identifies them, in order of precedence.
KINDS: Final = {
    "KEYPOINTS": "keypoints",
    "SEGMENTS": "panoptic",
    "AREAS": "semantic",
    "MASKS": "instance",
    "BOXES": "detection",
}
WITH_MAP: Final = frozenset({"semantic", "panoptic"})


def kind_of(info: ModelInfo) -> str:
    """Return a model's task; raises `BadRequestError` for a model that segserve did not build."""
    found = next((kind for output, kind in KINDS.items() if output in info.outputs), None)
    if found is None:
        raise BadRequestError(
            f"model {info.model!r} is not a segserve model; its outputs are {', '.join(sorted(info.outputs)) or 'none'}"
        )
    return found


def map_of(result: Result) -> NDArray[Any] | None:
    """Return the class or segment id of every pixel of a tile, or None for tasks without a map.

    Raises `BadRequestError` for a multi-label answer, whose overlapping masks have no single map.
    """
    if isinstance(result, SemanticResult):
        if result.encoded is None:
            raise BadRequestError(
                f"model {result.model!r} is multi-label: its masks may overlap, so there is no single map to stitch"
            )
        return result.labels
    return result.ids if isinstance(result, PanopticResult) else None


def record_of(result: Result, tile: Tile, grid: Grid, valid: NDArray[np.bool_] | None = None) -> Record:
    """Return the record of an answer: areas by class id in the tile's cell, or the objects in its window.
    Where the window is not `valid`, bool (h, w), masks end and nothing counts.
    """
    record: Record = {"revision": result.revision}
    if isinstance(result, SemanticResult):
        place = tile.cell.slices((tile.window.top, tile.window.left))
        cell = result.labels[place]
        areas = np.bincount(cell.ravel() if valid is None else cell[valid[place]])
        return record | {"areas": {str(label): int(areas[label]) for label in np.flatnonzero(areas).tolist()}}
    if isinstance(result, PanopticResult):
        return record | {"objects": list(_segments(result, tile, grid, valid))}
    rows = (_object(found, tile, grid, valid) for found in result)
    return record | {"objects": [row for row in rows if row is not None], "atLimit": result.at_limit}


def pieces_of(record: Mapping[str, Any], tile: Tile) -> list[Piece]:
    """Return the pieces of a tile's record; stuff has no pieces."""
    return [
        _piece(number, row, tile) for number, row in enumerate(record.get("objects", ())) if not row.get("is_stuff")
    ]


def _object(found: Detection, tile: Tile, grid: Grid, valid: NDArray[np.bool_] | None) -> Record | None:
    """Return an object's row, or None for an object without a pixel in the tile that has data."""
    top, left = tile.window.top, tile.window.left
    x1, y1, x2, y2 = found.box
    row: Record = {
        "class": found.class_id,
        "score": found.score,
        "box": [x1 + left, y1 + top, x2 + left, y2 + top],
    }
    if isinstance(found, KeypointDetection):
        row["points"] = [[x + left, y + top, score] for x, y, score in found.points.tolist()]
    patch = crop(found.encoded) if isinstance(found, Instance) else of_box(found.box)
    shown = patch if patch is None or valid is None else within(patch, valid)
    if patch is None or shown is None:
        return None
    is_cut = isinstance(found, Instance) and shown.bitmap.sum() < patch.bitmap.sum()
    patch = shown if is_cut else patch
    moved = TilePatch(patch.top + top, patch.left + left, patch.bitmap)
    if is_cut:
        window = moved.window
        row["box"] = [float(side) for side in (window.left, window.top, window.right, window.bottom)]
    row["whole"] = is_whole(moved, tile, grid.height, grid.width)
    if isinstance(found, Instance):
        row |= {"at": [moved.left, moved.top], "rle": encode(moved.bitmap)}
    return row


def _segments(result: PanopticResult, tile: Tile, grid: Grid, valid: NDArray[np.bool_] | None) -> Iterator[Record]:
    top, left = tile.window.top, tile.window.left
    ids = result.ids if valid is None else np.where(valid, result.ids, 0)
    for segment in result:
        row: Record = {"class": segment.class_id, "score": segment.score, "id": segment.id}
        if not segment.is_thing:
            yield row | {"is_stuff": True, "area": segment.area}
            continue
        patch = of_bitmap(ids == segment.id)
        if patch is None:
            continue
        moved = TilePatch(patch.top + top, patch.left + left, patch.bitmap)
        window = moved.window
        yield row | {
            "box": [float(side) for side in (window.left, window.top, window.right, window.bottom)],
            "whole": is_whole(moved, tile, grid.height, grid.width),
            "at": [moved.left, moved.top],
            "rle": encode(moved.bitmap),
        }


def _piece(number: int, row: Mapping[str, Any], tile: Tile) -> Piece:
    x1, y1, x2, y2 = row["box"]
    has_mask = "rle" in row
    if has_mask:
        left, top = row["at"]
        patch = TilePatch(top, left, decode(row["rle"]))
    else:
        # Boxes that round to nothing were left out when the record was written.
        patch = of_box((x1, y1, x2, y2)) or TilePatch(int(y1), int(x1), np.ones((1, 1), np.bool_))
    return Piece(
        tile=tile.index,
        number=number,
        class_id=row["class"],
        score=row["score"],
        box=(x1, y1, x2, y2),
        patch=patch,
        area=int(np.count_nonzero(patch.bitmap)),
        is_whole=row["whole"],
        has_mask=has_mask,
        points=tuple((x, y, score) for x, y, score in row["points"]) if "points" in row else None,
    )
