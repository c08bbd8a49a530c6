"""The family of networks that give every pixel a logit for each class."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import PipelineError, SignatureError
from segserve_builder.families.base import (
    CHANNELS,
    PROBABILITY_OPERATORS,
    EvidenceWeight,
    Family,
    FamilyEvidence,
    InspectedNetwork,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    TensorSpec,
    check_grid,
    check_logits,
    check_probabilities,
    described,
    described_all,
    float_output,
    thing_ids,
)
from segserve_builder.families.network_inputs import image_input, image_tensor
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.values import Float32, Logits, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE: Final = "[batch, classes, height, width]"
SEVERAL: Final = (
    ". Of several maps one is named logits, or has as many channels as there are --classes; detectors' own heads need "
    "their decoding in the file"
)
USUAL_NAMES: Final = frozenset({"logits", "probabilities", "out", "output", "segmentation", "masks", "pred"})
"""Names of the main output beside auxiliary ones, in lower case."""


@dataclass(frozen=True, kw_only=True)
class SemanticLogits(Family):
    """An output, FP32 [batch, classes, h, w]: logits over the network's whole input, of any resolution.

    By default they are logits of a softmax, for one label per pixel (argmax); a single channel is then the logit of the
    second of two classes. With multiLabel each is the logit of a sigmoid, for masks that may overlap, and every class
    has a channel. With `probabilities` the output is the softmax or sigmoid of logits, which are computed from it.
    Classes may be the last dimension. Other maps, as of auxiliary heads, and values of the whole image are left out:
    of the maps with a channel for each class one with a usual name is read, or else the largest.
    """

    probabilities: bool = False
    reads_maps: bool = True

    def tensors(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input and the logits; raises `SignatureError` if the network has others."""
        image, layout = image_input(signature, model)
        maps = {tensor: tensor.shape for tensor in signature.outputs if len(tensor.shape) == 4}
        fitting = [tensor for tensor in maps if _fits(tensor, model)]
        fitting.sort(key=lambda tensor: _preference(tensor.name, tensor.shape, layout))
        size = NetworkIO(image, layout, ()).image_size
        if (not fitting and len(signature.outputs) != 1) or _is_pyramid([maps[each] for each in fitting], size):
            raise SignatureError(
                f"{self.name} has an output FP32 {SHAPE} for the model's {len(model.classes)} classes; "
                f"the network has {described_all(signature.outputs)}{SEVERAL if len(maps) > 1 else ''}"
            )
        logits = float_output((fitting or signature.outputs)[0], 4, SHAPE)
        classes_last = _classes_last(logits.shape, layout, model)
        channels = logits.shape[3 if classes_last else 1]
        if channels is not None:
            _check_channels(f"output {described(logits)}", channels, model)
        if not self.probabilities:
            check_logits(logits, signature, "take the family semantic-probabilities")
        if classes_last and model.inference:
            raise PipelineError(f"output {described(logits)}: inference merges {SHAPE}, and here the classes are last")
        return NetworkIO(image, layout, (logits,))

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Logits:
        """Return one image's logits; raises `SignatureError` if their shape is not [1, classes, h, w].

        `outputs` is one float32 array; the classes may be last.
        """
        import numpy as np

        (values,) = outputs.values()
        if values.ndim != 4 or values.shape[0] != 1:
            raise SignatureError(f"the logits have shape {list(values.shape)}; one image's are [1, classes, h, w]")
        planes: Float32 = values[0]
        if _classes_last(values.shape, "NCHW", model):
            planes = np.ascontiguousarray(planes.transpose(2, 0, 1))
        _check_channels(f"the logits have shape {list(values.shape)}", len(planes), model)
        check_grid("the logits", planes.shape[1:], transform)
        logits = _logits_of(planes, model) if self.probabilities else planes
        return Logits(logits, transform, things=thing_ids(model))

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        """Return the number of channels, or 2 for a single one."""
        output = _likeliest(network)
        if output is None:
            return None
        _, first, _, last = network.shape(output)
        image, colours = image_tensor(network.signature).shape, CHANNELS.values()
        beside_such_images = image[-1] in colours and image[1] not in colours
        is_last = beside_such_images and last is not None and (first is None or first >= last)
        channels = last if is_last else first
        return 2 if channels == 1 else channels

    def implausibility(self, network: InspectedNetwork) -> str | None:
        """Return that maps are a detector's, or that nothing says that values are probabilities, if it needs them."""
        read, outputs = _likeliest(network), network.signature.outputs
        shapes = [network.shape(one) for one in outputs if len(one.shape) == 4]
        alike = [shape for shape in shapes if read is not None and shape[1] == network.shape(read)[1]]
        if _is_pyramid(alike, network.image_size):
            return f"{self.name} has one map for all strides; these are a detector's, of several{SEVERAL}"
        if not self.probabilities or any(self._signs(network)):
            return None
        return f"{self.name} has values within 0 and 1, as after a sigmoid or softmax; the network's are others"

    def evidence(self, network: InspectedNetwork) -> Iterator[FamilyEvidence]:
        """Yield what says that the values are probabilities."""
        if self.probabilities:
            yield from (FamilyEvidence(EvidenceWeight.METADATA, text) for text in self._signs(network))

    @staticmethod
    def _signs(network: InspectedNetwork) -> Iterator[str]:
        output = _likeliest(network)
        if output is None:
            return
        operator = network.signature.last_operators.get(output.name)
        if operator in PROBABILITY_OPERATORS:
            yield f"its graph ends with {operator}"
        elif network.is_within_0_and_1(output):
            yield "all its values are within 0 and 1"


def _preference(name: str, shape: tuple[int | None, ...], layout: str) -> tuple[bool, bool, int]:
    _, first, second, third = (side or 0 for side in shape)
    area = second * (third if layout == "NCHW" else max(first, third))
    return name.lower() not in USUAL_NAMES, name.lower().startswith("aux"), -area


def _likeliest(network: InspectedNetwork) -> TensorSpec | None:
    """Return the output of four dimensions that is read if any number of classes fits; None if several may be it."""
    layout = "NHWC" if image_tensor(network.signature).shape[-1] in CHANNELS.values() else "NCHW"
    maps = [tensor for tensor in network.signature.outputs if len(tensor.shape) == 4]
    ranks = [_preference(tensor.name, network.shape(tensor), layout) for tensor in maps]
    best = [tensor for tensor, rank in zip(maps, ranks, strict=True) if rank == min(ranks)]
    return best[0] if len({network.shape(tensor) for tensor in best}) == 1 else None


def _is_pyramid(shapes: Iterable[tuple[int | None, ...]], size: tuple[int, int] | None) -> bool:
    """Return whether maps of the same channels have several strides, of 8 and more, as detectors' heads."""
    strides = {size[0] // rows for _, _, rows, _ in shapes if size is not None and rows}
    return len(strides) > 1 and min(strides) >= 8


def _fits(tensor: TensorSpec, model: ModelContext) -> bool:
    """Return whether an output may have a channel for each class, second or last."""
    shape = tensor.shape
    return len(shape) == 4 and (shape[1] is None or _is_number(shape[1], model) or _is_number(shape[3], model))


def _is_number(channels: int | None, model: ModelContext) -> bool:
    return channels == len(model.classes) or (channels, len(model.classes)) == (1, 2)


def _classes_last(shape: tuple[int | None, ...], layout: str, model: ModelContext) -> bool:
    """Return whether the last dimension has the classes and the second has not; if it is free, images decide."""
    may_be = shape[1] is not None or layout == "NHWC"
    return may_be and not _is_number(shape[1], model) and _is_number(shape[3], model)


def _logits_of(values: Float32, model: ModelContext) -> Float32:
    """Return logits (C, h, w) with the given probabilities, of a softmax unless the classes are
    independent.

    Raises `SignatureError` if they are not probabilities.
    """
    import numpy as np

    check_probabilities("the family's values", values)
    info = np.finfo(np.float32)
    if len(values) > 1 and not any(isinstance(entry.stage, MultiLabel) for entry in model.postprocess):
        # Softmax adds the same to all classes of a pixel: labels are the same as with the network's own logits.
        logarithms: Float32 = np.log(np.maximum(values, info.tiny))
        return logarithms
    inside = np.clip(values, info.epsneg, 1 - info.epsneg)
    logits: Float32 = np.log(inside) - np.log1p(-inside)
    return logits


def _check_channels(observed: str, channels: int, model: ModelContext) -> None:
    classes = len(model.classes)
    multi_label = [entry.stage for entry in model.postprocess if isinstance(entry.stage, MultiLabel)]
    for stage in multi_label:
        stage.limits(channels)
    if channels != classes and not (channels == 1 and classes == 2 and not multi_label):
        allowed = "2, or 1 (the logit of the second)" if classes == 2 and not multi_label else str(classes)
        raise SignatureError(f"{observed}: for the model's {classes} classes the number of channels must be {allowed}")
    if classes == 1 and not multi_label:
        raise SignatureError(
            f"{observed}: argmax needs at least two classes; add the background as class 0, or use multiLabel"
        )


SEMANTIC_LOGITS: Final = SemanticLogits(
    name="semantic-logits",
    gives=ValueType.LOGITS,
    default_postprocess=(Argmax(),),
    output_names=("logits",),
    image_sized_outputs=("logits",),
    architectures=(
        "BeitForSemanticSegmentation",
        "Data2VecVisionForSemanticSegmentation",
        "DPTForSemanticSegmentation",
        "MobileNetV2ForSemanticSegmentation",
        "MobileViTForSemanticSegmentation",
        "MobileViTV2ForSemanticSegmentation",
        "SegformerForSemanticSegmentation",
        "UperNetForSemanticSegmentation",
    ),
    tasks=("semantic",),
    fixed_size_resize="stretch",
    stage_notes=(StageNote("one label per pixel; for masks that may overlap, use multiLabel instead of argmax", True),),
)

SEMANTIC_PROBABILITIES: Final = replace(
    SEMANTIC_LOGITS,
    name="semantic-probabilities",
    output_names=("probabilities",),
    image_sized_outputs=("probabilities",),
    stage_notes=(
        StageNote("one label per pixel; if each class has a sigmoid of its own, masks may overlap: use multiLabel"),
    ),
    probabilities=True,
)
