"""Turns label maps and instances into the public outputs, in the encoding that is asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_builder.values import Instances, LabelMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from segserve_builder.stages.base import Request
    from segserve_builder.steps import Pipeline

    Outputs = dict[str, NDArray[Any]]

ENCODINGS: Final = ("rle", "polygons", "png", "raw")
SEMANTIC_DEFAULT: Final = "png"
INSTANCE_DEFAULT: Final = "rle"
FEW_CLASSES: Final = 8


def encode(value: LabelMap | Instances, pipeline: Pipeline, request: Request, wanted: frozenset[str]) -> Outputs:
    """Return those of the task's public outputs that are `wanted`; REVISION is not among them.

    The arrays are as the wire contract says: BYTES tensors are object arrays of bytes, empty where the encoding has
    its answer in another output. Outputs that are not wanted are not computed.
    """
    chosen = request.encoding or pipeline.output.encoding
    if isinstance(value, LabelMap):
        makers = _semantic(value, pipeline, chosen or SEMANTIC_DEFAULT)
    else:
        makers = _instance(value, chosen or INSTANCE_DEFAULT)
    return {name: make() for name, make in makers.items() if name in wanted}


def _semantic(value: LabelMap, pipeline: Pipeline, encoding: str) -> Mapping[str, Callable[[], NDArray[Any]]]:
    import numpy as np

    from segserve_builder.confidence import mean_confidence

    labels, number = value.labels, len(pipeline.classes)
    return {
        "SIZE": lambda: np.array(labels.shape, np.int32),
        "LABELS": lambda: _objects([_label_file(labels, pipeline, encoding)] if encoding in ("png", "raw") else []),
        "MASKS": lambda: _objects(_class_masks(labels, number, encoding) if encoding in ("rle", "polygons") else []),
        "CLASSES": lambda: np.arange(number, dtype=np.int32),
        "AREAS": lambda: _areas(labels, number),
        "CONFIDENCE": lambda: mean_confidence(value, number),
    }


def _instance(value: Instances, encoding: str) -> Mapping[str, Callable[[], NDArray[Any]]]:
    import numpy as np

    return {
        "SIZE": lambda: np.array([value.height, value.width], np.int32),
        "BOXES": lambda: np.ascontiguousarray(value.boxes, np.float32),
        "SCORES": lambda: np.ascontiguousarray(value.scores, np.float32),
        "CLASSES": lambda: np.ascontiguousarray(value.classes, np.int32),
        "MASKS": lambda: _objects(_instance_masks(value, encoding)),
    }


def _areas(labels: NDArray[Any], number: int) -> NDArray[Any]:
    import numpy as np

    if number > FEW_CLASSES:
        return np.bincount(labels.ravel(), minlength=number).astype(np.int64)
    # Comparing bytes and counting them is several times faster than a histogram, for each of a few classes.
    return np.array([np.count_nonzero(labels == label) for label in range(number)], np.int64)


def _objects(items: Iterable[bytes]) -> NDArray[Any]:
    import numpy as np

    found = list(items)
    array = np.empty(len(found), dtype=np.object_)
    array[:] = found
    return array


def _label_file(labels: NDArray[Any], pipeline: Pipeline, encoding: str) -> bytes:
    if encoding == "raw":
        data: bytes = labels.astype(labels.dtype.newbyteorder("<"), copy=False).tobytes()
        return data
    from segserve_builder.png import label_png

    return label_png(labels, tuple(item.colour for item in pipeline.classes))


def _class_masks(labels: NDArray[Any], number: int, encoding: str) -> Iterable[bytes]:
    import numpy as np

    from segserve_builder.kernels.label_rle import encode_labels
    from segserve_builder.kernels.rle import Window, encode_bitmap
    from segserve_builder.polygons import polygons_json

    if encoding == "rle" and labels.dtype == np.uint8:
        return encode_labels(labels, number)
    bitmaps = ((labels == label).view(np.uint8) for label in range(number))
    if encoding == "rle":
        return map(encode_bitmap, bitmaps)
    return (polygons_json(Window(bitmap, 0, 0)) for bitmap in bitmaps)


def _instance_masks(value: Instances, encoding: str) -> Iterable[bytes]:
    if encoding == "rle":
        return value.masks
    from segserve_builder.kernels.rle import decode, decode_bitmap
    from segserve_builder.png import mask_png
    from segserve_builder.polygons import polygons_json

    size = (value.height, value.width)
    if encoding == "polygons":
        return (polygons_json(decode(counts, *size)) for counts in value.masks)
    bitmaps = (decode_bitmap(counts, *size) for counts in value.masks)
    if encoding == "png":
        return (mask_png(bitmap) for bitmap in bitmaps)
    return (bitmap.tobytes() for bitmap in bitmaps)
