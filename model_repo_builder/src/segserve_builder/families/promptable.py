"""The family of promptable networks: an image encoder, and a decoder that turns points and boxes into masks.

Layouts of the decoder are those of segment-anything's `SamOnnxModel` and MobileSAM, of the image part of SAM 2, and of
transformers' `SamModel` and `Sam2Model`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    IMAGENET,
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
    check_batch,
    described,
    described_all,
)
from segserve_builder.families.network_inputs import image_input
from segserve_builder.values import Float32, Instances, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEAST_CHANNELS: Final = 8
"""An embedding has more channels than an image or a mask."""
LABELS: Final = ("INT64", "INT32", "FP32")
MULTIMASK: Final = 3
"""Masks of one prompt, of different extent."""
MAX_BOXES: Final = 32
MOST_MASKS: Final = MULTIMASK * MAX_BOXES
"""Masks of an answer at most."""
EMBEDDINGS: Final = "[1, channels, height, width]"


@dataclass(frozen=True, slots=True)
class DecoderIO:
    """The tensors of a prompt decoder by their roles, None for those that it lacks.

    `embeddings` are its inputs, and `encoded` the encoder's outputs that they take, in order. `points` are FP32
    [1, N, 2] or [1, 1, N, 2] as x y in pixels of the encoder's input, with `labels` for each: 1 of the object, 0 not of
    it, -1 padding, and 2 and 3 the corners of a box if it `takes_boxes`. `mask` are logits [1, 1, h, w] of an earlier
    answer, `has_mask` says whether they count, and `size` is that of the masks which a decoder resizes itself. It
    returns `logits` [1, K, h, w] or [1, 1, K, h, w] over the encoder's input, and `scores` [1, K] or [1, 1, K], the
    predicted IoU.
    """

    encoded: tuple[str, ...]
    embeddings: tuple[str, ...]
    points: TensorSpec
    labels: TensorSpec
    logits: TensorSpec
    scores: TensorSpec
    takes_boxes: bool
    mask: TensorSpec | None = None
    has_mask: str | None = None
    size: TensorSpec | None = None

    @property
    def pads(self) -> bool:
        """Whether prompts without a box end with a point that is none, as `SamOnnxModel` needs them."""
        return self.has_mask is not None and len(self.embeddings) == 1

    @property
    def most_points(self) -> int | None:
        """The number of points that the file fixes, None if it is free."""
        return self.points.shape[-2]

    @property
    def outputs(self) -> tuple[TensorSpec, TensorSpec]:
        """The outputs that answers are read from."""
        return self.logits, self.scores


@dataclass(frozen=True, kw_only=True)
class PromptableFamily(Family):
    """An encoder with FP32 outputs [1, channels, height, width], and the decoder of `DecoderIO`."""

    resizes_once: bool = False
    """Whether logits are resized to the image at once, as SAM 2 does, or to the network's input first."""

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the encoder's image input and its embeddings; raises `SignatureError` if it has none."""
        image, layout = image_input(signature, model, may_be_single=True)
        outputs = tuple(tensor for tensor in signature.outputs if _is_embedding(tensor))
        if not outputs:
            raise SignatureError(
                f"{self.name} needs outputs FP32 {EMBEDDINGS} of at least {LEAST_CHANNELS} channels, the embeddings; "
                f"the network has {described_all(signature.outputs)}"
            )
        for tensor in outputs:
            check_batch("output", tensor)
        return NetworkIO(image, layout, outputs)

    def decoder_io(self, signature: NetworkSignature, encoder: NetworkIO) -> DecoderIO:
        """Return the tensors of the decoder for the embeddings of `encoder`; raises `SignatureError` if one lacks."""
        inputs = _Roles("input", signature.inputs)
        mask = inputs.find("mask", r"mask", ("FP32",), (4,), channels=1)
        has_mask = inputs.find("has mask", r"has_?mask", ("FP32",), (1,))
        size = inputs.find("size", r"size", LABELS, (1, 2), last=2)
        labels = inputs.required("labels", r"label", LABELS, (2, 3))
        points = inputs.required("points", r"point|coord", ("FP32",), (3, 4), last=2)
        if len(points.shape) != len(labels.shape) + 1:
            raise SignatureError(f"the decoder's {described(points)} and {described(labels)} do not fit each other")
        strange = [tensor for tensor in inputs.left if not _is_embedding(tensor)]
        if strange:
            raise SignatureError(
                f"the decoder takes {described_all(strange)}, which nothing feeds: decoders get embeddings, points, "
                "labels, a mask, has_mask and a size, and boxes as two points of the labels 2 and 3; export it "
                "without, or make it a constant of the graph"
            )
        encoded, embeddings = _matched(encoder.outputs, inputs.left)
        outputs = _Roles("output", signature.outputs)
        scores = outputs.required("scores", r"iou|score", ("FP32",), (2, 3))
        logits = outputs.required("masks", r"low_res|pred_masks|mask", ("FP32",), (4, 5))
        return DecoderIO(
            encoded=encoded,
            embeddings=embeddings,
            points=points,
            labels=labels,
            logits=logits,
            scores=scores,
            # Of transformers' decoders, SAM's alone has no labels of corners, and no input of masks either.
            takes_boxes=mask is not None or self.resizes_once,
            mask=mask,
            has_mask=None if has_mask is None else has_mask.name,
            size=size,
        )

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Instances:
        """Return the masks of a prompt in order, each with the predicted IoU as its score.

        `outputs` are the decoder's for the prompts of a request: float32 logits [1, K, h, w] over the network's whole
        input, and scores [1, K]. Logits are resized to that input, cut to the image and resized to its size, as
        `SamOnnxModel` does, unless the family `resizes_once`; a pixel above 0 belongs to the mask. An empty mask has a
        box of zeros.
        """
        import numpy as np

        from segserve_builder.kernels.rle import encode_bitmap
        from segserve_builder.kernels.rle_reader import decode

        logits, scores = (array[0] for array in outputs.values())
        if logits.ndim != 3 or scores.shape != logits.shape[:1]:
            raise SignatureError(f"the decoder's masks {logits.shape} and scores {scores.shape} do not fit each other")
        height, width = transform.height, transform.width
        # One mask at a time has the image's size.
        masks = tuple(encode_bitmap((each > 0).view(np.uint8)) for each in self._at_image(logits, transform))
        boxes = np.zeros((len(masks), 4), np.float32)
        for box, counts in zip(boxes, masks, strict=True):
            window = decode(counts, height, width)
            rows, columns = window.bitmap.shape
            if window.bitmap.size:
                box[:] = window.left, window.top, window.left + columns, window.top + rows
        classes = np.full(len(masks), model.classes[0].id, np.int32)
        return Instances(boxes, np.ascontiguousarray(scores, np.float32), classes, masks, height, width)

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that no output is named as an embedding: any maps have their shapes."""
        return None if any(self.evidence(network)) else f"{self.name} has outputs named as embeddings"

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield that an output is named as an embedding."""
        names = [tensor.name for tensor in network.signature.outputs if _is_embedding(tensor)]
        if any(re.search(r"(?i)embed|high_res_feat", name) for name in names):
            yield FamilyEvidence(EvidenceWeight.NAMES, f"outputs are named {', '.join(names)}")

    def _at_image(self, logits: Float32, transform: ResizeTransform) -> Iterator[Float32]:
        """Yield each of some masks' logits (K, h, w) at the image's pixels, (H, W)."""
        from segserve_builder.kernels.queries import resample
        from segserve_builder.sampling import Axis, axes

        size = transform.input_height, transform.input_width
        grid = logits.shape[1:]
        # Padding takes part in this first step, up to where the image ends.
        first = [Axis(to, 0, cells, cells / to, -0.5) for to, cells in zip(size, grid, strict=True)]
        for each in logits:
            finer = each[None] if self.resizes_once or grid == size else resample(each[None], *first)
            yield resample(finer, *axes(transform, *finer.shape[1:]))[0]


class _Roles:
    """Finds tensors by name, dtype and rank; what was found is not found again."""

    def __init__(self, kind: str, tensors: Sequence[TensorSpec]) -> None:
        self._kind, self._all, self.left = kind, tensors, list(tensors)

    def find(
        self,
        role: str,
        name: str,
        dtypes: Collection[str],
        ranks: Collection[int],
        last: int | None = None,
        channels: int | None = None,
    ) -> TensorSpec | None:
        """Return the tensor of a role, None without one; of several the one whose name has an earlier alternative."""
        fitting = [
            tensor
            for alternative in name.split("|")
            for tensor in self.left
            if re.search(alternative, tensor.name, re.IGNORECASE)
            and tensor.dtype in dtypes
            and len(tensor.shape) in ranks
            and (last is None or tensor.shape[-1] == last)
            and (channels is None or tensor.shape[1] == channels)
        ]
        if not fitting:
            return None
        self.left.remove(fitting[0])
        return fitting[0]

    def required(
        self, role: str, name: str, dtypes: Collection[str], ranks: Collection[int], last: int | None = None
    ) -> TensorSpec:
        found = self.find(role, name, dtypes, ranks, last)
        if found is None:
            raise SignatureError(
                f"the decoder needs an {self._kind} of {role}: {' or '.join(dtypes)}, of "
                f"{' or '.join(map(str, ranks))} dimensions, with {name.replace('|', ' or ')} in its name; it has "
                f"{described_all(self._all)}"
            )
        return found


def _matched(encoded: Sequence[TensorSpec], inputs: Iterable[TensorSpec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the encoder's outputs and the decoder's inputs that are each other's, by name or else by shape."""
    left, pairs = list(encoded), list[tuple[str, str]]()
    for tensor in sorted(inputs, key=lambda tensor: all(tensor.name != each.name for each in encoded)):
        named = [each for each in left if each.name == tensor.name]
        fitting = named or [each for each in left if each.shape[1:] == tensor.shape[1:]]
        if len(fitting) != 1:
            raise SignatureError(
                f"the decoder's input {described(tensor)} must be one of the encoder's outputs, by its name or shape; "
                f"these are {described_all(encoded)}"
            )
        left.remove(fitting[0])
        pairs.append((fitting[0].name, tensor.name))
    if not pairs:
        raise SignatureError(f"the decoder takes none of the encoder's outputs {described_all(encoded)}")
    outputs, taken = zip(*pairs, strict=True)
    return outputs, taken


def _is_embedding(tensor: TensorSpec) -> bool:
    channels = tensor.shape[1] if len(tensor.shape) == 4 else 0
    return tensor.dtype == "FP32" and (channels is None or channels >= LEAST_CHANNELS)


_PREPROCESSING: Final = LibraryPreprocessing(
    networks="segment-anything's and SAM 2's networks",
    resize={},
    normalise=IMAGENET,
    pixels=StageNote("segment-anything and SAM 2 normalise so; an export may do it in the file"),
)
PROMPTABLE: Final = PromptableFamily(
    name="promptable",
    preprocessing=_PREPROCESSING,
    gives=ValueType.INSTANCES,
    default_postprocess=(),
    output_names=("image_embeddings",),
)
PROMPTABLE_SAM2: Final = PromptableFamily(
    name="promptable-sam2",
    preprocessing=_PREPROCESSING,
    gives=ValueType.INSTANCES,
    default_postprocess=(),
    output_names=("image_embed", "high_res_feats_0", "high_res_feats_1"),
    resizes_once=True,
)
