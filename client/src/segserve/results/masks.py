"""Masks as the server sends them, in any encoding, and their conversion to bitmaps, RLE and polygons."""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from segserve.results.outlines import Part, outer_rings, trace
from segserve_common.errors import ProtocolError
from segserve_common.rle import run_lengths

Polygon: TypeAlias = list[float]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"


class Rle(TypedDict):
    """COCO's compressed run-length encoding: `size` is [height, width], `counts` are ASCII bytes."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True, eq=False)
class Patch:
    """The bounding rectangle of a mask: bool (h, w), with its top left pixel at `x`, `y` of the image.

    The patch of an empty mask has the shape (0, 0).
    """

    x: int
    y: int
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, bitmap: NDArray[np.bool_], x: int = 0, y: int = 0) -> Patch:
        """Cut the patch out of a bitmap, bool (H, W), whose top left pixel is at `x`, `y`."""
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if rows.size == 0:
            return cls(0, 0, np.zeros((0, 0), np.bool_))
        top, left = int(rows[0]), int(columns[0])
        return cls(x + left, y + top, bitmap[top : rows[-1] + 1, left : columns[-1] + 1])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The rectangle as x1, y1, x2, y2; x2 and y2 are exclusive."""
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height

    @property
    def window(self) -> tuple[slice, slice]:
        """The index of the patch in an array of the whole image."""
        x1, y1, x2, y2 = self.box
        return slice(y1, y2), slice(x1, x2)


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
        bitmap = self._pixels()
        if bitmap is None:
            # pycocotools' own decoding warns on numpy 2 and does not check the runs.
            bitmap = _columns(run_lengths(self.rle["counts"], self.height, self.width), self.height)
        bitmap.flags.writeable = False
        return bitmap

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE."""
        from pycocotools import mask as coco

        bitmap = self._pixels()
        if bitmap is not None:
            return EncodedMask.of(bitmap).rle
        if self._is_polygons:
            # A polygon with two corners encloses nothing, and pycocotools rejects it.
            parts = [polygon for polygon in self.polygons if len(polygon) >= 6]
            if not parts:
                return EncodedMask.empty(self.height, self.width).rle
            return coco.merge(coco.frPyObjects(parts, self.height, self.width))  # type: ignore[no-any-return]
        run_lengths(self.data, self.height, self.width)
        return Rle(size=[self.height, self.width], counts=self.data)

    def patch(self) -> Patch:
        """Decode only the mask's bounding rectangle, and cache nothing: for many masks of a large image."""
        bitmap = self.__dict__.get("bitmap", self._pixels())
        if bitmap is not None:
            return Patch.of(bitmap)
        runs = run_lengths(self.rle["counts"], self.height, self.width)
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
        if self._is_polygons:
            return _read_polygons(self.data, self.height, self.width)
        patch = self.patch()
        corner = np.array((patch.x, patch.y))
        return [(ring + corner).ravel().tolist() for ring in outer_rings(patch.pixels)]

    def parts(self) -> tuple[Part, ...]:
        """Return the outlines of the 4-connected parts with their holes, traced around the mask's pixels.

        For a mask that the server sent as polygons, these are its polygons, without holes.
        """
        if self._is_polygons:
            rings = (np.array(polygon).reshape(-1, 2) for polygon in self.polygons)
            return tuple(Part(ring) for ring in rings if len(ring) >= 3)
        patch = self.patch()
        return tuple(part.moved(patch.x, patch.y) for part in trace(patch.pixels))

    @cached_property
    def area(self) -> int:
        """The area in pixels."""
        from pycocotools import mask as coco

        return int(coco.area(self.rle))

    def _pixels(self) -> NDArray[np.bool_] | None:
        """Return the bitmap of a mask sent as PNG or raw bytes, else None."""
        if self.data.startswith(PNG_MAGIC):
            return read_png(self.data, self.height, self.width) > 0
        # Bytes below 0x20 occur in raw masks only, never in RLE or JSON.
        if len(self.data) == self.height * self.width and self.data[0] <= 1:
            return np.frombuffer(self.data, np.uint8).reshape(self.height, self.width) > 0
        return None

    @property
    def _is_polygons(self) -> bool:
        # `[` may start an RLE, but `]` cannot end one: its continuation bit is set.
        return self.data.startswith(b"[") and self.data.endswith(b"]")


def read_png(data: bytes, height: int, width: int) -> NDArray[Any]:
    """Return the grey values or palette indices of a PNG, uint8 or uint16 (H, W); raises `ProtocolError` for other
    files.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise ProtocolError(f"expected a PNG of {width} x {height}, got {image.width} x {image.height}")
            if image.mode not in {"1", "L", "P", "I;16", "I"}:
                raise ProtocolError(f"a label PNG must have one channel, got mode {image.mode!r}")
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ProtocolError(f"the PNG cannot be read: {error}") from error
    return pixels.astype(np.uint8 if image.mode in {"1", "L", "P"} else np.uint16)


def _columns(runs: NDArray[np.int64], height: int) -> NDArray[np.bool_]:
    """Return full columns of a mask from their runs, bool (height, w)."""
    is_inside = np.arange(runs.size) % 2 == 1
    return np.repeat(is_inside, runs).reshape(-1, height).T


def _read_polygons(data: bytes, height: int, width: int) -> list[Polygon]:
    bound = max(height, width)
    try:
        polygons = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"polygons must be JSON, got {data[:40]!r}") from error
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(type(n) in {int, float} for n in polygon):
            raise ProtocolError(f"a polygon must be a list x, y, x, y, ..., got {str(polygon)[:80]}")
        # pycocotools allocates memory for every pixel along an edge, inside the image or not.
        if not all(math.isfinite(n) and -bound <= n <= 2 * bound for n in polygon):
            raise ProtocolError(f"a polygon lies outside its image of {height} x {width}, got {str(polygon)[:80]}")
    return [[float(number) for number in polygon] for polygon in polygons]


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


def read_labels(data: bytes, height: int, width: int) -> NDArray[Any]:
    """Return a label map sent as PNG or raw little-endian bytes, uint8 or uint16 (H, W); raises `ProtocolError`
    otherwise.
    """
    if data.startswith(PNG_MAGIC):
        return read_png(data, height, width)
    for dtype in (np.dtype("u1"), np.dtype("<u2")):
        if len(data) == height * width * dtype.itemsize:
            return np.frombuffer(data, dtype).reshape(height, width).copy()
    raise ProtocolError(f"a label map of {len(data)} bytes does not fit an image of {height} x {width}")
