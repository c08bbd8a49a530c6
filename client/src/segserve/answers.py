"""A model's answer and its configuration as typed values; anything malformed raises `ProtocolError`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from segserve.errors import ProtocolError
from segserve.masks import EncodedMask
from segserve.types import Colour, Instance, InstanceResult, ModelInfo, Result, SegmentClass, SemanticResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from segserve.wire import InferAnswer

REVISION_HEADER: Final = "x-segserve-revision"
# What a model's file can allow at most; beyond it an answer of a few bytes would ask for all memory.
MAX_PIXELS: Final = 1_000_000_000
INSTANCE_OUTPUTS: Final = ("REVISION", "SIZE", "BOXES", "SCORES", "CLASSES", "MASKS")
SEMANTIC_OUTPUTS: Final = ("REVISION", "SIZE", "LABELS", "MASKS", "CLASSES", "AREAS")

Size: TypeAlias = tuple[int, int]


def wanted_outputs(info: ModelInfo, *, confidence: bool) -> tuple[str, ...]:
    """Return the outputs to ask a model for: all that a result holds, CONFIDENCE (it costs) only where asked.

    Raises `ProtocolError` for a model without the outputs of segserve's contract.
    """
    wanted = INSTANCE_OUTPUTS if "BOXES" in info.outputs else SEMANTIC_OUTPUTS
    missing = [name for name in wanted if name not in info.outputs]
    if missing:
        raise ProtocolError(
            f"model {info.model!r} does not answer as segserve's models do: it has no output "
            f"{', '.join(missing)}, only {', '.join(sorted(info.outputs)) or 'none'}"
        )
    return (*wanted, "CONFIDENCE") if confidence and "CONFIDENCE" in info.outputs else wanted


def read_model_info(model: str, outputs: Iterable[str], parameters: Mapping[str, str]) -> ModelInfo:
    """Return a model's info from its configuration: the outputs' names and the builder's parameters.

    `revision` is the revision's name, `classes` JSON: a list of objects with id, name and perhaps colour
    (#rrggbb).
    """
    try:
        classes = tuple(
            SegmentClass(int(entry["id"]), str(entry["name"]), _colour(entry.get("colour")))
            for entry in json.loads(parameters.get("classes", "[]"))
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise ProtocolError(f"model {model!r} has a parameter 'classes' of another form: {error!r}") from error
    return ModelInfo(model, frozenset(outputs), parameters.get("revision"), classes)


def read_revision(answer: InferAnswer) -> str:
    """Return the name of the revision that answered."""
    items = answer["REVISION"].to_items()
    if len(items) != 1:
        raise ProtocolError(f"REVISION is one text, got {len(items)}")
    return items[0].decode(errors="replace")


def read_result(answer: InferAnswer, info: ModelInfo) -> Result:
    """Return the typed result of an answer; names and colours of classes come from `info`."""
    revision = read_revision(answer)
    height, width = (int(number) for number in _numbers(answer, "SIZE", "INT32", 2))
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ProtocolError(f"SIZE is height and width of an image, got {height} x {width}")
    if "BOXES" in answer.outputs:
        return _read_instances(answer, info, revision, (height, width))
    return _read_semantic(answer, info, revision, (height, width))


def _read_instances(answer: InferAnswer, info: ModelInfo, revision: str, size: Size) -> InstanceResult:
    masks = answer["MASKS"].to_items()
    boxes = _numbers(answer, "BOXES", "FP32", len(masks), 4).tolist()
    scores = _numbers(answer, "SCORES", "FP32", len(masks)).tolist()
    class_ids = _numbers(answer, "CLASSES", "INT32", len(masks)).tolist()
    instances = tuple(
        Instance((x1, y1, x2, y2), score, class_id, info.class_of(class_id).name, EncodedMask(mask, *size))
        for (x1, y1, x2, y2), score, class_id, mask in zip(boxes, scores, class_ids, masks, strict=True)
    )
    return InstanceResult(info.model, revision, size, _all_classes(info, class_ids), instances)


def _read_semantic(answer: InferAnswer, info: ModelInfo, revision: str, size: Size) -> SemanticResult:
    areas = _numbers(answer, "AREAS", "INT64", None).tolist()
    class_ids = _numbers(answer, "CLASSES", "INT32", len(areas)).tolist()
    labels, masks = answer["LABELS"].to_items(), answer["MASKS"].to_items()
    if (len(labels), len(masks)) not in {(1, 0), (0, len(areas))}:
        raise ProtocolError(
            f"expected one of LABELS, or MASKS for {len(areas)} classes; "
            f"got {len(labels)} of LABELS and {len(masks)} MASKS"
        )
    names = [info.class_of(class_id).name for class_id in class_ids]
    confidence = None
    if "CONFIDENCE" in answer.outputs:
        values = _numbers(answer, "CONFIDENCE", "FP32", len(areas)).tolist()
        confidence = dict(zip(names, values, strict=True))
    return SemanticResult(
        model=info.model,
        revision=revision,
        size=size,
        classes=_all_classes(info, class_ids),
        areas=dict(zip(names, areas, strict=True)),
        confidence=confidence,
        encoded=labels[0] if labels else None,
        encoded_masks={key: EncodedMask(mask, *size) for key, mask in zip(class_ids, masks, strict=False)},
    )


def _all_classes(info: ModelInfo, class_ids: Iterable[int]) -> tuple[SegmentClass, ...]:
    """Return the model's classes in order of id, with those that it has answered but does not name."""
    ids = {known.id for known in info.classes} | set(class_ids)
    return tuple(info.class_of(class_id) for class_id in sorted(ids))


def _numbers(answer: InferAnswer, name: str, datatype: str, *shape: int | None) -> NDArray[Any]:
    tensor = answer[name]
    fits = len(tensor.shape) == len(shape) and all(
        expected in (None, seen) for seen, expected in zip(tensor.shape, shape, strict=True)
    )
    if tensor.datatype != datatype or not fits:
        expected = [-1 if side is None else side for side in shape]
        raise ProtocolError(f"{name} is {datatype} {expected}, got {tensor.datatype} {list(tensor.shape)}")
    return tensor.to_array()


def _colour(text: str | None) -> Colour | None:
    if text is None:
        return None
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue
