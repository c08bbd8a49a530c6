"""The stage that turns box queries into detections."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, NoHeads, Queries, ValueType


class DetectionQueries(Stage):
    """Turn queries into boxes.

    Equals `post_process_object_detection` of transformers' DETR. If classes have sigmoids of their own, it equals that
    of RT-DETR and RF-DETR: the best pairs of query and class, as many as there are queries. With `topK: 100` it equals
    that of Conditional and Deformable DETR.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.BOXES

    threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Class probability above which a query is kept; a request's score_threshold overrides it.",
    )

    top_k: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Number of pairs of query and class that are kept, if each class has a sigmoid of its own. "
        "Default: the number of queries.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Candidates:
        """Return the detections, best score first; boxes are not clipped to the image."""
        import numpy as np

        from segserve_builder.imaging.query_masks import best_classes, best_pairs, corners, shares

        boxes = corners(value)
        if value.sigmoid:
            which, classes, scores = best_pairs(value, self.top_k)
        else:
            classes, scores = best_classes(shares(value)[:, :-1])
            which = np.argsort(-scores, kind="stable").astype(np.int32)
            classes, scores = classes[which], scores[which]
        kept = scores > np.float32(request.least_score(self.threshold))
        return Candidates(boxes[which[kept]], scores[kept], classes[kept], NoHeads(), value.transform)
