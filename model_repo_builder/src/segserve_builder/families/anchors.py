"""The families of dense detectors: RetinaNet, SSD and SSDlite with raw heads, by torchvision's names of outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    EvidenceWeight,
    Family,
    FamilyEvidence,
    InspectedNetwork,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    check_logits,
    described,
    described_all,
    float_output,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.stages.decode_anchors import DecodeAnchors
from segserve_builder.stages.nms import Nms
from segserve_builder.values import Anchors, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

LOGITS: Final = "cls_logits"
DELTAS: Final = "bbox_regression"
ANCHORS: Final = "anchors"
LEVELS: Final = "levels"
SHAPES: Final = {LOGITS: "[batch, anchors, channels]", DELTAS: "[batch, anchors, 4]", ANCHORS: "[batch, anchors, 4]"}
MOST_DEFAULT_BOXES: Final = 10_000
"""SSD has 8,732 default boxes at 300 x 300, SSDlite 3,234 at 320 x 320; RetinaNet far more, nine per cell."""


@dataclass(frozen=True, kw_only=True)
class AnchorFamily(Family):
    """FP32 outputs `cls_logits` [batch, A, C], `bbox_regression` and `anchors` [batch, A, 4].

    Channels of the logits are class ids; channels that are not classes of the model are ignored. `bbox_regression` is
    dx dy dw dh, `anchors` are x1 y1 x2 y2 in pixels of the network's input. The optional `levels`, INT64 [batch, L],
    are the numbers of anchors of each feature level: torchvision keeps the best 1,000 candidates of each. Without it
    the best 1,000 of all are kept.
    """

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input and the heads' outputs; raises `SignatureError` if the network has others."""
        image, layout = image_input(signature, model)
        outputs = {tensor.name: tensor for tensor in signature.outputs}
        if not SHAPES.keys() <= outputs.keys() <= SHAPES.keys() | {LEVELS}:
            allowed = ", ".join(f"{name!r} FP32 {shape}" for name, shape in SHAPES.items())
            raise SignatureError(
                f"{self.name} has the outputs {allowed}, and optionally {LEVELS!r} INT64 [batch, levels]; "
                f"the network has {described_all(signature.outputs)}"
            )
        heads = [float_output(outputs[name], 3, shape) for name, shape in SHAPES.items()]
        logits, *boxes = heads
        for tensor in boxes:
            if tensor.shape[2] not in (4, None):
                raise SignatureError(f"output {described(tensor)}: its last dimension must be 4")
        numbers = {tensor.shape[1] for tensor in heads} - {None}
        if len(numbers) > 1:
            raise SignatureError(f"outputs {described_all(heads)}: their numbers of anchors must be the same")
        if logits.shape[2] is not None:
            ids = frozenset(item.id for item in model.classes)
            _check_channels(f"output {described(logits)}", logits.shape[2], ids)
        check_logits(heads[0], signature)
        if LEVELS not in outputs:
            return NetworkIO(image, layout, tuple(heads))
        levels = outputs[LEVELS]
        if levels.dtype != "INT64" or len(levels.shape) != 2 or levels.shape[0] != heads[0].shape[0]:
            raise SignatureError(f"output {described(levels)}: it must be INT64 [batch, levels] with the same batch")
        return NetworkIO(image, layout, (*heads, levels))

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Anchors:
        """Return one image's heads and anchors; raises `SignatureError` if shapes do not match or classes lack one.

        `outputs` are float32 [1, A, C], [1, A, 4] and [1, A, 4], and optionally levels, int64 [1, L].
        """
        logits, deltas, anchors, *optional = outputs.values()
        shapes = [logits.shape, deltas.shape, anchors.shape]
        ids = frozenset(item.id for item in model.classes)
        number = logits.shape[1] if logits.ndim == 3 else 0
        if (
            [len(shape) for shape in shapes] != [3, 3, 3]
            or any(shape[:2] != (1, number) for shape in shapes)
            or ((deltas.shape[2], anchors.shape[2]) != (4, 4))
        ):
            observed = ", ".join(str(list(shape)) for shape in shapes)
            raise SignatureError(f"the outputs have shapes {observed}; one image's are [1, A, C], [1, A, 4], [1, A, 4]")
        _check_channels(f"the logits have shape {list(logits.shape)}", logits.shape[2], ids)
        return Anchors(logits[0], deltas[0], anchors[0], _levels(number, optional), transform, ids)

    def class_channels(self, network: InspectedNetwork) -> int | None:
        """Return the number of channels of the logits."""
        logits = next(tensor for tensor in network.signature.outputs if tensor.name == LOGITS)
        return network.shape(logits)[2]

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield the number of anchors, which distinguishes SSD's default boxes from RetinaNet's anchors."""
        logits = next((tensor for tensor in network.signature.outputs if tensor.name == LOGITS), None)
        anchors = None if logits is None else network.shape(logits)[1]
        has_background = self.first_class_id == 1
        if anchors is not None and (anchors < MOST_DEFAULT_BOXES) is has_background:
            meaning = "the background" if has_background else "a class like the others"
            yield FamilyEvidence(EvidenceWeight.OBSERVATION, f"channel 0 of its logits is {meaning}")


def _levels(number: int, optional: list[NDArray[Any]]) -> tuple[int, ...]:
    if not optional:
        return (number,)
    levels = tuple(optional[0].reshape(-1).tolist())
    if sum(levels) != number or min(levels, default=0) < 0:
        raise SignatureError(f"the levels have {', '.join(map(str, levels))} anchors; there are {number} in all")
    return levels


def _check_channels(observed: str, channels: int, ids: frozenset[int]) -> None:
    if max(ids) >= channels:
        raise SignatureError(
            f"{observed}: class {max(ids)} has no channel; class ids must be between 0 and {channels - 1}"
        )


RETINANET: Final = AnchorFamily(
    name="retinanet",
    gives=ValueType.ANCHORS,
    default_postprocess=(DecodeAnchors(), Nms(iou_threshold=0.5)),
    numbers_classes=False,
    output_names=tuple(SHAPES),
)
"""Every channel is a class by itself (sigmoid)."""

SSD: Final = AnchorFamily(
    name="ssd",
    gives=ValueType.ANCHORS,
    default_postprocess=(
        DecodeAnchors(
            activation="softmax", score_threshold=0.01, top_k=400, top_k_of="class", weights=(10.0, 10.0, 5.0, 5.0)
        ),
        Nms(iou_threshold=0.45, max_detections=200),
    ),
    numbers_classes=False,
    output_names=tuple(SHAPES),
    first_class_id=1,
)
"""Channel 0 is the background (softmax); `bbox_regression` is multiplied by the weights 10, 10, 5, 5."""
