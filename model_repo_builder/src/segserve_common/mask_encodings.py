"""Masks and label maps as answers encode them: PNG, raw bytes and polygons, from strangers."""

from __future__ import annotations

import io
import json
import math
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve_common.errors import ProtocolError
from segserve_common.rle import RunLengths

Polygon: TypeAlias = list[float]

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"


def read_mask(data: bytes, height: int, width: int) -> NDArray[np.bool_] | None:
    """Return the bitmap (H, W) of a mask sent as PNG or raw bytes, None for other encodings."""
    if data.startswith(PNG_MAGIC):
        return read_png(data, height, width) > 0
    if _is_raw(data, height, width):
        return np.frombuffer(data, np.uint8).reshape(height, width) > 0
    return None


def is_polygons(data: bytes) -> bool:
    """Return whether a mask is sent as polygons: `[` may start an RLE, but `]`, which continues, cannot end one."""
    return data.startswith(b"[") and data.endswith(b"]")


def is_run_lengths(data: bytes, height: int, width: int) -> bool:
    """Return whether a mask is sent as RLE counts, which are not checked, or as what is no mask."""
    return not (data.startswith(PNG_MAGIC) or _is_raw(data, height, width) or is_polygons(data))


def _is_raw(data: bytes, height: int, width: int) -> bool:
    # Bytes below 0x20 occur in raw masks only, never in RLE or JSON.
    return len(data) == height * width and data[0] <= 1


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


def read_polygons(data: bytes, height: int, width: int) -> list[Polygon]:
    """Return the polygons [x, y, x, y, ...] of a mask; raises `ProtocolError` for other JSON, and for far points."""
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


def run_length_counts(data: bytes, height: int, width: int) -> bytes:
    """Return a mask in any encoding as COCO's compressed RLE counts, which are checked.

    Raises `ProtocolError` if it is not a mask of this size.
    """
    from pycocotools import mask as coco

    bitmap = read_mask(data, height, width)
    if bitmap is not None:
        return coco.encode(np.asfortranarray(bitmap, dtype=np.uint8))["counts"]  # type: ignore[no-any-return]
    if not is_polygons(data):
        RunLengths.read([data], height, width)
        return data
    # A polygon with two corners encloses nothing, and pycocotools rejects it.
    parts = [polygon for polygon in read_polygons(data, height, width) if len(polygon) >= 6]
    if not parts:
        (rle,) = coco.frPyObjects([{"size": [height, width], "counts": [height * width]}], height, width)
        return rle["counts"]  # type: ignore[no-any-return]
    return coco.merge(coco.frPyObjects(parts, height, width))["counts"]  # type: ignore[no-any-return]


def annotation_counts(segmentation: Any, height: int, width: int) -> bytes:
    """Return a COCO annotation's `segmentation` as compressed RLE counts: polygons, run lengths as text or numbers.

    Raises `ProtocolError` for one that is not of this image.
    """
    from pycocotools import mask as coco

    if isinstance(segmentation, list):
        return run_length_counts(json.dumps(segmentation).encode(), height, width)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise ProtocolError(f"a segmentation must be polygons, or size and counts, got {str(segmentation)[:80]}")
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise ProtocolError(f"run lengths of the size {str(size)[:40]} are not of an image of {height} x {width}")
    if isinstance(counts, str):
        data = counts.encode()
        RunLengths.read([data], height, width)
        return data
    # pycocotools checks neither.
    if not (isinstance(counts, list) and all(type(run) is int and run >= 0 for run in counts)):
        raise ProtocolError(f"run lengths must be non-negative integers, got {str(counts)[:80]}")
    if sum(counts) != height * width:
        raise ProtocolError(f"run lengths cover {sum(counts)} pixels, but the image is {height} x {width}")
    encoded: bytes = coco.frPyObjects({"size": [height, width], "counts": counts}, height, width)["counts"]
    return encoded
