"""The family of networks that give every pixel a logit a class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import described, float_output, image_input, things
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.multi_label import MultiLabel
from segserve_builder.values import Logits, ResizeTransform, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline

SHAPE: Final = "[batch, classes, height, width]"


class SemanticLogits:
    """One output, FP32 [batch, classes, h, w]: logits over the network's whole input, of any resolution.

    They are those of a softmax, for a label a pixel (argmax, the default): a single channel is then the logit of the
    second class of two. Or each is that of a sigmoid by itself, for masks that may overlap (multiLabel): then every
    class has a channel.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[ValueType] = ValueType.LOGITS
    default_postprocess: ClassVar[tuple[Stage, ...]] = (Argmax(),)

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the logits; raises `SignatureError` where the family has others."""
        image, layout = image_input(signature, pipeline)
        if len(signature.outputs) != 1:
            seen = ", ".join(described(tensor) for tensor in signature.outputs) or "none"
            raise SignatureError(f"semantic-logits has one output, FP32 {SHAPE}; the network has {seen}")
        logits = float_output(signature.outputs[0], pipeline, 4, SHAPE)
        if logits.shape[1] is not None:
            _check_channels(f"output {described(logits)}", logits.shape[1], pipeline)
        return NetworkIO(image, layout, (logits,))

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Logits:
        """Return one image's logits."""
        (values,) = outputs.values()
        if values.ndim != 4 or values.shape[0] != 1:
            raise SignatureError(f"the logits have shape {list(values.shape)}; one image's are [1, classes, h, w]")
        _check_channels(f"the logits have shape {list(values.shape)}", values.shape[1], pipeline)
        return Logits(values[0], placement, things=things(pipeline))


def _check_channels(seen: str, channels: int, pipeline: Pipeline) -> None:
    classes = len(pipeline.classes)
    each = [step.stage for step in pipeline.postprocess if isinstance(step.stage, MultiLabel)]
    for stage in each:
        stage.limits(channels)
    if channels != classes and not (channels == 1 and classes == 2 and not each):
        allowed = "2, or 1 (the logit of the second)" if classes == 2 and not each else str(classes)
        raise SignatureError(f"{seen}: for the model's {classes} classes the number of channels must be {allowed}")
    if classes == 1 and not each:
        raise SignatureError(f"{seen}: one class is no choice for argmax; add the background as class 0, or multiLabel")
