"""The stage that turns mask queries into a score for every class and cell."""

from __future__ import annotations

from typing import ClassVar, Final

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Logits, Queries, ValueType

AT_ONCE: Final = 16
"""Number of queries whose probabilities are in memory at a time."""


class SemanticQueries(Stage):
    """Sum the masks of all queries for each class, weighted by the query's probability of it.

    Equals `post_process_semantic_segmentation` of transformers. The result is sums of probabilities; argmax turns them
    into a label map.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.LOGITS

    mask_size: tuple[int, int] | None = Field(
        None,
        description="Height and width that masks are interpolated to first, such as [384, 384] for Mask2Former.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Logits:
        """Return the scores, float32 (C, h, w), of the network's classes."""
        import numpy as np

        from segserve_builder.imaging.probabilities import sigmoid
        from segserve_builder.imaging.query_masks import mask_logits, shares

        weights = np.ascontiguousarray(shares(value)[:, :-1].T)
        height, width = mask_logits(value, slice(0), self.mask_size)[0].shape[1:]
        scores = np.zeros((len(weights), height * width), np.float32)
        for start in range(0, len(value.logits), AT_ONCE):
            some = slice(start, start + AT_ONCE)
            masks = sigmoid(mask_logits(value, some, self.mask_size)[0])
            scores += weights[:, some] @ masks.reshape(len(masks), -1)
        return Logits(scores.reshape(-1, height, width), value.transform, things=value.things)
