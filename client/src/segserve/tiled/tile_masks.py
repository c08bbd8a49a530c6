"""Masks of one tile's objects, stored within their bounding boxes. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypedDict

import numpy as np
from numpy.typing import NDArray

from segserve.results.masks import EncodedMask
from segserve.tiled.grid import Tile, Window

# Networks draw masks at a fraction of the resolution, so a cut mask ends a little before the edge.
EDGE_PX: Final = 3


class LocalRle(TypedDict):
    """COCO's compressed run-length encoding of a box: `size` is [height, width] of that box, `counts` is text."""

    size: list[int]
    counts: str


@dataclass(frozen=True, eq=False)
class TilePatch:
    """A part of an image: a bool bitmap whose first pixel is at `top`, `left`."""

    top: int
    left: int
    bitmap: NDArray[np.bool_]

    @property
    def window(self) -> Window:
        """The window that the bitmap covers."""
        height, width = self.bitmap.shape
        return Window(self.top, self.left, self.top + height, self.left + width)

    def within(self, window: Window) -> NDArray[np.bool_]:
        """Return the part of the bitmap inside `window`, possibly empty."""
        part = self.window.intersection(window)
        if part.is_empty:
            return np.zeros((0, 0), np.bool_)
        return self.bitmap[part.slices((self.top, self.left))]

    def area_within(self, window: Window) -> int:
        """Return the number of its pixels inside `window`."""
        return int(np.count_nonzero(self.within(window)))


@dataclass(frozen=True, eq=False)
class Piece:
    """An object as one tile shows it, in pixels of the whole image.

    `box` is x1, y1, x2, y2. `patch` is the mask, or the filled box if the model gives no mask (not `has_mask`).
    `is_whole` means that no edge of the tile cuts the object. `number` is its index in the tile's answer.
    """

    tile: int
    number: int
    class_id: int
    score: float
    box: tuple[float, float, float, float]
    patch: TilePatch
    area: int
    is_whole: bool
    has_mask: bool = True
    points: tuple[tuple[float, float, float], ...] | None = None

    @property
    def key(self) -> tuple[Any, ...]:
        """The sort key of pieces, independent of the order in which they arrive."""
        return self.tile, self.box, self.class_id, -self.score, self.area, self.number


def crop(mask: EncodedMask) -> TilePatch | None:
    """Return a mask within its bounding box, placed in the tile; None if it has no pixel."""
    from segserve_common.rle import run_lengths

    runs = run_lengths(mask.rle["counts"], mask.height, mask.width)
    if runs.size < 2:
        return None
    # Only the columns from the first to the last that have a pixel are decoded.
    first = int(runs[0]) // mask.height
    outside_at_the_end = int(runs[-1]) if runs.size % 2 else 0
    last = (mask.height * mask.width - outside_at_the_end - 1) // mask.height
    runs = runs.copy()
    runs[0] -= first * mask.height
    if runs.size % 2:
        runs[-1] -= (mask.width - 1 - last) * mask.height
    columns = np.repeat(np.arange(runs.size) % 2 == 1, runs).reshape(last - first + 1, mask.height)
    rows = np.flatnonzero(columns.any(axis=0))
    if rows.size == 0:
        return None
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return TilePatch(top, first, np.ascontiguousarray(columns[:, top:bottom].T))


def of_bitmap(bitmap: NDArray[np.bool_]) -> TilePatch | None:
    """Return a bitmap within its bounding box; None if it has no pixel."""
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    if rows.size == 0:
        return None
    top, left = int(rows[0]), int(columns[0])
    return TilePatch(top, left, bitmap[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].copy())


def within(patch: TilePatch, valid: NDArray[np.bool_]) -> TilePatch | None:
    """Return the part of a patch that is `valid`, bool (h, w) of its tile; None if it has no pixel."""
    part = patch.window.intersection(Window(0, 0, *valid.shape))
    found = None if part.is_empty else of_bitmap(patch.within(part) & valid[part.slices()])
    return None if found is None else TilePatch(found.top + part.top, found.left + part.left, found.bitmap)


def of_box(box: tuple[float, float, float, float]) -> TilePatch | None:
    """Return a filled box; None if it covers no pixel."""
    left, top = int(np.floor(box[0])), int(np.floor(box[1]))
    height, width = int(np.ceil(box[3])) - top, int(np.ceil(box[2])) - left
    return TilePatch(top, left, np.ones((height, width), np.bool_)) if height > 0 and width > 0 else None


def is_whole(patch: TilePatch, tile: Tile, height: int, width: int) -> bool:
    """Return whether no edge of the tile cuts the object; the image's own border does not count as a cut.

    `patch` is in pixels of the whole image, which is `height` x `width`.
    """
    seen, own = tile.window, patch.window
    return not (
        (seen.top > 0 and own.top < seen.top + EDGE_PX)
        or (seen.left > 0 and own.left < seen.left + EDGE_PX)
        or (seen.bottom < height and own.bottom > seen.bottom - EDGE_PX)
        or (seen.right < width and own.right > seen.right - EDGE_PX)
    )


def encode(bitmap: NDArray[np.bool_]) -> LocalRle:
    """Return a bitmap as COCO RLE."""
    from pycocotools import mask as coco

    rle = coco.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return LocalRle(size=list(rle["size"]), counts=rle["counts"].decode("ascii"))


def decode(rle: LocalRle) -> NDArray[np.bool_]:
    """Return the bitmap of an RLE, bool (h, w); raises `ProtocolError` for a malformed one."""
    from segserve.results.masks import EncodedMask

    return EncodedMask(rle["counts"].encode(), *rle["size"]).bitmap


def intervals(bitmap: NDArray[np.bool_], skipped: int = 0) -> NDArray[np.int64]:
    """Return start and end (N, 2) of the runs of True in column order, counted from `skipped`."""
    flat = np.concatenate(([False], bitmap.ravel(order="F"), [False]))
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return edges.reshape(-1, 2).astype(np.int64) + skipped


def encode_intervals(found: NDArray[np.int64], height: int, width: int) -> LocalRle:
    """Return the RLE of a `height` x `width` mask whose pixels, in column order, are the sorted intervals."""
    from pycocotools import mask as coco

    if found.size:
        # Adjacent runs are merged, as in any other encoder's RLE.
        joins = np.flatnonzero(found[1:, 0] == found[:-1, 1])
        found = np.column_stack((np.delete(found[:, 0], joins + 1), np.delete(found[:, 1], joins)))
    ends = np.concatenate(([0], found.ravel(), [height * width]))
    counts = np.diff(ends)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    rle = coco.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)
    return LocalRle(size=[height, width], counts=rle["counts"].decode("ascii"))


def in_the_image(mask: NDArray[np.bool_], origin: tuple[int, int], height: int, width: int) -> LocalRle:
    """Return the RLE of a mask in the whole image without drawing it."""
    steps = np.diff(np.pad(mask.astype(np.int8), ((1, 1), (0, 0))), axis=0).T
    left, top = origin
    columns, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    first = (columns + left) * height + top
    return encode_intervals(np.column_stack((first + starts, first + ends)), height, width)
