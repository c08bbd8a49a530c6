"""The family of networks that give every pixel a logit for each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import (
    Family,
    InspectedNetwork,
    ModelContext,
    NetworkIO,
    NetworkSignature,
    StageNote,
    described,
    described_all,
    float_output,
    image_input,
    thing_ids,
)
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.values import Logits, ResizeTransform, ValueType

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHAPE: Final = "[batch, classes, height, width]"


@dataclass(frozen=True, kw_only=True)
class SemanticLogits(Family):
    """One output, FP32 [batch, classes, h, w]: logits over the network's whole input, of any resolution.

    By default they are those of a softmax, for one label per pixel (argmax); a single channel is then the logit of the
    second of two classes. With multiLabel each is that of a sigmoid, for masks that may overlap, and every class has a
    channel.
    """

    def network_io(self, signature: NetworkSignature, model: ModelContext) -> NetworkIO:
        """Return the image input and the logits; raises `SignatureError` if the network has others."""
        image, layout = image_input(signature, model)
        if len(signature.outputs) != 1:
            raise SignatureError(
                f"{self.name} has one output, FP32 {SHAPE}; the network has {described_all(signature.outputs)}"
            )
        logits = float_output(signature.outputs[0], model, 4, SHAPE)
        if logits.shape[1] is not None:
            _check_channels(f"output {described(logits)}", logits.shape[1], model)
        return NetworkIO(image, layout, (logits,))

    def read(self, outputs: Mapping[str, NDArray[Any]], transform: ResizeTransform, model: ModelContext) -> Logits:
        """Return one image's logits; raises `SignatureError` if their shape is not [1, classes, h, w].

        `outputs` is one float32 array.
        """
        (values,) = outputs.values()
        if values.ndim != 4 or values.shape[0] != 1:
            raise SignatureError(f"the logits have shape {list(values.shape)}; one image's are [1, classes, h, w]")
        _check_channels(f"the logits have shape {list(values.shape)}", values.shape[1], model)
        return Logits(values[0], transform, things=thing_ids(model))

    def implied_classes(self, network: InspectedNetwork) -> int | None:
        """Return the number of channels, or 2 for a single one."""
        outputs = network.signature.outputs
        if len(outputs) != 1 or len(outputs[0].shape) != 4:
            return None
        channels = network.shape(outputs[0])[1]
        return 2 if channels == 1 else channels


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
    fixed_size_resize="stretch",
    stage_notes=(StageNote("one label per pixel; for masks that may overlap, use multiLabel instead of argmax", True),),
)
