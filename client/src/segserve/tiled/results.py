"""Results of large images: a map, or a table of objects, on disk or in memory.

Their exports are written piece by piece: COCO, GeoJSON, TIFF, PNG.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from segserve.errors import CheckpointError, ImageTooLargeError, ResultTypeError, package_of_extra
from segserve.results import objects
from segserve.results.annotation import Annotation
from segserve.results.masks import EncodedMask
from segserve.results.result import PanopticResult, PanopticSegment, SemanticResult
from segserve.results.values import SegmentClass
from segserve.tiled.checkpoint import PART, read_json
from segserve.tiled.merging import TiledObject
from segserve.tiled.sources import MAX_DECODED_PIXELS
from segserve.tiled.tile_masks import in_the_image
from segserve_common.errors import BadRequestError
from segserve_common.files import replacing

RESULT: Final = "result.json"
OBJECTS: Final = "objects.jsonl"
TiledT = TypeVar("TiledT", bound="TiledSemanticResult | TiledObjects")
MAX_PIXELS_IN_MEMORY: Final = 268_435_456
"""Pixels of the largest result that is held in memory; larger results need a folder."""
MOST_SEGMENTS: Final = 65_535
MAX_TABLE_IN_MEMORY: Final = 536_870_912
LABELS, IDS = "labels", "ids"
TIFF_TILE: Final = 512
GDAL_NODATA: Final = 42113
LARGEST_CLASSIC_TIFF: Final = 4_000_000_000
# COCO's tools count runs with 32 bits.
MAX_COCO_PIXELS: Final = (1 << 32) - 1


@dataclass(frozen=True, eq=False)
class TiledResult:
    """The common part of every large image's result.

    `size` is height and width. `revisions` are the revisions that answered, more than one only if a change was allowed.
    `areas` are pixels by class name. `tiles` is the total number of tiles, `sent` the number sent by this call: fewer
    if a checkpoint had some, `at_limit` the number whose answer reached the limit of objects (`max_detections`, or the
    model's) and was perhaps cut. `folder` holds the result, or is None for a result in memory. `nodata` is the value in
    maps of pixels without data, which count in no area, or None if the image has data everywhere.
    """

    model: str
    kind: str
    revisions: tuple[str, ...]
    size: tuple[int, int]
    classes: tuple[SegmentClass, ...]
    areas: Mapping[str, int]
    tiles: int
    sent: int
    folder: Path | None
    nodata: int | None = field(default=None, kw_only=True)
    at_limit: int = field(default=0, kw_only=True)

    @property
    def revision(self) -> str:
        """The revision that answered; the first by name if there were several."""
        return self.revisions[0]

    def _common(self) -> dict[str, Any]:
        """Return the fields of every result in memory; raises `ImageTooLargeError` above `MAX_PIXELS_IN_MEMORY`."""
        height, width = self.size
        if height * width > MAX_PIXELS_IN_MEMORY:
            raise ImageTooLargeError(
                f"a result in memory may have up to {MAX_PIXELS_IN_MEMORY} pixels, this one has {width} x {height}: "
                "read its map by windows, or write it with `segserve.tiled.results`"
            )
        return {name: getattr(self, name) for name in ("model", "revision", "size", "classes")}

    def square_kilometres(self, affine: Sequence[float]) -> float:
        """Return the area on the ground. `affine` maps pixels to metres, in the order of rasterio's `transform`."""
        a, b, _, d, e, *_ = affine
        height, width = self.size
        return abs(a * e - b * d) * height * width / 1e6


@dataclass(frozen=True, eq=False)
class TiledSemanticResult(TiledResult):
    """A class for every pixel: `labels` (H, W), uint8 or uint16; a numpy array if in memory.

    In a folder it is a zarr array, or with `labels="npy"` a read-only memory map.
    """

    labels: Any

    def to_result(self) -> SemanticResult:
        """Return the result as of `Client.segment`, for its pictures and exports; pixels without data have no class.

        Raises `ImageTooLargeError` for a result that is too large for memory.
        """
        common, labels = self._common(), np.asarray(self.labels[:])
        encoded = labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()
        return SemanticResult(**common, areas=self.areas, confidence=None, encoded=encoded, encoded_masks={})


_TYPES: Final[Mapping[str, tuple[type[Any], type[Any], str]]] = {
    "instance": (objects.Instance, objects.InstanceResult, "instances"),
    "panoptic": (PanopticSegment, PanopticResult, "segments"),
    "keypoints": (objects.KeypointDetection, objects.KeypointResult, "detections"),
    "detection": (objects.Detection, objects.DetectionResult, "detections"),
}
"""The types of an object and of a result in memory by task, and the field of the objects."""


@dataclass(frozen=True, eq=False)
class TiledObjects(TiledResult):
    """The objects of a large image from top to bottom; objects in a folder are read from disk during iteration.

    `ids` is the map of their ids, uint32 (H, W), 0 for no object; None if not requested. `held` are the objects of a
    result in memory.
    """

    count: int
    ids: Any
    held: Sequence[TiledObject] | None = None

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[TiledObject]:
        if self.held is not None:
            return iter(self.held)
        return read_objects(self._table)

    def to_result(self) -> Any:
        """Return the result as of `Client.segment`, best score first, for its pictures and exports.

        Raises `ImageTooLargeError` for a result that is too large for memory, or of more than 65,535 segments.
        """
        common = self._common()
        of_one, of_all, name = _TYPES[self.kind]
        found = tuple(of_one(**self._fields(one)) for one in sorted(self, key=lambda one: -one.score))
        if self.kind != "panoptic":
            return of_all(**common, **{name: found})
        if len(found) > MOST_SEGMENTS:
            raise ImageTooLargeError(f"a result in memory may have {MOST_SEGMENTS} segments, got {len(found)}")
        encoded = np.asarray(self.ids[:]).astype("<u2").tobytes()
        return of_all(**common, **{name: found}, encoded=encoded, encoded_masks={})

    def _fields(self, one: TiledObject) -> dict[str, Any]:
        """Return the fields of an object in a result in memory."""
        row = {name: getattr(one, name) for name in ("box", "score", "class_id", "class_name")}
        if self.kind == "panoptic":
            return row | {"id": one.id, "is_thing": one.rle is not None, "area": one.area}
        if one.points is not None:
            row["points"] = np.array(one.points, np.float32)
        if one.rle is not None:
            rle = in_the_image(one.mask, one.origin or (0, 0), *self.size)
            row["encoded"] = EncodedMask(rle["counts"].encode(), *self.size)
        return row

    @property
    def _table(self) -> Path:
        if self.folder is None:
            raise ValueError("the objects are in memory")
        return self.folder / OBJECTS


def row_of(found: TiledObject) -> dict[str, Any]:
    """Return an object's line of `objects.jsonl`."""
    row: dict[str, Any] = {
        "id": found.id,
        "class_id": found.class_id,
        "class": found.class_name,
        "score": round(found.score, 6),
        "box": [round(side, 3) for side in found.box],
        "area": found.area,
    }
    if found.rle is not None and found.origin is not None:
        row |= {"origin": list(found.origin), "rle": found.rle}
    if found.points is not None:
        row["points"] = [[round(number, 3) for number in point] for point in found.points]
    return row | {"tiles": list(found.tiles)}


def object_of(row: Mapping[str, Any]) -> TiledObject:
    """Read the output of `row_of`."""
    x1, y1, x2, y2 = row["box"]
    origin = row.get("origin")
    points = row.get("points")
    return TiledObject(
        id=row["id"],
        class_id=row["class_id"],
        class_name=row["class"],
        score=row["score"],
        box=(x1, y1, x2, y2),
        area=row["area"],
        origin=None if origin is None else (origin[0], origin[1]),
        rle=row.get("rle"),
        points=None if points is None else tuple((x, y, score) for x, y, score in points),
        tiles=tuple(row["tiles"]),
    )


def read_objects(path: Path) -> Iterator[TiledObject]:
    """Yield the objects of a table, line by line."""
    with path.open() as lines:
        for line in lines:
            yield object_of(json.loads(line))


@overload
def open_result(folder: str | Path, *, expect: type[TiledT]) -> TiledT: ...
@overload
def open_result(folder: str | Path, *, expect: None = ...) -> TiledSemanticResult | TiledObjects: ...
def open_result(folder: str | Path, *, expect: type[Any] | None = None) -> Any:
    """Open the result of `segment_tiled(..., out=folder)`.

    Raises `CheckpointError` if there is no complete one, and `ResultTypeError` if it is not of the type `expect`.
    """
    folder = Path(folder)
    value = read_json(folder / RESULT)
    if value is None:
        raise CheckpointError(f"{str(folder)!r} has no {RESULT}: it holds no run, or an unfinished one")
    check_expected(expect, value["kind"], f"{str(folder)!r} holds")
    return from_folder(folder, value, sent=0)


def check_expected(expect: type[TiledResult] | None, kind: str, subject: str) -> None:
    """Raise `ResultTypeError` if the result of a task is of another type; `subject` is what returns or holds it."""
    returned: type[TiledResult] = TiledSemanticResult if kind == "semantic" else TiledObjects
    if expect not in (None, returned):
        raise ResultTypeError(
            f"{subject} a {returned.__name__}: use expect={returned.__name__}, "
            f"got {getattr(expect, '__name__', repr(expect))}"
        )


def from_folder(folder: Path, value: Mapping[str, Any], *, sent: int) -> TiledSemanticResult | TiledObjects:
    """Return the result described by a folder's `result.json`."""
    common = read_common(value) | {"sent": sent, "folder": folder}
    if value["kind"] == "semantic":
        return TiledSemanticResult(**common, labels=_open_map(folder, LABELS))
    return TiledObjects(**common, count=value["objects"], ids=_open_map(folder, IDS))


def in_memory(folder: Path, value: Mapping[str, Any], *, sent: int) -> TiledSemanticResult | TiledObjects:
    """Return the result in memory, from a folder that will be deleted.

    Raises `ImageTooLargeError` if the table of objects is too large for that.
    """
    common = read_common(value) | {"sent": sent, "folder": None}
    if value["kind"] == "semantic":
        return TiledSemanticResult(**common, labels=np.array(_open_map(folder, LABELS)))
    size = (folder / OBJECTS).stat().st_size
    if size > MAX_TABLE_IN_MEMORY:
        raise ImageTooLargeError(
            f"the table of {value['objects']} objects has {size} bytes; up to {MAX_TABLE_IN_MEMORY} are held in "
            "memory. Set a folder with out="
        )
    ids = _open_map(folder, IDS)
    held = tuple(read_objects(folder / OBJECTS))
    return TiledObjects(**common, count=len(held), ids=None if ids is None else np.array(ids), held=held)


def read_common(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `result.json` that every type of result has."""
    height, width = value["size"]
    classes = tuple(
        SegmentClass(one["id"], one["name"], None if one["colour"] is None else (*one["colour"],))
        for one in value["classes"]
    )
    return {
        "model": value["model"],
        "kind": value["kind"],
        "revisions": tuple(value["revisions"]),
        "size": (height, width),
        "classes": classes,
        "areas": dict(value["areas"]),
        "tiles": value["tiles"],
        "nodata": value["run"].get("nodata"),
        "at_limit": value.get("tilesAtLimit", 0),
    }


def _open_map(folder: Path, name: str) -> Any:
    if (folder / f"{name}.zarr").is_dir():
        import zarr

        return zarr.open_array(str(folder / f"{name}.zarr"), mode="r")
    if (folder / f"{name}.npy").is_file():
        return np.load(folder / f"{name}.npy", mmap_mode="r")
    return None


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
