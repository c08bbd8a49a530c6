"""Exports of a large image's result, written piece by piece: COCO, GeoJSON, TIFF, PNG."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from segserve.errors import ImageTooLargeError, package_of_extra
from segserve.results.annotation import Annotation
from segserve.results.masks import EncodedMask
from segserve.tiled.checkpoint import PART
from segserve.tiled.merging import TiledObject
from segserve.tiled.results import TiledObjects, TiledSemanticResult
from segserve.tiled.sources import MAX_DECODED_PIXELS
from segserve.tiled.tile_masks import in_the_image
from segserve_common.errors import BadRequestError
from segserve_common.files import replacing

TIFF_TILE: Final = 512
GDAL_NODATA: Final = 42113
LARGEST_CLASSIC_TIFF: Final = 4_000_000_000
# COCO's tools count runs with 32 bits.
MAX_COCO_PIXELS: Final = (1 << 32) - 1


def write_coco(result: TiledObjects, path: Path, file_name: str) -> None:
    """Write the objects as a COCO data set of one image, masks as RLE of the whole image.

    Raises `ImageTooLargeError` above the number of pixels that COCO's RLE can count.
    """
    height, width = result.size
    if height * width > MAX_COCO_PIXELS:
        raise ImageTooLargeError(f"COCO supports up to {MAX_COCO_PIXELS} pixels per image, got {height} x {width}")
    image = {"id": 1, "width": width, "height": height, "file_name": file_name}
    categories = [{"id": known.id, "name": known.name} for known in result.classes]
    with replacing(path, suffix=PART) as partial, partial.open("w") as file:
        file.write(f'{{"images": [{json.dumps(image)}], "categories": {json.dumps(categories)}, "annotations": [')
        for number, found in enumerate(result):
            file.write(("," if number else "") + "\n" + json.dumps(_annotation(found, height, width)))
        file.write("\n]}\n")


def write_geojson(result: TiledObjects, path: Path, affine: Sequence[float] | None = None) -> None:
    """Write the objects as GeoJSON: outlines with holes, or boxes for objects without masks.

    `affine` maps pixels to world coordinates, as in `Segmentation.to_geojson`.
    """
    from segserve.exports.geojson import features_of

    with replacing(path, suffix=PART) as partial, partial.open("w") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        first = True
        for found in result:
            origin = found.origin or (0, 0)
            a, b, c, d, e, f, *rest = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0) if affine is None else affine
            x, y = origin
            left, top = found.origin or (0, 0)
            x1, y1, x2, y2 = found.box
            mask = None if found.rle is None else EncodedMask(found.rle["counts"].encode(), *found.rle["size"])
            points = None if found.points is None else np.array(found.points, np.float32) - (left, top, 0)
            box = (x1 - left, y1 - top, x2 - left, y2 - top)
            for feature in features_of(
                Annotation(found.id, found.class_id, found.class_name, found.score, box, mask, points),
                (a, b, c + a * x + b * y, d, e, f + d * x + e * y, *rest),
            ):
                file.write(("" if first else ",") + "\n" + json.dumps(feature, allow_nan=False))
                first = False
        file.write("\n]}\n")


def write_tiff(result: TiledSemanticResult | TiledObjects, path: Path) -> None:
    """Write the map as a tiled TIFF, or as BigTIFF above 4 GB; raises `MissingExtraError` without the extra `batch`."""
    tifffile = package_of_extra("tifffile", "batch", "writing TIFF")
    labels = _map(result)
    height, width = result.size
    with replacing(path, suffix=PART) as partial:
        tifffile.imwrite(
            partial,
            _tiles(labels, height, width),
            shape=(height, width),
            dtype=labels.dtype,
            tile=(TIFF_TILE, TIFF_TILE),
            photometric="minisblack",
            compression="zlib",
            bigtiff=height * width * labels.dtype.itemsize > LARGEST_CLASSIC_TIFF,
            metadata=None,
            software="segserve",
            extratags=[] if result.nodata is None else [(GDAL_NODATA, "s", 0, str(result.nodata), True)],
        )


def write_png(result: TiledSemanticResult | TiledObjects, path: Path) -> None:
    """Write the map as a PNG, in the colours of the classes if ids fit into 8 bits.

    Raises `ImageTooLargeError` above `MAX_DECODED_PIXELS`, and for ids that do not fit into 16 bits.
    """
    from PIL import Image

    height, width = result.size
    if height * width > MAX_DECODED_PIXELS:
        raise ImageTooLargeError(
            f"a PNG may have up to {MAX_DECODED_PIXELS} pixels; the map has {height} x {width}. Write a TIFF"
        )
    labels = np.asarray(_map(result)[:])
    if labels.dtype.itemsize > 1:
        if labels.max(initial=0) > np.iinfo(np.uint16).max:
            raise ImageTooLargeError(
                f"PNG output is limited to ids up to 65535; the map has {labels.max()}. Write a TIFF"
            )
        picture = Image.fromarray(labels.astype(np.uint16))
    else:
        picture = Image.fromarray(labels).convert("L")
        if isinstance(result, TiledSemanticResult) and any(known.colour for known in result.classes):
            palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
            palette[[0, result.nodata or 0]] = 0
            for known in result.classes:
                if known.colour is not None and known.id < 256:
                    palette[known.id] = known.colour
            picture.putpalette(palette.tobytes())
    with replacing(path, suffix=PART) as partial:
        picture.save(partial, "PNG")


def _map(result: TiledSemanticResult | TiledObjects) -> Any:
    found = result.labels if isinstance(result, TiledSemanticResult) else result.ids
    if found is None:
        raise BadRequestError("the result has no map: request the map of ids with id_map=True (--id-map)")
    return found


def _tiles(labels: Any, height: int, width: int) -> Iterator[NDArray[Any]]:
    for top in range(0, height, TIFF_TILE):
        band = np.asarray(labels[top : top + TIFF_TILE])
        for left in range(0, width, TIFF_TILE):
            part = band[:, left : left + TIFF_TILE]
            yield np.pad(part, ((0, TIFF_TILE - part.shape[0]), (0, TIFF_TILE - part.shape[1])))


def _annotation(found: TiledObject, height: int, width: int) -> dict[str, Any]:
    x1, y1, x2, y2 = found.box
    row: dict[str, Any] = {
        "id": found.id,
        "image_id": 1,
        "category_id": found.class_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": found.area,
        "iscrowd": 0,
        "score": found.score,
    }
    if found.rle is not None and found.origin is not None:
        row["segmentation"] = in_the_image(found.mask, found.origin, height, width)
    if found.points is not None:
        row |= {
            "keypoints": [number for x, y, _ in found.points for number in (x, y, 2)],
            "num_keypoints": len(found.points),
        }
    return row
