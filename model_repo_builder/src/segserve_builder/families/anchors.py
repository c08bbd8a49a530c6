"""What the families of dense detectors share: their outputs by name, the checks of these, and how they are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import described, float_output, image_input
from segserve_builder.values import Anchors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature, TensorSpec
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import ResizeTransform

LOGITS: Final = "cls_logits"
DELTAS: Final = "bbox_regression"
ANCHORS: Final = "anchors"
LEVELS: Final = "levels"
SHAPES: Final = {LOGITS: "[batch, anchors, channels]", DELTAS: "[batch, anchors, 4]", ANCHORS: "[batch, anchors, 4]"}


def network_io(family: str, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
    """Return the image input and the three outputs, with the fourth where there is one; or raise `SignatureError`."""
    image, layout = image_input(signature, pipeline)
    outputs = {tensor.name: tensor for tensor in signature.outputs}
    if not SHAPES.keys() <= outputs.keys() <= SHAPES.keys() | {LEVELS}:
        seen = ", ".join(described(tensor) for tensor in signature.outputs) or "none"
        allowed = ", ".join(f"{name!r} FP32 {shape}" for name, shape in SHAPES.items())
        raise SignatureError(
            f"{family} has the outputs {allowed}, and may have {LEVELS!r} INT64 [batch, levels]; the network has {seen}"
        )
    three = [float_output(outputs[name], pipeline, 3, shape) for name, shape in SHAPES.items()]
    _check_sizes(three, pipeline)
    if LEVELS not in outputs:
        return NetworkIO(image, layout, tuple(three))
    levels = outputs[LEVELS]
    if levels.dtype != "INT64" or len(levels.shape) != 2 or levels.shape[0] != three[0].shape[0]:
        raise SignatureError(f"output {described(levels)}: it must be INT64 [batch, levels], the batch as the others'")
    return NetworkIO(image, layout, (*three, levels))


def read(outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Anchors:
    """Return one image's heads; raises `SignatureError` where shapes do not fit each other or the classes."""
    logits, deltas, anchors, *others = outputs.values()
    shapes = [logits.shape, deltas.shape, anchors.shape]
    ids = frozenset(item.id for item in pipeline.classes)
    number = logits.shape[1] if logits.ndim == 3 else 0
    if (
        [len(shape) for shape in shapes] != [3, 3, 3]
        or any(shape[:2] != (1, number) for shape in shapes)
        or ((deltas.shape[2], anchors.shape[2]) != (4, 4))
    ):
        seen = ", ".join(str(list(shape)) for shape in shapes)
        raise SignatureError(f"the outputs have shapes {seen}; one image's are [1, A, C], [1, A, 4], [1, A, 4]")
    _check_channels(f"the logits have shape {list(logits.shape)}", logits.shape[2], ids)
    return Anchors(logits[0], deltas[0], anchors[0], _levels(number, others), placement, ids)


def _levels(number: int, given: list[NDArray[Any]]) -> tuple[int, ...]:
    if not given:
        return (number,)
    levels = tuple(given[0].reshape(-1).tolist())
    if sum(levels) != number or min(levels, default=0) < 0:
        raise SignatureError(f"the levels have {', '.join(map(str, levels))} anchors; there are {number} in all")
    return levels


def _check_sizes(tensors: list[TensorSpec], pipeline: Pipeline) -> None:
    logits, *boxes = tensors
    for tensor in boxes:
        if tensor.shape[2] not in (4, None):
            raise SignatureError(f"output {described(tensor)}: its last dimension must be 4")
    numbers = {tensor.shape[1] for tensor in tensors} - {None}
    if len(numbers) > 1:
        seen = ", ".join(described(tensor) for tensor in tensors)
        raise SignatureError(f"outputs {seen}: their numbers of anchors must be the same")
    if logits.shape[2] is not None:
        ids = frozenset(item.id for item in pipeline.classes)
        _check_channels(f"output {described(logits)}", logits.shape[2], ids)


def _check_channels(seen: str, channels: int, ids: frozenset[int]) -> None:
    if max(ids) >= channels:
        raise SignatureError(f"{seen}: class {max(ids)} has no channel; the class ids must be of 0 to {channels - 1}")
