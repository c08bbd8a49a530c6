"""Encodes a task's answer as the public outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve_builder.errors import BadImageError
from segserve_builder.spec.model_spec import Output
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.pipeline import Pipeline
from segserve_builder.values import Candidates, ClassMasks, Instances, KeypointDetections, LabelMap, Panoptic

if TYPE_CHECKING:
    from numpy.typing import NDArray

Makers: TypeAlias = "dict[str, Callable[[], NDArray[Any]]]"
"""Functions that compute the outputs, by name."""

ENCODINGS: Final = ("rle", "polygons", "png", "raw")
OVERLAYS: Final = ("png", "webp")
MAP_DEFAULT: Final = "png"
MASKS_DEFAULT: Final = "rle"
FEW_CLASSES: Final = 8


def encode(value: Any, pipeline: Pipeline, request: RequestOptions, wanted: frozenset[str]) -> dict[str, NDArray[Any]]:
    """Return the `wanted` public outputs of the task, by name; REVISION is not among them.

    Types and shapes follow the wire contract: BYTES tensors are object arrays of bytes, empty if the encoding puts its
    answer into another output. Only `wanted` outputs are computed. Raises `BadImageError` if a request sets an encoding
    for a task without masks.
    """
    makers = MAKERS[type(value)](value, pipeline, request)
    return {name: make() for name, make in makers.items() if name in wanted}


def _label_map(value: LabelMap, pipeline: Pipeline, request: RequestOptions) -> Makers:
    import numpy as np

    from segserve_builder.imaging.probabilities import mean_confidence

    labels, number = value.labels, len(pipeline.classes)
    encoding = _encoding(pipeline, request, MAP_DEFAULT)
    return {
        "SIZE": lambda: np.array(labels.shape, np.int32),
        "LABELS": lambda: _objects(_label_file(labels, [item.colour for item in pipeline.classes], encoding)),
        "MASKS": lambda: _objects(_label_masks(labels, range(number), encoding, pipeline.output)),
        "CLASSES": lambda: np.arange(number, dtype=np.int32),
        "AREAS": lambda: label_areas(labels, number),
        "CONFIDENCE": lambda: mean_confidence(value, number),
    }


def _class_masks(value: ClassMasks, pipeline: Pipeline, request: RequestOptions) -> Makers:
    import numpy as np

    size, encoding = (value.height, value.width), _encoding(pipeline, request, MASKS_DEFAULT)
    return {
        "SIZE": lambda: np.array(size, np.int32),
        "LABELS": lambda: _objects([]),
        "MASKS": lambda: _objects(_recoded(value.masks, size, encoding, pipeline.output)),
        "CLASSES": lambda: np.arange(len(value.masks), dtype=np.int32),
        "AREAS": lambda: np.ascontiguousarray(value.areas, np.int64),
        "CONFIDENCE": lambda: np.ascontiguousarray(value.confidence, np.float32),
    }


def _instances(value: Instances, pipeline: Pipeline, request: RequestOptions) -> Makers:
    size, encoding = (value.height, value.width), _encoding(pipeline, request, MASKS_DEFAULT)
    masks = {"MASKS": lambda: _objects(_recoded(value.masks, size, encoding, pipeline.output))}
    return _detections(value, *size) | masks


def _candidates(value: Candidates, pipeline: Pipeline, request: RequestOptions) -> Makers:
    _check_no_encoding(request)
    return _detections(value, value.transform.height, value.transform.width)


def _keypoints(value: KeypointDetections, pipeline: Pipeline, request: RequestOptions) -> Makers:
    import numpy as np

    _check_no_encoding(request)
    points = {"KEYPOINTS": lambda: np.ascontiguousarray(value.points, np.float32)}
    return _detections(value, value.height, value.width) | points


def _panoptic(value: Panoptic, pipeline: Pipeline, request: RequestOptions) -> Makers:
    import numpy as np

    from segserve_builder.imaging.masks import segments_json

    numbers = [segment.id for segment in value.segments]
    ids = value.ids.astype(np.uint8) if max(numbers, default=0) < 256 else value.ids
    encoding = _encoding(pipeline, request, MAP_DEFAULT)
    colours: dict[int, str | None] = {item.id: item.colour for item in pipeline.classes}
    palette = ["#000000"] + [None] * max(numbers, default=0)
    for segment in value.segments:
        palette[segment.id] = colours.get(segment.class_id)
    return {
        "SIZE": lambda: np.array(ids.shape, np.int32),
        "LABELS": lambda: _objects(_label_file(ids, palette, encoding)),
        "SEGMENTS": lambda: _objects([segments_json(ids, value.segments)]),
        "MASKS": lambda: _objects(_label_masks(ids, numbers, encoding, pipeline.output)),
    }


def _detections(value: Candidates | Instances | KeypointDetections, height: int, width: int) -> Makers:
    import numpy as np

    edge = np.array([width, height] * 2, np.float32)
    return {
        "SIZE": lambda: np.array([height, width], np.int32),
        "BOXES": lambda: np.ascontiguousarray(np.clip(value.boxes, 0, edge), np.float32),
        "SCORES": lambda: np.ascontiguousarray(value.scores, np.float32),
        "CLASSES": lambda: np.ascontiguousarray(value.classes, np.int32),
    }


def _encoding(pipeline: Pipeline, request: RequestOptions, default: str) -> str:
    return request.encoding or pipeline.output.encoding or default


def _check_no_encoding(request: RequestOptions) -> None:
    if request.encoding is not None:
        raise BadImageError("parameter 'encoding' is for models with masks; this one answers without")


MAKERS: Final[Mapping[type, Callable[[Any, Pipeline, RequestOptions], Makers]]] = {
    LabelMap: _label_map,
    ClassMasks: _class_masks,
    Instances: _instances,
    Candidates: _candidates,
    KeypointDetections: _keypoints,
    Panoptic: _panoptic,
}


def label_areas(labels: NDArray[Any], number: int) -> NDArray[Any]:
    """Return the pixels of each label below `number` of a map (H, W)."""
    import numpy as np

    if number > FEW_CLASSES:
        return np.bincount(labels.ravel(), minlength=number).astype(np.int64)
    # Comparing bytes and counting them is several times faster than a histogram, for each of a few classes.
    return np.array([np.count_nonzero(labels == label) for label in range(number)], np.int64)


def _objects(items: Iterable[bytes]) -> NDArray[Any]:
    import numpy as np

    listed = list(items)
    array = np.empty(len(listed), dtype=np.object_)
    array[:] = listed
    return array


def _label_file(labels: NDArray[Any], colours: Sequence[str | None], encoding: str) -> Iterable[bytes]:
    """Return the map as one file, nothing for encodings of masks."""
    if encoding == "raw":
        data: bytes = labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()
        return [data]
    if encoding != "png":
        return []
    from segserve_builder.imaging.masks import label_png

    return [label_png(labels, tuple(colours))]


def _label_masks(labels: NDArray[Any], numbers: Sequence[int], encoding: str, output: Output) -> Iterable[bytes]:
    """Return a mask for each of `numbers`, nothing for encodings of the map."""
    import numpy as np

    from segserve_builder.imaging.masks import polygons_json
    from segserve_builder.kernels.label_rle import encode_labels
    from segserve_builder.kernels.rle import MaskWindow, encode_bitmap

    if encoding not in ("rle", "polygons"):
        return []
    if encoding == "rle" and labels.dtype == np.uint8:
        counts = encode_labels(labels, max(numbers, default=0) + 1)
        return [counts[number] for number in numbers]
    bitmaps = ((labels == number).view(np.uint8) for number in numbers)
    if encoding == "rle":
        return map(encode_bitmap, bitmaps)
    return (polygons_json(MaskWindow(bitmap, 0, 0), output.polygon_tolerance) for bitmap in bitmaps)


def _recoded(masks: Sequence[bytes], size: tuple[int, int], encoding: str, output: Output) -> Iterable[bytes]:
    """Return COCO RLE masks in an encoding."""
    if encoding == "rle":
        return masks
    from segserve_builder.imaging.masks import mask_png, polygons_json
    from segserve_builder.kernels.rle_reader import decode, decode_bitmap

    if encoding == "polygons":
        return (polygons_json(decode(counts, *size), output.polygon_tolerance) for counts in masks)
    bitmaps = (decode_bitmap(counts, *size) for counts in masks)
    if encoding == "png":
        return (mask_png(bitmap) for bitmap in bitmaps)
    return (bitmap.tobytes() for bitmap in bitmaps)
