"""Masks as they cross the wire: the encodings told apart, and turned into the form that is asked for."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

import numpy as np

from segserve.errors import ProtocolError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Polygon: TypeAlias = list[float]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_RLE_FIRST, _RLE_LAST = ord("0"), ord("o")


class Rle(TypedDict):
    """COCO's compressed run-length encoding: `size` is [height, width], `counts` ASCII bytes."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True, eq=False)
class EncodedMask:
    """One mask of a `height` x `width` image in any encoding; nothing is decoded before it is asked for.

    What cannot be decoded raises `ProtocolError` then.
    """

    data: bytes
    height: int
    width: int

    @cached_property
    def bitmap(self) -> NDArray[np.bool_]:
        """The mask as bool, shaped (H, W), read-only."""
        if self.data.startswith(PNG_MAGIC):
            bitmap = read_png(self.data, self.height, self.width) > 0
        elif self._is_raw:
            bitmap = np.frombuffer(self.data, np.uint8).reshape(self.height, self.width) > 0
        else:
            # pycocotools' own decoding warns on numpy 2 and does not check the runs.
            runs = run_lengths(self.rle["counts"], self.height, self.width)
            is_inside = np.arange(runs.size) % 2 == 1
            bitmap = np.repeat(is_inside, runs).reshape(self.width, self.height).T
        bitmap.flags.writeable = False
        return bitmap

    @cached_property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE."""
        from pycocotools import mask as coco

        if self.data.startswith(PNG_MAGIC) or self._is_raw:
            encoded: Rle = coco.encode(np.asfortranarray(self.bitmap.astype(np.uint8)))
            return encoded
        if self._is_polygons:
            # A polygon of two corners encloses nothing, and pycocotools does not take it.
            parts = [polygon for polygon in self.polygons if len(polygon) >= 6]
            if not parts:
                return EncodedMask(bytes(self.height * self.width), self.height, self.width).rle
            return coco.merge(coco.frPyObjects(parts, self.height, self.width))  # type: ignore[no-any-return]
        run_lengths(self.data, self.height, self.width)
        return Rle(size=[self.height, self.width], counts=self.data)

    @cached_property
    def polygons(self) -> list[Polygon]:
        """The outlines as [x, y, x, y, ...] in pixels: the server's, or traced around the pixels of the mask.

        Polygons have no holes: where they matter, use the bitmap.
        """
        return _read_polygons(self.data) if self._is_polygons else trace(self.bitmap)

    @cached_property
    def area(self) -> int:
        """The number of pixels."""
        from pycocotools import mask as coco

        return int(coco.area(self.rle))

    @property
    def _is_raw(self) -> bool:
        # RLE and JSON have no bytes below 0x20, raw masks no others.
        return len(self.data) == self.height * self.width and self.data[0] <= 1

    @property
    def _is_polygons(self) -> bool:
        # `[` may begin an RLE, `]` cannot end one: its continuation bit is set.
        return self.data.startswith(b"[") and self.data.endswith(b"]")


def read_png(data: bytes, height: int, width: int) -> NDArray[Any]:
    """Return a PNG's grey values or palette indices, uint8 or uint16 (H, W), or raise `ProtocolError`."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.size != (width, height):
                raise ProtocolError(f"a PNG of {image.width} x {image.height} came for an image of {width} x {height}")
            if image.mode not in {"1", "L", "P", "I;16", "I"}:
                raise ProtocolError(f"a label PNG has one channel, got mode {image.mode!r}")
            pixels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ProtocolError(f"a PNG that cannot be read: {error}") from error
    return pixels.astype(np.uint8 if image.mode in {"1", "L", "P"} else np.uint16)


def run_lengths(counts: bytes, height: int, width: int) -> NDArray[np.int64]:
    """Return the runs of COCO compressed RLE counts, down the columns, outside and inside by turns.

    Raises `ProtocolError` where they are not those of a `height` x `width` mask; pycocotools would return
    uninitialised memory.
    """
    symbols = np.frombuffer(counts, np.uint8).astype(np.int64)
    if symbols.size == 0 or symbols.min() < _RLE_FIRST or symbols.max() > _RLE_LAST:
        raise ProtocolError(f"not COCO RLE counts: {counts[:40]!r}")
    symbols -= _RLE_FIRST
    is_last = (symbols & 0x20) == 0
    ends = np.flatnonzero(is_last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    if not is_last[-1] or (ends - starts).max() > 6:
        raise ProtocolError(f"COCO RLE counts that end within a number: {counts[-40:]!r}")
    run = np.repeat(np.arange(ends.size), ends - starts + 1)
    place = np.arange(symbols.size) - starts[run]
    lengths = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    negative = (symbols[ends] & 0x10) != 0
    lengths[negative] -= np.int64(1) << (5 * (place[ends[negative]] + 1))
    # From the fourth on, each number is the difference to the run of the same value before it.
    lengths[1::2] = np.cumsum(lengths[1::2])
    lengths[2::2] = np.cumsum(lengths[2::2])
    if lengths.min() < 0 or lengths.max() > height * width or int(lengths.sum()) != height * width:
        raise ProtocolError(f"COCO RLE runs of {int(lengths.sum())} pixels came for an image of {height} x {width}")
    return lengths


def _read_polygons(data: bytes) -> list[Polygon]:
    try:
        polygons = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"polygons that are not JSON: {data[:40]!r}") from error
    for polygon in polygons:
        if not isinstance(polygon, list) or len(polygon) % 2 or not all(type(n) in {int, float} for n in polygon):
            raise ProtocolError(f"a polygon is a list of x, y, x, y, ..., got {str(polygon)[:80]}")
    return [[float(number) for number in polygon] for polygon in polygons]


def trace(bitmap: NDArray[np.bool_]) -> list[Polygon]:
    """Return the outer outlines of a mask's 4-connected parts, along the edges of its pixels, clockwise."""
    following = _directed_edges(bitmap)
    outlines = []
    while following:
        start = next(iter(following))
        loop = _follow(following, start)
        # A hole runs the other way round, which makes its signed area negative.
        x, y = loop[:, 0], loop[:, 1]
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:
            outlines.append(loop[_is_corner(loop)].astype(float).ravel().tolist())
    return outlines


def _directed_edges(bitmap: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Return the pixel edges between inside and outside as corner -> next corners, inside on the right."""
    padded = np.pad(bitmap, 1)
    inside = padded[1:-1, 1:-1]
    sides = (
        (padded[:-2, 1:-1], (0, 0), (1, 0)),
        (padded[1:-1, 2:], (1, 0), (1, 1)),
        (padded[2:, 1:-1], (1, 1), (0, 1)),
        (padded[1:-1, :-2], (0, 1), (0, 0)),
    )
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for beyond, (from_x, from_y), (to_x, to_y) in sides:
        rows, columns = (index.tolist() for index in np.nonzero(inside & ~beyond))
        for x, y in zip(columns, rows, strict=True):
            following[x + from_x, y + from_y].append((x + to_x, y + to_y))
    return following


def _follow(following: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> NDArray[np.int64]:
    """Take one loop out of `following` and return its points as (N, 2), x before y."""
    points = [start]
    heading = (0, 0)
    while True:
        x, y = points[-1]
        choices = following[x, y]
        # Where two parts touch at a corner the right turn stays with the same part.
        right = (x - heading[1], y + heading[0])
        point = right if right in choices else choices[0]
        choices.remove(point)
        if not choices:
            del following[x, y]
        if point == start:
            return np.array(points)
        heading = (point[0] - x, point[1] - y)
        points.append(point)


def _is_corner(loop: NDArray[np.int64]) -> NDArray[np.bool_]:
    step = np.roll(loop, -1, axis=0) - loop
    corner: NDArray[np.bool_] = (step != np.roll(step, 1, axis=0)).any(axis=1)
    return corner


def read_labels(data: bytes, height: int, width: int) -> NDArray[Any]:
    """Return the label map, PNG or raw little-endian, as uint8 or uint16 shaped (H, W)."""
    if data.startswith(PNG_MAGIC):
        return read_png(data, height, width)
    for dtype in (np.dtype("u1"), np.dtype("<u2")):
        if len(data) == height * width * dtype.itemsize:
            return np.frombuffer(data, dtype).reshape(height, width).copy()
    raise ProtocolError(f"a label map of {len(data)} bytes came for an image of {height} x {width}")
