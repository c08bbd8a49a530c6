"""The families of detectors that answer with boxes already chosen: Faster, Mask, Cascade and Keypoint R-CNN."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    USUAL_THRESHOLDS,
    EvidenceWeight,
    Family,
    FamilyEvidence,
    InspectedNetwork,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    TensorSpec,
    check_batch,
    check_probabilities,
    described,
    described_all,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.stages.keypoints import Keypoints
from segserve_builder.stages.paste_masks import PasteMasks
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import (
    Candidates,
    Float32,
    HeatmapHeads,
    Int32,
    MaskHeads,
    NoHeads,
    ResizeTransform,
    ValueType,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_HEAD: Final = 256
"""Raw masks are 14 to 112 cells wide, PointRend's 224; larger ones have been pasted into an image."""
ROI_CELLS: Final = 14
"""Raw masks of the usual heads are a multiple of this wide."""
MAP_STRIDES: Final = (1, 2, 4, 8)
"""Pixels of the input by cell, a side, where masks are of the whole image."""


@dataclass(frozen=True, slots=True)
class OutputRole:
    """An output: the names that exporters give it, and for one image its dtypes and its shape, in words and numbers.

    `last` are the sizes of its last dimension, if that distinguishes it from others.
    """

    name: str
    names: frozenset[str]
    dtypes: tuple[str, ...]
    shape: str
    ranks: tuple[int, ...]
    last: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {' or '.join(self.dtypes)} {self.shape}"


BOXES: Final = OutputRole(
    "boxes",
    frozenset({"boxes", "dets", "bboxes", "pred_boxes"}),
    ("FP32",),
    "[N, 4], or [N, 5] with the score",
    (2,),
    (4, 5),
)
LABELS: Final = OutputRole("labels", frozenset({"labels", "classes", "pred_classes"}), ("INT64", "INT32"), "[N]", (1,))
SCORES: Final = OutputRole("scores", frozenset({"scores"}), ("FP32",), "[N]", (1,))
MASKS: Final = OutputRole(
    "masks",
    frozenset({"masks", "pred_masks"}),
    ("FP32",),
    "[N, M, M], [N, 1, M, M] or [N, classes, M, M]",
    (3, 4),
)
HEATMAPS: Final = OutputRole(
    "heatmaps",
    frozenset({"heatmaps", "keypoints", "keypoint_logits", "keypoint_heatmaps", "pred_keypoint_heatmaps"}),
    ("FP32",),
    "[N, K, M, M]",
    (4,),
)
ROLE_NAMES: Final = BOXES.names | LABELS.names | SCORES.names | MASKS.names | HEATMAPS.names


@dataclass(frozen=True, kw_only=True)
class DetectionFamily(Family):
    """Boxes FP32 [N, 4] in pixels of the network's input, labels INT64 or INT32 [N] and scores FP32 [N].

    Boxes may be [N, 5] with the score; all may have a batch in front. The network has chosen among its boxes: Faster
    and Cascade R-CNN end so, as do RetinaNet, SSD and FCOS exported with their own NMS.
    """

    numbers_classes: bool = False
    batched: bool = False
    may_leave_out: frozenset[str] = MASKS.names | HEATMAPS.names | {"keypoints_scores"}
    heads: OutputRole | None = None
    """The output with one mask or set of heat maps for each box."""

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input, boxes, labels, heads, and scores if they are separate.

        Outputs are identified by their names, or else by dtype and shape. Either all have a batch in front of the shape
        in `OutputRole`, or none has. Raises `SignatureError` if one is not identified.
        """
        image, layout = image_input(signature, model, may_be_single=True)
        roles = (BOXES, LABELS) if self.heads is None else (BOXES, LABELS, self.heads)
        search = _Search(self.name, roles, signature.outputs)
        boxes = search.find(BOXES, None)
        batched = len(boxes.shape) == 3
        tensors = [boxes, *(search.find(role, batched) for role in roles[1:])]
        if boxes.shape[-1] != 5:
            tensors.append(search.find(SCORES, batched))
        numbers = {tensor.shape[int(batched)] for tensor in tensors} - {None}
        if len(numbers) > 1:
            raise SignatureError(f"{self.name} has as many of each for an image; these are {described_all(tensors)}")
        if batched:
            for tensor in tensors:
                check_batch("output", tensor)
        else:
            tensors = [replace(tensor, shape=(1, *tensor.shape)) for tensor in tensors]
        io = NetworkIO(image, layout, tuple(tensors), batched)
        if self.heads is not None:
            _check_raw(f"output {described(tensors[2])}", tensors[2].shape[-2:], io.image_size)
        return io

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Candidates:
        """Return one image's boxes, in pixels of the original image, with their heads if the family has any.

        Detections of the background, or of nothing (a label of 0 or less that is not a class), are dropped. Raises
        `SignatureError` for shapes that do not match each other, and for other labels that are not a class. `outputs`
        are float32 boxes [1, N, 4 or 5], integer labels [1, N], float32 heads [1, N, ...] and scores [1, N].
        """
        boxes, labels, *others = outputs.values()
        scores_output = others[0 if self.heads is None else 1 :]
        first = (1, *boxes.shape[1:2])
        width = 4 if scores_output else 5
        if boxes.ndim != 3 or boxes.shape[2] != width or any(a.shape[:2] != first for a in outputs.values()):
            shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in outputs.items())
            raise SignatureError(
                f"{self.name}'s outputs have the shapes {shapes}; for one image each begins with [1, N]"
            )
        scores: Float32 = scores_output[0][0] if scores_output else boxes[0, :, 4]
        check_probabilities("scores of detections", scores)
        rows, classes = _known_classes(labels[0], model)
        image_boxes = transform.to_image_coordinates(boxes[0, rows, :4])
        candidates = Candidates(image_boxes, scores[rows], classes, NoHeads(), transform)
        return candidates if self.heads is None else self._with_heads(candidates, others[0][0, rows])

    def _with_heads(self, candidates: Candidates, heads: NDArray[Any]) -> Candidates:
        raise NotImplementedError


class MaskDetectionFamily(DetectionFamily):
    """`DetectionFamily` with masks FP32 [N, 1, M, M]: probabilities over each box, M x M cells as the head gives them.

    Masks may have a channel per label, or no channel.
    """

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield that an output holds square masks."""
        shapes = [tensor.shape for tensor in network.signature.outputs]
        if any(len(shape) in (3, 4) and shape[-1] is not None and shape[-1] == shape[-2] for shape in shapes):
            yield FamilyEvidence(EvidenceWeight.OBSERVATION, "an output has one small square mask per box")

    def _with_heads(self, candidates: Candidates, heads: NDArray[Any]) -> Candidates:
        shape = list(heads.shape)
        if heads.ndim not in MASKS.ranks:
            raise SignatureError(f"the masks have shape {shape}; for one image they are {MASKS.shape}")
        p = candidates.transform
        _check_raw(f"the masks have shape {shape}", heads.shape[-2:], (p.input_height, p.input_width))
        masks = heads if heads.ndim == 3 else _of_labels(heads, candidates.classes)
        check_probabilities("masks", masks)
        return replace(candidates, heads=MaskHeads(masks))


class KeypointDetectionFamily(DetectionFamily):
    """`DetectionFamily` with heat maps FP32 [N, K, M, M]: logits over each box, one map per keypoint."""

    def _with_heads(self, candidates: Candidates, heads: NDArray[Any]) -> Candidates:
        if heads.ndim not in HEATMAPS.ranks:
            raise SignatureError(f"the heat maps have shape {list(heads.shape)}; they are {HEATMAPS.shape}")
        return replace(candidates, heads=HeatmapHeads(heads))


class _Search:
    """Finds outputs by their names first, then by their form among those that no name of any role has claimed."""

    def __init__(self, family: str, roles: tuple[OutputRole, ...], outputs: Sequence[TensorSpec]) -> None:
        self._family, self._roles, self._outputs = family, (*roles, SCORES), outputs
        self._named = {role: [t for t in outputs if t.name.lower() in role.names] for role in self._roles}
        self._taken = [tensor for tensor in outputs if tensor.name.lower() in ROLE_NAMES]

    def find(self, role: OutputRole, batched: bool | None) -> TensorSpec:
        """Return the one output of a role; with `batched` None it may have a batch or not.

        Raises `SignatureError` if none or several may be it.
        """
        extra = (0, 1) if batched is None else (int(batched),)
        ranks = [rank + more for rank in role.ranks for more in extra]
        # Of the integers detectron2's size of the image, [2], is no label.
        candidates = self._named[role] or [t for t in self._outputs if t not in self._taken and t.shape != (2,)]
        fitting = [t for t in candidates if t.dtype in role.dtypes and len(t.shape) in ranks and _ends(t, role)]
        if len(fitting) == 1:
            self._taken.append(fitting[0])
            return fitting[0]
        batch = {None: "with or without a batch in front", True: "with a batch in front", False: "without a batch"}
        names = ", ".join(one.name for one in self._roles)
        raise SignatureError(
            f"{self._family} needs the output {role}, {batch[batched]}; {len(fitting) or 'none'} of the network's "
            f"outputs may be it: {described_all(self._outputs)}. The family has {'; '.join(map(str, self._roles))} "
            f"(unless the boxes have them); outputs named {names} are found by name"
        )


def _ends(tensor: TensorSpec, role: OutputRole) -> bool:
    return not role.last or tensor.shape[-1] is None or tensor.shape[-1] in role.last


def _known_classes(labels: NDArray[Any], model: ModelContext) -> tuple[NDArray[Any], Int32]:
    """Return the rows whose label is a class, and their labels."""
    import numpy as np

    ids = np.array([item.id for item in model.classes])
    known = np.isin(labels, ids)
    strange = labels[~known & (labels > 0)]
    if strange.size:
        allowed = ", ".join(str(number) for number in ids)
        raise SignatureError(f"the network's label {strange[0]} is not a class of the model; its classes are {allowed}")
    rows = np.flatnonzero(known)
    return rows, labels[rows].astype(np.int32)


def _check_raw(observed: str, cells: tuple[int | None, ...], image: tuple[int, int] | None) -> None:
    height, width = cells
    sizes = [size for size in cells if size is not None]
    strides = [each for each in MAP_STRIDES if image and cells == tuple(-(-side // each) for side in image)]
    is_map = bool(strides) and (strides[0] == 1 or sizes[0] % ROI_CELLS > 0)
    if is_map or max(sizes, default=1) > LARGEST_HEAD or len(set(sizes)) > 1:
        raise SignatureError(
            f"{observed}: masks of {height or '?'} x {width or '?'} are already pasted into the image or of all of "
            f"it; export the raw heads, M x M (28 x 28) per box and at most {LARGEST_HEAD} x {LARGEST_HEAD}"
        )


def _of_labels(masks: Float32, labels: NDArray[Any]) -> Float32:
    """Return each box's mask of its own label, (N, M, M), of masks (N, channels, M, M)."""
    import numpy as np

    channels = masks.shape[1]
    if channels == 1:
        return masks[:, 0]
    if labels.size and labels.max() >= channels:
        raise SignatureError(f"the masks have {channels} channels, one per label; label {labels.max()} has none")
    own: Float32 = masks[np.arange(len(labels)), labels]
    return own


FASTER_RCNN: Final = DetectionFamily(
    name="faster-rcnn",
    gives=ValueType.BOXES,
    default_postprocess=(ScoreThreshold(threshold=0.05),),
    output_names=("boxes", "labels", "scores"),
)
MASK_RCNN: Final = MaskDetectionFamily(
    name="mask-rcnn",
    gives=ValueType.MASK_HEADS,
    default_postprocess=(ScoreThreshold(threshold=0.05), PasteMasks()),
    output_names=("boxes", "labels", "scores", "masks"),
    heads=MASKS,
    stage_notes=(
        USUAL_THRESHOLDS,
        StageNote(
            "how masks were drawn into their boxes in training is not in the file: pasteMasks has two conventions, "
            "torchvision (as here) and detectron2"
        ),
    ),
)
KEYPOINT_RCNN: Final = KeypointDetectionFamily(
    name="keypoint-rcnn",
    gives=ValueType.HEATMAPS,
    default_postprocess=(ScoreThreshold(threshold=0.05), Keypoints()),
    output_names=("boxes", "labels", "scores", "keypoints"),
    heads=HEATMAPS,
)
