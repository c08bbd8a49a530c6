"""What the families of query decoders share: every query has class logits, and masks or a box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import described, float_output, image_input, things
from segserve_builder.values import Queries, ValueType

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature, TensorSpec
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import ResizeTransform

CLASSES: Final = "[batch, queries, classes + 1]"
MASKS: Final = "[batch, queries, height, width]"
BOXES: Final = "[batch, queries, 4]"
RANKS: Final = {CLASSES: 3, MASKS: 4, BOXES: 3}


@dataclass(frozen=True, slots=True)
class QueryOutput:
    """An output by the name that transformers gives it, and what it is: CLASSES, MASKS or BOXES."""

    name: str
    meaning: str


class QueryFamily:
    """FP32 outputs of one query each: class logits, the last class "nothing", with masks or boxes or both.

    An exporter may add others: outputs are found by the names that transformers gives them, else by their shapes.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[ValueType] = ValueType.QUERIES
    default_postprocess: ClassVar[tuple[Stage, ...]]
    outputs: ClassVar[tuple[QueryOutput, ...]]
    """Class logits first."""

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input and the outputs of the family, or raise `SignatureError`."""
        image, layout = image_input(signature, pipeline)
        named = {tensor.name: tensor for tensor in signature.outputs}
        if all(output.name in named for output in self.outputs):
            found = [named[output.name] for output in self.outputs]
        else:
            found = [self._by_shape(output, signature, pipeline) for output in self.outputs]
        tensors = tuple(
            float_output(tensor, pipeline, RANKS[output.meaning], output.meaning)
            for tensor, output in zip(found, self.outputs, strict=True)
        )
        for tensor, output in zip(tensors, self.outputs, strict=True):
            last = _last(output, pipeline)
            if last is not None and tensor.shape[-1] not in (None, last):
                raise SignatureError(f"output {described(tensor)}: {_expected(output, pipeline)}")
        return NetworkIO(image, layout, tensors)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Queries:
        """Return one image's queries."""
        arrays = dict(zip((output.meaning for output in self.outputs), outputs.values(), strict=True))
        number = arrays[CLASSES].shape[1:2]
        for output in self.outputs:
            shape, last = arrays[output.meaning].shape, _last(output, pipeline)
            fits = len(shape) == RANKS[output.meaning] and shape[0] == 1 and shape[1:2] == number
            if not fits or last not in (None, shape[-1]):
                raise SignatureError(
                    f"{output.name!r} has shape {list(shape)} for one image; {_expected(output, pipeline)}"
                )
        masks, boxes = arrays.get(MASKS), arrays.get(BOXES)
        return Queries(
            arrays[CLASSES][0],
            None if masks is None else masks[0],
            None if boxes is None else boxes[0],
            things(pipeline),
            placement,
        )

    def _by_shape(self, output: QueryOutput, signature: NetworkSignature, pipeline: Pipeline) -> TensorSpec:
        last = _last(output, pipeline)
        fitting = [
            tensor
            for tensor in signature.outputs
            if tensor.dtype == "FP32"
            and len(tensor.shape) == RANKS[output.meaning]
            and (last is None or tensor.shape[-1] == last)
        ]
        if len(fitting) == 1:
            return fitting[0]
        seen = ", ".join(described(tensor) for tensor in signature.outputs) or "none"
        names = ", ".join(repr(one.name) for one in self.outputs)
        raise SignatureError(
            f"of the outputs {len(fitting)} may be {output.name!r}: {_expected(output, pipeline)}; outputs that are "
            f"named {names} need no guess. The network has {seen}"
        )


def _last(output: QueryOutput, pipeline: Pipeline) -> int | None:
    """Return the size of the output's last dimension, None where it is free."""
    return {CLASSES: len(pipeline.classes) + 1, BOXES: 4, MASKS: None}[output.meaning]


def _expected(output: QueryOutput, pipeline: Pipeline) -> str:
    number = len(pipeline.classes)
    counted = f", {number} + 1 for the model's classes and for nothing" if output.meaning == CLASSES else ""
    return f"it must be FP32 {output.meaning}{counted}"
