"""The stage that turns box queries into detections."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from segserve_builder.errors import SignatureError
from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Float32, NoHeads, Queries, ValueType


class DetectionQueries(Stage):
    """Turn queries into boxes.

    Equals `post_process_object_detection` of transformers' DETR.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.BOXES

    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Class probability above which a query is kept; a request's score_threshold overrides it.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Candidates:
        """Return the detections, best score first; boxes are not clipped to the image."""
        import numpy as np

        from segserve_builder.imaging.probabilities import softmax

        if value.boxes is None:
            raise SignatureError("the network's queries have masks but no boxes; use panopticQueries")
        shares = softmax(value.logits)[:, :-1]
        classes = shares.argmax(axis=1)
        scores = shares[np.arange(len(classes)), classes]
        least = request.least_score(self.threshold)
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] > np.float32(least)]
        boxes = _corners(value)[order]
        return Candidates(boxes, scores[order], classes[order].astype(np.int32), NoHeads(), value.transform)


def _corners(value: Queries) -> Float32:
    """Return x1 y1 x2 y2 in pixels of the original image, not clipped, float32 (Q, 4)."""
    import numpy as np

    p = value.transform
    boxes: Any = value.boxes
    centre, half = boxes[:, :2], boxes[:, 2:] * np.float32(0.5)
    corners = np.concatenate([centre - half, centre + half], axis=1)
    x_scale, y_scale = p.scale
    size = np.array([p.input_width * x_scale, p.input_height * y_scale] * 2, np.float32)
    shift = np.array([p.left * x_scale, p.top * y_scale] * 2, np.float32)
    scaled: Float32 = corners * size - shift
    return scaled
