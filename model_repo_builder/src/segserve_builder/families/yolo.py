"""What the YOLO families share: where a head's numbers lie, the checks of that, and boxes in the image's pixels.

Layouts are read from the tensors that the projects' exporters document; none of their code is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import described, float_output, image_input
from segserve_builder.imaging.boxes import to_image_coordinates
from segserve_builder.values import Candidates, NoHeads, PrototypeHeads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import NetworkSignature, TensorSpec
    from segserve_builder.steps.pipeline import Pipeline
    from segserve_builder.values import Float32, Heads, Int32, ResizeTransform

PROTOTYPES: Final = "[batch, coefficients, height, width]"


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the numbers of a detection lie in a head's output of three dimensions.

    They are along `axis`: `before` numbers, a score a class where `scored`, and with `masks` the coefficients of mask
    prototypes, which are a second output.
    """

    family: str
    axis: Literal[1, 2]
    before: int
    scored: bool
    masks: bool

    def numbers(self, classes: int) -> int:
        """Return how many numbers come before the coefficients."""
        return self.before + (classes if self.scored else 0)

    def shape(self, batch: str, classes: str, coefficients: str, candidates: str) -> str:
        """Name the dimensions of the detections."""
        numbers = str(self.before)
        if self.scored:
            numbers += f" + {classes}"
        if self.masks:
            numbers += f" + {coefficients}"
        return f"[{batch}, {numbers}, {candidates}]" if self.axis == 1 else f"[{batch}, {candidates}, {numbers}]"


class YoloFamily:
    """A family whose head has a layout; what its numbers mean is up to a subclass."""

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    layout: ClassVar[Layout]

    def network_io(self, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input, the detections and, where there are masks, the prototypes.

        Raises `SignatureError` where the network has others.
        """
        return _network_io(self.layout, signature, pipeline)

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: ResizeTransform, pipeline: Pipeline) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image."""
        number = len(pipeline.classes)
        head, heads = _read_head(self.layout, outputs, number)
        return self._candidates(head, heads, placement, number)

    def _candidates(self, head: Float32, heads: Heads, placement: ResizeTransform, classes: int) -> Candidates:
        raise NotImplementedError


class ScoredHead(YoloFamily):
    """YOLOv8, v9, v11 and v12: cx cy w h, and a score in 0..1 for every class, each a row."""

    def _candidates(self, head: Float32, heads: Heads, placement: ResizeTransform, classes: int) -> Candidates:
        labels, scores = _best_class(head[4 : 4 + classes])
        return Candidates(_centred_boxes(head, placement), scores, labels, heads, placement)


class ObjectnessHead(YoloFamily):
    """YOLOv5 and v7: cx cy w h, objectness, and a score for every class, each a column; the score is the product.

    YOLOv7 takes the objectness alone where there is one class, whose own score it does not train.
    """

    def _candidates(self, head: Float32, heads: Heads, placement: ResizeTransform, classes: int) -> Candidates:
        from segserve_builder.kernels.rows import best_of_rows

        labels, scores = best_of_rows(head, 4, 5, 5 + classes)
        return Candidates(_centred_boxes(head.T, placement), scores, labels, heads, placement)


class ChosenHead(YoloFamily):
    """YOLOv10 and v26, which have chosen among their boxes: x1 y1 x2 y2, a score and the number of a class.

    Rows with a score of 0 are left out, whatever their class: they only fill the tensor.
    """

    def _candidates(self, head: Float32, heads: Heads, placement: ResizeTransform, classes: int) -> Candidates:
        import numpy as np

        which = np.flatnonzero(head[:, 4] > 0)
        numbers = head[which, 5]
        wrong = (numbers < 0) | (numbers >= classes) | (numbers != np.floor(numbers))
        if wrong.any():
            raise SignatureError(f"a detection is of class {numbers[wrong][0]:g}; the model's are 0 to {classes - 1}")
        boxes = to_image_coordinates(head[which, :4], placement)
        return Candidates(boxes, head[which, 4], numbers.astype(np.int32), heads.take(which), placement)


def _network_io(layout: Layout, signature: NetworkSignature, pipeline: Pipeline) -> NetworkIO:
    image, axes = image_input(signature, pipeline)
    meaning = layout.shape("batch", "classes", "coefficients", "candidates")
    # The two outputs are told apart by their number of dimensions.
    outputs = sorted(signature.outputs, key=lambda tensor: len(tensor.shape))
    if [len(tensor.shape) for tensor in outputs] != ([3, 4] if layout.masks else [3]):
        seen = ", ".join(described(tensor) for tensor in signature.outputs) or "none"
        allowed = f"two outputs, FP32 {meaning} and {PROTOTYPES}" if layout.masks else f"one output, FP32 {meaning}"
        raise SignatureError(f"{layout.family} has {allowed}; the network has {seen}")
    detections = float_output(outputs[0], pipeline, 3, meaning)
    if not layout.masks:
        _check_numbers(layout, detections, None, len(pipeline.classes))
        return NetworkIO(image, axes, (detections,))
    prototypes = float_output(outputs[1], pipeline, 4, PROTOTYPES)
    _check_numbers(layout, detections, prototypes, len(pipeline.classes))
    return NetworkIO(image, axes, (detections, prototypes))


def _read_head(layout: Layout, outputs: Mapping[str, NDArray[Any]], classes: int) -> tuple[Float32, Heads]:
    """Return one image's detections as the output has them, without the batch, and what their masks are made of.

    Raises `SignatureError` where the shapes are not the layout's.
    """
    detections, *others = outputs.values()
    shapes = [array.shape for array in (detections, *others)]
    coefficients = shapes[1][1] if layout.masks and len(shapes[1]) == 4 else 0
    expected = layout.numbers(classes) + coefficients
    if [len(shape) for shape in shapes] != ([3, 4] if layout.masks else [3]) or (
        (shapes[0][0], shapes[0][layout.axis]) != (1, expected)
    ):
        seen = " and ".join(str(list(shape)) for shape in shapes)
        allowed = layout.shape("1", str(classes), "K", "N") + (" and [1, K, h, w]" if layout.masks else "")
        raise SignatureError(f"the outputs have shapes {seen}; for one image and {classes} classes they are {allowed}")
    head = detections[0]
    if not layout.masks:
        return head, NoHeads()
    rows = head.T if layout.axis == 1 else head
    return head, PrototypeHeads(rows[:, layout.numbers(classes) :], others[0][0])


def _best_class(scores: Float32) -> tuple[Int32, Float32]:
    """Return each detection's best class and its score, both (N,), of scores (C, N)."""
    import numpy as np

    if len(scores) == 1:
        return np.zeros(scores.shape[1], np.int32), scores[0]
    from segserve_builder.kernels import labels

    return labels.best_class(scores)


def _centred_boxes(head: Float32, placement: ResizeTransform) -> Float32:
    """Return x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (N, 4), of cx cy w h (4, N)."""
    import numpy as np

    x_scale, y_scale = map(np.float32, placement.scale)
    x, y = (head[0] - np.float32(placement.left)) * x_scale, (head[1] - np.float32(placement.top)) * y_scale
    half_width, half_height = head[2] * (x_scale / 2), head[3] * (y_scale / 2)
    return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)


def _check_numbers(layout: Layout, detections: TensorSpec, prototypes: TensorSpec | None, classes: int) -> None:
    seen, before = detections.shape[layout.axis], layout.numbers(classes)
    coefficients = None if prototypes is None else prototypes.shape[1]
    free = prototypes is not None and coefficients is None
    least = before + (coefficients or 1 if prototypes is not None else 0)
    if seen is None or seen == least or (free and seen > least):
        return
    named = " and ".join(described(tensor) for tensor in (detections, prototypes) if tensor is not None)
    parts = f"{layout.before} + {classes}" if layout.scored else str(layout.before)
    raise SignatureError(
        f"{layout.family} output {named}: for the model's {classes} classes the detections must have "
        f"{parts}{' + coefficients' if layout.masks else ''} {'rows' if layout.axis == 1 else 'columns'}, "
        f"{'at least ' if free else ''}{least}"
    )
