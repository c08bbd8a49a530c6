"""The families of query decoders: DETR, Mask2Former and MaskFormer. Each query has class logits, and masks or a box."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    BOX_NAMES,
    IMAGENET,
    USUAL_THRESHOLDS,
    EvidenceWeight,
    Family,
    FamilyEvidence,
    InspectedNetwork,
    LibraryPreprocessing,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    TensorSpec,
    check_grid,
    check_logits,
    described,
    described_all,
    float_output,
    thing_ids,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.stages.detection_queries import DetectionQueries
from segserve_builder.stages.instance_queries import InstanceQueries
from segserve_builder.stages.panoptic_queries import PanopticQueries
from segserve_builder.values import Queries, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES: Final = "[batch, queries, classes]"
MASKS: Final = "[batch, queries, height, width]"
BOXES: Final = "[batch, queries, 4]"
RANKS: Final = {CLASSES: 3, MASKS: 4, BOXES: 3}
MOST_QUERIES: Final = 2000
"""Decoders have 20 to 900 queries; heads with anchors have more rows."""
DEFORMABLE_ATTENTION: Final = "GridSample"


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """An output: the name that transformers gives it, its meaning (CLASSES, MASKS or BOXES), and other names."""

    name: str
    meaning: str
    aliases: tuple[str, ...] = ()

    def of(self, outputs: Iterable[TensorSpec]) -> TensorSpec | None:
        """Return the first of the outputs that has one of its names, None if none has."""
        return next((tensor for tensor in outputs if tensor.name in (self.name, *self.aliases)), None)


@dataclass(frozen=True, kw_only=True)
class QueryFamily(Family):
    """FP32 outputs with a row for each query: class logits, the last class "nothing", with masks or boxes or both.

    With `sigmoid` each class is by itself, and none is "nothing". Boxes are cx cy w h relative to the input, or to the
    image in it if the network gets a mask of the padding. Outputs are found by transformers' names or aliases, or else
    by their shapes.
    """

    gives: ValueType = ValueType.QUERIES
    outputs: tuple[QueryOutput, ...]
    """Class logits first."""
    sigmoid: bool = False
    uses_deformable_attention: bool | None = None
    """Whether the graph samples features; None if that says nothing."""

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input and the family's outputs; raises `SignatureError` if they cannot be identified."""
        image, layout = image_input(signature, model)
        candidates = [tensor for output in self.outputs if (tensor := output.of(signature.outputs)) is not None]
        if len(candidates) < len(self.outputs):
            candidates = [self._by_shape(output, signature, model) for output in self.outputs]
        tensors = tuple(
            float_output(tensor, RANKS[output.meaning], output.meaning)
            for tensor, output in zip(candidates, self.outputs, strict=True)
        )
        if len({tensor.name for tensor in tensors}) < len(tensors):
            roles = ", ".join(f"{output.name!r} {output.meaning}" for output in self.outputs)
            raise SignatureError(
                f"{self.name} has the outputs {roles}; one of the network's would be two of them. "
                f"It has {described_all(signature.outputs)}"
            )
        for tensor, output in zip(tensors, self.outputs, strict=True):
            last = self._last(output, model)
            if last is not None and tensor.shape[-1] not in (None, last):
                raise SignatureError(f"output {described(tensor)}: {self._expected(output, model)}")
            if output.meaning != BOXES:
                check_logits(tensor, signature)
            if (tensor.shape[1] or 0) > MOST_QUERIES:
                raise SignatureError(f"output {described(tensor)}: decoders have at most {MOST_QUERIES} queries")
        return NetworkIO(image, layout, tensors)

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Queries:
        """Return one image's queries; raises `SignatureError` if shapes do not match each other or the classes.

        `outputs` are float32 [1, Q, C + 1], [1, Q, h, w] and [1, Q, 4], as far as the family has them.
        """
        arrays = dict(zip((output.meaning for output in self.outputs), outputs.values(), strict=True))
        number = arrays[CLASSES].shape[1:2]
        for output in self.outputs:
            shape, last = arrays[output.meaning].shape, self._last(output, model)
            fits = len(shape) == RANKS[output.meaning] and shape[0] == 1 and shape[1:2] == number
            if not fits or last not in (None, shape[-1]):
                raise SignatureError(
                    f"{output.name!r} has shape {list(shape)} for one image; {self._expected(output, model)}"
                )
        masks, boxes = arrays.get(MASKS), arrays.get(BOXES)
        if masks is not None:
            check_grid("the masks", masks.shape[2:], transform)
        return Queries(
            arrays[CLASSES][0],
            None if masks is None else masks[0],
            None if boxes is None else boxes[0],
            thing_ids(model),
            transform,
            self.sigmoid,
        )

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        """Return the size of the class logits without "nothing"."""
        outputs = network.signature.outputs
        unnamed = (t for t in outputs if len(t.shape) == 3 and not (self._has_boxes and t.shape[-1] == 4))
        logits = self.outputs[0].of(outputs) or next(unnamed, None)
        last = None if logits is None else network.shape(logits)[-1]
        return None if last is None or last <= self._nothing else last - self._nothing

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that outputs have different numbers of queries: outputs with the family's names, or else any."""
        outputs = network.signature.outputs
        named = [tensor for output in self.outputs if (tensor := output.of(outputs)) is not None]
        tensors = named if len(named) == len(self.outputs) else outputs
        numbers = {network.shape(tensor)[1] for tensor in tensors if len(tensor.shape) >= 3} - {None}
        masks = [tensor for tensor in tensors if len(tensor.shape) == 4]
        if tensors is outputs and any(map(network.is_within_0_and_1, masks)):
            return f"{self.name} has logits of masks; all values of these are within 0 and 1, as a detector's"
        if len(numbers) < 2:
            return None
        listed = " and ".join(map(str, sorted(numbers, key=str)))
        return f"{self.name} has the same number of queries in all outputs; these have {listed}"

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield whether the graph samples features, by which decoders differ, and names that no other family has."""
        samples = DEFORMABLE_ATTENTION in network.operators
        if self.uses_deformable_attention is samples:
            text = "its graph samples features (GridSample), as deformable attention does"
            if not samples:
                text = "its graph has no GridSample, which deformable attention needs"
            yield FamilyEvidence(EvidenceWeight.OBSERVATION, text)
        names = [tensor.name for tensor in network.signature.outputs]
        if all(set(output.aliases).intersection(names) for output in self.outputs):
            weight = EvidenceWeight.NAMES if len(names) == len(self.outputs) else EvidenceWeight.OBSERVATION
            yield FamilyEvidence(weight, f"its outputs are named {', '.join(names)}")

    def _by_shape(self, output: QueryOutput, signature: NetworkSignature, model: ModelContext) -> TensorSpec:
        last = self._last(output, model)
        fitting = [
            tensor
            for tensor in signature.outputs
            if tensor.dtype == "FP32"
            and len(tensor.shape) == RANKS[output.meaning]
            and (output.meaning == BOXES or not BOX_NAMES.search(tensor.name) or "quer" in tensor.name)
            # Boxes, or boxes with a score, of a detector.
            and (output.meaning != CLASSES or self._has_boxes or tensor.shape[-1] not in (4, 5))
            and (last is None or tensor.shape[-1] == last)
        ]
        if len(fitting) == 1:
            return fitting[0]
        names = ", ".join(repr(one.name) for one in self.outputs)
        raise SignatureError(
            f"{len(fitting)} of the outputs may be {output.name!r}: {self._expected(output, model)}. Outputs named "
            f"{names} are found by name. The network has {described_all(signature.outputs)}"
        )

    @property
    def _has_boxes(self) -> bool:
        return any(output.meaning == BOXES for output in self.outputs)

    @property
    def _nothing(self) -> int:
        """The number of channels of the logits that are not a class."""
        return 0 if self.sigmoid else 1

    def _last(self, output: QueryOutput, model: ModelContext) -> int | None:
        """Return the size of the output's last dimension, None if it is free."""
        return {CLASSES: len(model.classes) + self._nothing, BOXES: 4, MASKS: None}[output.meaning]

    def _expected(self, output: QueryOutput, model: ModelContext) -> str:
        number = len(model.classes)
        counted = f", {number} + 1 for the model's classes and for nothing"
        if self.sigmoid:
            counted = f", {number} for the model's classes"
        return f"it must be FP32 {output.meaning}{counted if output.meaning == CLASSES else ''}"


_MASKED: Final = (QueryOutput("class_queries_logits", CLASSES), QueryOutput("masks_queries_logits", MASKS))
_BOXED: Final = (QueryOutput("logits", CLASSES), QueryOutput("pred_boxes", BOXES))
_MASKS: Final = frozenset({"pred_masks", "masks"})
_TASKS: Final = StageNote(
    "the outputs suit panopticQueries, instanceQueries, and semanticQueries with argmax: which one the network was "
    "trained for is not in the file"
)

MASK2FORMER: Final = QueryFamily(
    name="mask2former",
    # transformers interpolates the masks to 384 x 384 before anything else.
    default_postprocess=(PanopticQueries(mask_size=(384, 384)),),
    outputs=_MASKED,
    output_names=tuple(output.name for output in _MASKED),
    architectures=("Mask2FormerForUniversalSegmentation",),
    has_things=True,
    stage_notes=(_TASKS, USUAL_THRESHOLDS),
    uses_deformable_attention=True,
)
"""Stages that a pipeline lists need maskSize [384, 384] to answer as transformers does."""

MASKFORMER: Final = QueryFamily(
    name="maskformer",
    default_postprocess=(PanopticQueries(),),
    outputs=_MASKED,
    output_names=tuple(output.name for output in _MASKED),
    architectures=("MaskFormerForInstanceSegmentation",),
    has_things=True,
    stage_notes=(_TASKS, USUAL_THRESHOLDS),
    uses_deformable_attention=False,
)

EOMT: Final = QueryFamily(
    name="eomt",
    default_postprocess=(PanopticQueries(threshold=0.8, convention="eomt"),),
    outputs=_MASKED,
    output_names=tuple(output.name for output in _MASKED),
    architectures=("EomtForUniversalSegmentation", "EomtDinov3ForUniversalSegmentation"),
    has_things=True,
    stage_notes=(
        StageNote("panopticQueries follows EoMT; checkpoints for semantic or instance segmentation are not supported"),
        USUAL_THRESHOLDS,
    ),
)

DETR: Final = QueryFamily(
    name="detr",
    may_leave_out=_MASKS,
    default_postprocess=(DetectionQueries(),),
    outputs=_BOXED,
    output_names=tuple(output.name for output in _BOXED),
    architectures=("DetrForObjectDetection", "TableTransformerForObjectDetection", "YolosForObjectDetection"),
    uses_deformable_attention=False,
)

DETR_PANOPTIC: Final = QueryFamily(
    name="detr-panoptic",
    default_postprocess=(PanopticQueries(),),
    outputs=(*_BOXED, QueryOutput("pred_masks", MASKS)),
    output_names=(*(output.name for output in _BOXED), "pred_masks"),
    architectures=("DetrForSegmentation",),
    has_things=True,
    stage_notes=(_TASKS, USUAL_THRESHOLDS),
    uses_deformable_attention=False,
)

_RF_DETR: Final = LibraryPreprocessing(
    networks="RF-DETR networks",
    resize={"mode": "stretch", "rounding": "none"},
    normalise=IMAGENET,
    pixels=StageNote("RF-DETR networks take ImageNet's mean and deviation", sure=True),
    output="dets",
)
_SIGMOID: Final = (QueryOutput("logits", CLASSES, ("labels",)), QueryOutput("pred_boxes", BOXES, ("dets",)))

DETR_SIGMOID: Final = QueryFamily(
    name="detr-sigmoid",
    may_leave_out=_MASKS,
    default_postprocess=(DetectionQueries(),),
    outputs=_SIGMOID,
    sigmoid=True,
    output_names=tuple(output.name for output in _SIGMOID),
    architectures=(
        "DFineForObjectDetection",
        "RfDetrForObjectDetection",
        "RTDetrForObjectDetection",
        "RTDetrV2ForObjectDetection",
    ),
    fixed_size_resize="stretch",
    preprocessing=_RF_DETR,
    uses_deformable_attention=True,
)
"""The aliases are the names of RF-DETR's own exports."""

DEFORMABLE_DETR: Final = replace(
    DETR_SIGMOID,
    name="deformable-detr",
    default_postprocess=(DetectionQueries(top_k=100),),
    architectures=(
        "ConditionalDetrForObjectDetection",
        "DabDetrForObjectDetection",
        "DeformableDetrForObjectDetection",
        "LwDetrForObjectDetection",
    ),
    outputs=_BOXED,
    preprocessing=None,
    uses_deformable_attention=None,
)

DETR_SIGMOID_SEG: Final = replace(
    DETR_SIGMOID,
    name="detr-sigmoid-seg",
    default_postprocess=(InstanceQueries(),),
    outputs=(*_SIGMOID, QueryOutput("pred_masks", MASKS, ("masks",))),
    output_names=(*DETR_SIGMOID.output_names, "pred_masks"),
    architectures=("RfDetrForInstanceSegmentation",),
)
