"""The family of networks with the outputs of a YOLO segmentation head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final

from segserve_builder.errors import SignatureError
from segserve_builder.families.base import NetworkIO
from segserve_builder.families.signature import described, float_output, image_input
from segserve_builder.stages.crop_masks import CropMasks
from segserve_builder.stages.nms import Nms
from segserve_builder.stages.score_threshold import ScoreThreshold
from segserve_builder.values import Candidates, Kind, Placement, PrototypeHeads

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from segserve_builder.families.base import Signature, TensorSpec
    from segserve_builder.stages.base import Stage
    from segserve_builder.steps import Pipeline
    from segserve_builder.values import Float32

DETECTIONS: Final = "[batch, 4 + classes + coefficients, candidates]"
PROTOTYPES: Final = "[batch, coefficients, height, width]"


class YoloSeg:
    """Two FP32 outputs: detections [batch, 4 + classes + K, N] and mask prototypes [batch, K, h, w].

    A detection is cx cy w h in pixels of the network's input, a score in 0..1 for every class, and K coefficients;
    coefficients times prototypes are the mask's logits. The two are told apart by their number of dimensions.
    """

    version: ClassVar[int] = 1
    numbers_classes: ClassVar[bool] = True
    gives: ClassVar[Kind] = Kind.PROTOTYPES
    default_postprocess: ClassVar[tuple[Stage, ...]] = (ScoreThreshold(), Nms(), CropMasks())

    def network_io(self, signature: Signature, pipeline: Pipeline) -> NetworkIO:
        """Return the image input, the detections and the prototypes, or raise `SignatureError`."""
        image, layout = image_input(signature, pipeline)
        outputs = sorted(signature.outputs, key=lambda tensor: len(tensor.shape))
        if [len(tensor.shape) for tensor in outputs] != [3, 4]:
            seen = ", ".join(described(tensor) for tensor in signature.outputs) or "none"
            raise SignatureError(
                f"yolo-seg has two outputs, FP32 {DETECTIONS} and {PROTOTYPES}; the network has {seen}"
            )
        detections = float_output(outputs[0], pipeline, 3, DETECTIONS)
        prototypes = float_output(outputs[1], pipeline, 4, PROTOTYPES)
        _check_rows(detections, prototypes, len(pipeline.classes))
        return NetworkIO(image, layout, (detections, prototypes))

    def read(self, outputs: Mapping[str, NDArray[Any]], placement: Placement, pipeline: Pipeline) -> Candidates:
        """Return all of one image's candidates, with boxes in pixels of the original image."""
        detections, prototypes = outputs.values()
        number = len(pipeline.classes)
        shapes = detections.shape, prototypes.shape
        if [len(shape) for shape in shapes] != [3, 4] or shapes[0][:2] != (1, 4 + number + shapes[1][1]):
            raise SignatureError(
                f"the outputs have shapes {list(shapes[0])} and {list(shapes[1])}; for one image and {number} classes "
                f"they are [1, 4 + {number} + K, N] and [1, K, h, w]"
            )
        head = detections[0]
        classes, scores = _best_class(head[4 : 4 + number])
        heads = PrototypeHeads(head[4 + number :].T, prototypes[0])
        return Candidates(_boxes(head, placement), scores, classes, heads, placement)


def _check_rows(detections: TensorSpec, prototypes: TensorSpec, classes: int) -> None:
    rows, coefficients = detections.shape[1], prototypes.shape[1]
    least = 4 + classes + (coefficients or 1)
    if rows is None or rows == least or (coefficients is None and rows > least):
        return
    raise SignatureError(
        f"outputs {described(detections)} and {described(prototypes)}: for the model's {classes} classes the first "
        f"must have 4 + {classes} + coefficients rows, {'at least ' if coefficients is None else ''}{least}"
    )


def _best_class(scores: Float32) -> tuple[NDArray[Any], Float32]:
    import numpy as np

    if len(scores) == 1:
        return np.zeros(scores.shape[1], np.int32), scores[0]
    from segserve_builder.kernels.labels import best_class

    return best_class(scores)


def _boxes(head: Float32, placement: Placement) -> Float32:
    """Return x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (N, 4)."""
    import numpy as np

    x_scale = np.float32(placement.width / placement.inner_width)
    y_scale = np.float32(placement.height / placement.inner_height)
    x, y = (head[0] - np.float32(placement.left)) * x_scale, (head[1] - np.float32(placement.top)) * y_scale
    half_width, half_height = head[2] * (x_scale / 2), head[3] * (y_scale / 2)
    return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=1)
