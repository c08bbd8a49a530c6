"""Masks as the server sends them, in any encoding, and their conversion to bitmaps, RLE and polygons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from segserve.results.outlines import Part, outer_rings, trace
from segserve_common.drawing.canvas import Patch
from segserve_common.mask_encodings import (
    Polygon,
    is_polygons,
    is_run_lengths,
    read_mask,
    read_polygons,
    run_length_counts,
)
from segserve_common.rle import RunLengths, run_lengths


class Rle(TypedDict):
    """COCO's compressed run-length encoding: `size` is [height, width], `counts` are ASCII bytes."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True, eq=False)
class EncodedMask:
    """One mask of a `height` x `width` image in any encoding, decoded on first use.

    Accessing a malformed mask raises `ProtocolError`.
    """

    data: bytes = field(repr=False)
    height: int
    width: int

    @classmethod
    def of(cls, bitmap: NDArray[np.bool_]) -> EncodedMask:
        """Encode a bitmap, bool (H, W), as COCO RLE."""
        from pycocotools import mask as coco

        height, width = bitmap.shape
        return cls(coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"], height, width)

    @classmethod
    def empty(cls, height: int, width: int) -> EncodedMask:
        """Return an empty mask."""
        from pycocotools import mask as coco

        (rle,) = coco.frPyObjects([{"size": [height, width], "counts": [height * width]}], height, width)
        return cls(rle["counts"], height, width)

    @cached_property
    def bitmap(self) -> NDArray[np.bool_]:
        """The mask, bool (H, W), read-only."""
        bitmap = read_mask(self.data, self.height, self.width)
        if bitmap is None:
            # pycocotools' own decoding warns on numpy 2 and does not check the runs.
            bitmap = _columns(run_lengths(self._counts, self.height, self.width), self.height)
        bitmap.flags.writeable = False
        return bitmap

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE."""
        return Rle(size=[self.height, self.width], counts=run_length_counts(self.data, self.height, self.width))

    def patch(self) -> Patch:
        """Decode only the mask's bounding rectangle, and cache nothing: for many masks of a large image."""
        bitmap = self.__dict__.get("bitmap", read_mask(self.data, self.height, self.width))
        if bitmap is not None:
            return Patch.of(bitmap)
        runs = run_lengths(self._counts, self.height, self.width)
        filled = np.flatnonzero(runs[1::2]) * 2 + 1
        if filled.size == 0:
            return Patch(0, 0, np.zeros((0, 0), np.bool_))
        first, last, ends = filled[0], filled[-1], np.cumsum(runs)
        start, stop = int(ends[first - 1]), int(ends[last])
        left, right = start // self.height, -(-stop // self.height)
        before, behind = start - left * self.height, right * self.height - stop
        return Patch.of(_columns(np.concatenate(([before], runs[first : last + 1], [behind])), self.height), left)

    @cached_property
    def polygons(self) -> list[Polygon]:
        """The outlines as [x, y, x, y, ...] in pixels: the server's, or traced around the mask's pixels.

        They have no holes; `parts` includes holes.
        """
        if is_polygons(self.data):
            return read_polygons(self.data, self.height, self.width)
        patch = self.patch()
        corner = np.array((patch.x, patch.y))
        return [(ring + corner).ravel().tolist() for ring in outer_rings(patch.pixels)]

    def parts(self) -> tuple[Part, ...]:
        """Return the outlines of the 4-connected parts with their holes, traced around the mask's pixels.

        For a mask that the server sent as polygons, these are its polygons, without holes.
        """
        if is_polygons(self.data):
            rings = (np.array(polygon).reshape(-1, 2) for polygon in self.polygons)
            return tuple(Part(ring) for ring in rings if len(ring) >= 3)
        patch = self.patch()
        return tuple(part.moved(patch.x, patch.y) for part in trace(patch.pixels))

    @cached_property
    def area(self) -> int:
        """The area in pixels."""
        from pycocotools import mask as coco

        return int(coco.area(self.rle))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The bounding box of the mask's pixels as x1, y1, x2, y2; x2 and y2 are exclusive."""
        x1, y1, x2, y2 = runs_of([self]).boxes()[0].tolist()
        return x1, y1, x2, y2

    @property
    def _counts(self) -> bytes:
        """The RLE counts, which only readers of the runs check."""
        is_sent = is_run_lengths(self.data, self.height, self.width)
        return self.data if is_sent else self.rle["counts"]


def text_rle(mask: EncodedMask) -> dict[str, Any]:
    """Return the mask as COCO compressed RLE, with `counts` as text."""
    return {"size": [*mask.rle["size"]], "counts": mask.rle["counts"].decode()}


def runs_of(masks: Sequence[EncodedMask]) -> RunLengths:
    """Return the runs of masks of one image, from which areas and boxes follow without a bitmap.

    Reading many at once takes far less time than one by one; afterwards the `rle` of each is known to be right.
    """
    height, width = (masks[0].height, masks[0].width) if masks else (0, 0)
    counts = [mask._counts for mask in masks]
    runs = RunLengths.read(counts, height, width)
    for mask, each in zip(masks, counts, strict=True):
        mask.__dict__.setdefault("rle", Rle(size=[height, width], counts=each))
    return runs


def largest_first(masks: Mapping[int, EncodedMask]) -> Iterator[tuple[int, EncodedMask]]:
    """Yield masks of one image, with their ids, by their areas."""
    ids = list(masks)
    areas = runs_of(list(masks.values())).areas()
    for index in np.argsort(-areas, kind="stable").tolist():
        yield ids[index], masks[ids[index]]


def _columns(runs: NDArray[np.int64], height: int) -> NDArray[np.bool_]:
    """Return full columns of a mask from their runs, bool (height, w)."""
    is_inside = np.arange(runs.size) % 2 == 1
    return np.repeat(is_inside, runs).reshape(-1, height).T


def masks_of_labels(labels: NDArray[Any]) -> dict[int, EncodedMask]:
    """Return the mask of every value of a label map (H, W) except 0, in one pass over the map."""
    from pycocotools import mask as coco

    height, width = labels.shape
    values = labels.ravel(order="F")
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    ends, values = np.append(starts[1:], labels.size), values[starts]
    order = np.argsort(values, kind="stable")
    found, firsts = np.unique(values[order], return_index=True)
    masks = {}
    for value, own in zip(found.tolist(), np.split(order, firsts[1:]), strict=True):
        if value != 0:
            borders = np.stack([starts[own], ends[own]], 1).ravel()
            runs = np.diff(borders, prepend=0, append=labels.size)
            (rle,) = coco.frPyObjects([{"size": [height, width], "counts": runs}], height, width)
            masks[value] = EncodedMask(rle["counts"], height, width)
    return masks
