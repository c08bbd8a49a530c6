"""Readers of a model's answers and configurations; malformed ones raise `ProtocolError`."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.errors import AnswerTooLargeError, ResultTypeError
from segserve.results.images import PIXELS, image_size
from segserve.results.masks import EncodedMask
from segserve.results.objects import (
    Detection,
    DetectionResult,
    Instance,
    InstanceResult,
    KeypointDetection,
    KeypointResult,
)
from segserve.results.result import PanopticResult, PanopticSegment, Result, SemanticResult
from segserve.results.values import ModelInfo, OutOfDistribution, PixelFormat, SegmentClass
from segserve_common import MAX_IMAGE_PIXELS
from segserve_common.drawing.canvas import Rectangle
from segserve_common.drawing.palette import colour_of
from segserve_common.errors import BadRequestError, ProtocolError
from segserve_common.kserve import InferAnswer, Tensor

CONTINUED: Final = "CONTINUED"
OUT_OF_DISTRIBUTION: Final = "OUT_OF_DISTRIBUTION"
EMBEDDING_ID: Final = "EMBEDDING_ID"
OPTIONAL_OUTPUTS: Final = (CONTINUED, OUT_OF_DISTRIBUTION)
"""Outputs that one revision of a model may have and another lack."""
REVISION_HEADER: Final = "x-segserve-revision"
SMALL_PIXELS: Final = 2**20
_DETECTION: Final = ("REVISION", "SIZE", "BOXES", "SCORES", "CLASSES")
# A model's task follows from outputs that no other task has; the first match counts.
OUTPUTS: Final = {
    "KEYPOINTS": (*_DETECTION, "KEYPOINTS"),
    "SEGMENTS": ("REVISION", "SIZE", "LABELS", "SEGMENTS", "MASKS"),
    "AREAS": ("REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS"),
    "MASKS": (*_DETECTION, "MASKS"),
    "BOXES": _DETECTION,
}

Size: TypeAlias = tuple[int, int]


def wanted_outputs(
    info: ModelInfo, *, confidence: bool, continued: bool = False, prompted: bool = False
) -> tuple[str, ...]:
    """Return the outputs to request: all that a result holds, and CONFIDENCE, which costs time, only with `confidence`.

    With `continued` also what a model that keeps streams says of the image's stream; `prompted` the id of the image's
    embedding. Raises `ProtocolError` for a model that lacks the outputs of segserve's contract, and `BadRequestError`
    for a prompt to a model that takes none, and no prompt to one that needs some.
    """
    if prompted and EMBEDDING_ID not in info.outputs:
        raise BadRequestError(f"model {info.model!r} takes no clicks and boxes: segment images with it as a whole")
    if not prompted and EMBEDDING_ID in info.outputs:
        raise BadRequestError(
            f"model {info.model!r} segments what clicks and boxes select: use `Client.prompt`, or `segserve predict` "
            "with --point or --box"
        )
    names = next((names for mark, names in OUTPUTS.items() if mark in info.outputs), _DETECTION)
    missing = [name for name in names if name not in info.outputs]
    if missing:
        raise ProtocolError(
            f"model {info.model!r} does not have the outputs of a segserve model: it lacks "
            f"{', '.join(missing)} and has {', '.join(sorted(info.outputs)) or 'none'}"
        )
    more = {"CONFIDENCE": confidence, CONTINUED: continued, OUT_OF_DISTRIBUTION: True, EMBEDDING_ID: prompted}
    return (*names, *(name for name, is_wanted in more.items() if is_wanted and name in info.outputs))


def check_expected(expect: type[Result] | None, info: ModelInfo) -> None:
    """Raise `ResultTypeError` if the model returns another type of result, and for what is not such a type."""
    if expect is None:
        return
    types = {mark: known for mark, (known, _) in _READERS.items()}
    if expect not in types.values():
        allowed = ", ".join(known.__name__ for known in types.values())
        raise ResultTypeError(f"expect must be one of {allowed}, got {getattr(expect, '__name__', repr(expect))}")
    returned = next((known for mark, known in types.items() if mark in info.outputs), None)
    if returned is not None and returned is not expect:
        raise ResultTypeError(
            f"model {info.model!r} returns {returned.__name__}, not {expect.__name__}: use "
            f"expect={returned.__name__}, or another model",
            model=info.model,
            revision=info.revision,
        )


def read_model_info(
    model: str, outputs: Iterable[str], parameters: Mapping[str, str], pixels: PixelFormat | None = None
) -> ModelInfo:
    """Return a model's info from its configuration: the names of its outputs and the builder's parameters.

    The parameter `revision` is the revision's name; `classes` is a JSON list of objects with id, name and optionally
    colour (#rrggbb); `maxDetections` is a number. Raises `ProtocolError` for other content.
    """
    try:
        classes = tuple(
            SegmentClass(int(entry["id"]), str(entry["name"]), colour_of(entry.get("colour")))
            for entry in json.loads(parameters.get("classes", "[]"))
        )
        low, high = json.loads(parameters.get("window", "[0, 65535]"))
        if pixels is not None and "window" in parameters:
            pixels = replace(pixels, window=(int(low), int(high)))
        limit = int(parameters["maxDetections"]) if "maxDetections" in parameters else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"a parameter of model {model!r} is malformed: {error!r}") from error
    return ModelInfo(model, frozenset(outputs), parameters.get("revision"), classes, pixels, limit)


def read_pixel_format(datatype: object, dims: Iterable[object]) -> PixelFormat | None:
    """Return the format of a model's input PIXELS, declared as TYPE_UINT8 and [-1, -1, 3]; None for any other."""
    match datatype, tuple(dims):
        case ("TYPE_UINT8" | "TYPE_UINT16") as name, (_, _, 1 | 3 as channels):
            return PixelFormat(int(channels), name.removeprefix("TYPE_"))
        case _:
            return None


def read_revision(answer: InferAnswer) -> str:
    """Return the name of the revision that answered; raises `ProtocolError` if there is not exactly one."""
    items = answer["REVISION"].to_items()
    if len(items) != 1:
        raise ProtocolError(f"REVISION must be one text, got {len(items)}")
    return items[0].decode(errors="replace")


def read_embedding_id(answer: InferAnswer) -> str:
    """Return the id of an image's embedding on the server, empty if it was not kept."""
    items = answer[EMBEDDING_ID].to_items()
    if len(items) != 1:
        raise ProtocolError(f"{EMBEDDING_ID} must be one text, got {len(items)}")
    return items[0].decode(errors="replace")


def _read_continued(answer: InferAnswer) -> bool | None:
    """Return whether the server kept earlier frames of the image's stream; None if the answer does not say."""
    if CONTINUED not in answer.outputs:
        return None
    return bool(_numbers(answer, CONTINUED, "INT32", 1)[0])


def _read_out_of_distribution(answer: InferAnswer) -> OutOfDistribution | None:
    """Return how unlike the model's usual images the image is; None if the answer does not say."""
    if OUT_OF_DISTRIBUTION not in answer.outputs:
        return None
    numbers = _numbers(answer, OUT_OF_DISTRIBUTION, "FP32", None).tolist()
    if len(numbers) not in (0, 2):
        raise ProtocolError(f"{OUT_OF_DISTRIBUTION} must be a score and a threshold, or nothing, got {numbers}")
    return OutOfDistribution(*numbers) if numbers else None


def read_result(
    answer: InferAnswer, info: ModelInfo, *, request_id: str | None = None, max_detections: int | None = None
) -> Result:
    """Return the typed result of an answer; class names and colours come from `info`.

    `max_detections` is the request's, if it has one: the model's limit of objects does not count then.
    Raises `ProtocolError` for a malformed answer. Masks are decoded lazily and are not checked here.
    """
    height, width = _numbers(answer, "SIZE", "INT32", 2).tolist()
    if height < 1 or width < 1 or height * width > MAX_IMAGE_PIXELS:
        raise ProtocolError(f"SIZE must be the height and width of an image, got {height} x {width}")
    mark = next((mark for mark in OUTPUTS if mark in answer.outputs), "BOXES")
    _, read = _READERS[mark]
    limit = info.max_detections if max_detections is None else max_detections
    about = {
        "model": info.model,
        "revision": read_revision(answer),
        "size": (height, width),
        "request_id": request_id,
        "continued": _read_continued(answer),
        "out_of_distribution": _read_out_of_distribution(answer),
        "at_limit": limit is not None and "SCORES" in answer.outputs and math.prod(answer["SCORES"].shape) >= limit,
    }
    return read(answer, info, about)


def check_size(size: Size, image: Tensor) -> None:
    """Raise `AnswerTooLargeError` if an answer is of a larger image than the one sent, whose size its header says.

    Masks of that size would be made when they are used.
    """
    height, width = size
    if image.name != PIXELS and height * width <= SMALL_PIXELS:
        return  # reading the header of a file takes longer than a mask of this size takes memory
    sent = image_size(image)
    if sent is not None and height * width > sent[0] * sent[1]:
        raise AnswerTooLargeError(
            f"the answer is of an image of {width} x {height} pixels, but one of {sent[1]} x {sent[0]} was sent"
        )


def _read_detections(answer: InferAnswer, info: ModelInfo, about: Mapping[str, Any]) -> DetectionResult:
    rows, classes = _read_boxes(answer, info)
    return DetectionResult(classes=classes, detections=tuple(Detection(*row) for row in rows), **about)


def _read_keypoints(answer: InferAnswer, info: ModelInfo, about: Mapping[str, Any]) -> KeypointResult:
    rows, classes = _read_boxes(answer, info)
    points = _numbers(answer, "KEYPOINTS", "FP32", len(rows), None, 3)
    detections = tuple(KeypointDetection(*row, own) for row, own in zip(rows, points, strict=True))
    return KeypointResult(classes=classes, detections=detections, **about)


def _read_panoptic(answer: InferAnswer, info: ModelInfo, about: Mapping[str, Any]) -> PanopticResult:
    (table,) = answer["SEGMENTS"].to_items() or (b"[]",)
    try:
        segments = tuple(_segment(row, info) for row in json.loads(table))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"SEGMENTS must be a JSON list of segments, got {table[:200]!r}: {error!r}") from error
    labels, masks = answer["LABELS"].to_items(), answer["MASKS"].to_items()
    if (len(labels), len(masks)) not in {(1, 0), (0, len(segments))}:
        raise ProtocolError(
            f"expected one LABELS, or MASKS for {len(segments)} segments; "
            f"got {len(labels)} LABELS and {len(masks)} MASKS"
        )
    return PanopticResult(
        classes=_all_classes(info, [segment.class_id for segment in segments]),
        segments=segments,
        encoded=labels[0] if labels else None,
        encoded_masks={one.id: EncodedMask(mask, *about["size"]) for one, mask in zip(segments, masks, strict=False)},
        **about,
    )


def _segment(row: Mapping[str, Any], info: ModelInfo) -> PanopticSegment:
    class_id = int(row["class"])
    x1, y1, x2, y2 = (_finite(side) for side in row["box"])
    return PanopticSegment(
        id=int(row["id"]),
        class_id=class_id,
        class_name=info.class_of(class_id).name,
        is_thing=bool(row["isThing"]),
        score=_finite(row["score"]),
        area=int(row["area"]),
        box=(x1, y1, x2, y2),
    )


def _read_boxes(
    answer: InferAnswer, info: ModelInfo
) -> tuple[list[tuple[Rectangle, float, int, str]], tuple[SegmentClass, ...]]:
    """Return box, score, class id and class name of each object, and the classes of the result."""
    scores = _numbers(answer, "SCORES", "FP32", None).tolist()
    boxes = _numbers(answer, "BOXES", "FP32", len(scores), 4).tolist()
    class_ids = _numbers(answer, "CLASSES", "INT32", len(scores)).tolist()
    classes = _all_classes(info, class_ids)
    names = {known.id: known.name for known in classes}
    return list(zip(map(tuple, boxes), scores, class_ids, [names[each] for each in class_ids], strict=True)), classes


def _read_instances(answer: InferAnswer, info: ModelInfo, about: Mapping[str, Any]) -> InstanceResult:
    rows, classes = _read_boxes(answer, info)
    masks = answer["MASKS"].to_items()
    if len(masks) != len(rows):
        raise ProtocolError(f"expected a mask for each of {len(rows)} boxes, got {len(masks)} MASKS")
    height, width = about["size"]
    instances = [Instance(*row, EncodedMask(mask, height, width)) for row, mask in zip(rows, masks, strict=True)]
    return InstanceResult(classes=classes, instances=tuple(instances), **about)


def _read_semantic(answer: InferAnswer, info: ModelInfo, about: Mapping[str, Any]) -> SemanticResult:
    areas = _numbers(answer, "AREAS", "INT64", None).tolist()
    class_ids = _numbers(answer, "CLASSES", "INT32", len(areas)).tolist()
    labels, masks = answer["LABELS"].to_items(), answer["MASKS"].to_items()
    if (len(labels), len(masks)) not in {(1, 0), (0, len(areas))}:
        raise ProtocolError(
            f"expected one LABELS, or MASKS for {len(areas)} classes; got {len(labels)} LABELS and {len(masks)} MASKS"
        )
    names = [info.class_of(class_id).name for class_id in class_ids]
    confidence = None
    if "CONFIDENCE" in answer.outputs:
        values = _numbers(answer, "CONFIDENCE", "FP32", len(areas)).tolist()
        confidence = dict(zip(names, values, strict=True))
    return SemanticResult(
        classes=_all_classes(info, class_ids),
        areas=dict(zip(names, areas, strict=True)),
        confidence=confidence,
        encoded=labels[0] if labels else None,
        encoded_masks={key: EncodedMask(mask, *about["size"]) for key, mask in zip(class_ids, masks, strict=False)},
        **about,
    )


_READERS: Final[Mapping[str, tuple[type[Result], Callable[[InferAnswer, ModelInfo, Mapping[str, Any]], Result]]]] = {
    "KEYPOINTS": (KeypointResult, _read_keypoints),
    "SEGMENTS": (PanopticResult, _read_panoptic),
    "AREAS": (SemanticResult, _read_semantic),
    "MASKS": (InstanceResult, _read_instances),
    "BOXES": (DetectionResult, _read_detections),
}
"""The type of a result and what reads it, by the output that only such answers have, most specific first."""


def _all_classes(info: ModelInfo, class_ids: Iterable[int]) -> tuple[SegmentClass, ...]:
    """Return the model's classes by id, and any class in the answer that the model does not name."""
    classes = {known.id: known for known in info.classes}
    for class_id in class_ids:
        if class_id not in classes:
            classes[class_id] = info.class_of(class_id)
    return tuple(classes[class_id] for class_id in sorted(classes))


def _numbers(answer: InferAnswer, name: str, datatype: str, *shape: int | None) -> NDArray[Any]:
    tensor = answer[name]
    fits = tensor.shape == shape or (
        len(tensor.shape) == len(shape)
        and all(expected in (None, actual) for actual, expected in zip(tensor.shape, shape, strict=True))
    )
    if tensor.datatype != datatype or not fits:
        expected = [-1 if side is None else side for side in shape]
        raise ProtocolError(f"{name} must be {datatype} {expected}, got {tensor.datatype} {list(tensor.shape)}")
    numbers = tensor.to_array()
    # Neither JSON nor a drawing can hold NaN or infinity.
    if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
        raise ProtocolError(f"{name} has numbers that are not finite")
    return numbers


def _finite(number: Any) -> float:
    if not math.isfinite(number):
        raise ValueError(f"{number!r} is not a finite number")
    return float(number)
