"""The stage that turns mask queries into instances."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Float32, Instances, Queries, ValueType


class InstanceQueries(Stage):
    """Turn mask queries into instances, which may overlap.

    Equals `post_process_instance_segmentation` of transformers' Mask2Former and MaskFormer: the best pairs of query and
    class, as many as there are queries, each scored by its class and by the mean probability of its mask. With
    `exclusive` as DETR's: every pixel is of one query at most, as in panopticQueries.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    threshold: float = Field(
        0.5, ge=0, le=1, description="Least score that is kept; a request's score_threshold overrides it."
    )
    mask_threshold: float = Field(0.5, gt=0, lt=1, description="Probability above which a pixel belongs to the mask.")
    exclusive: bool = Field(
        False,
        description="Whether instances must not overlap, as in transformers' DETR; scores must then exceed threshold.",
    )
    overlap_threshold: float = Field(
        0.8, ge=0, le=1, description="With exclusive, queries that win at most this part of their own mask are dropped."
    )
    mask_size: tuple[int, int] | None = Field(
        None,
        description="Height and width that masks are interpolated to first, such as [384, 384] for Mask2Former.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Instances:
        """Return the instances, best score first; boxes are the least around their masks."""
        import numpy as np

        least = request.least_score(self.threshold)
        found = self._exclusive(value, least) if self.exclusive else self._overlapping(value, least)
        return found.take(np.argsort(-found.scores, kind="stable").tolist())

    def _exclusive(self, value: Queries, least: float) -> Instances:
        import numpy as np

        from segserve_builder.imaging.query_masks import exclusive_segments
        from segserve_builder.kernels.rle import encode_bitmap

        found = exclusive_segments(value, least, self.mask_threshold, self.overlap_threshold, (), self.mask_size)
        masks = tuple(encode_bitmap((found.ids == number).view(np.uint8)) for number in range(1, len(found.scores) + 1))
        return _instances(found.classes, found.scores, masks, value)

    def _overlapping(self, value: Queries, least: float) -> Instances:
        import numpy as np

        from segserve_builder.imaging.probabilities import logit, sigmoid, softmax
        from segserve_builder.imaging.query_masks import content, mask_logits, nearest_first
        from segserve_builder.kernels.blocks import nearest_rles

        classes = softmax(value.logits)[:, :-1]
        pairs = np.argsort(-classes, axis=None, kind="stable")[: len(classes)]
        # A mask's mean probability is at most 1: no pair below the threshold gets above it.
        pairs = pairs[classes.reshape(-1)[pairs] >= np.float32(least)]
        which, row = np.unique(pairs // classes.shape[1], return_inverse=True)
        logits, rows, columns = mask_logits(value, which, self.mask_size)
        inside = content(logits, rows, columns)
        bits: Any = inside > np.float32(logit(self.mask_threshold))
        mean = np.zeros(len(which), np.float32)
        for k, (values, mask) in enumerate(zip(inside, bits, strict=True)):
            mean[k] = sigmoid(values[mask][None]).sum() / (np.float32(np.count_nonzero(mask)) + np.float32(1e-6))
        scores = classes.reshape(-1)[pairs] * mean[row]
        masks = nearest_rles(bits.view(np.uint8), nearest_first(rows), nearest_first(columns))
        kept = np.flatnonzero(scores >= np.float32(least))
        chosen = tuple(masks[k] for k in row[kept])
        return _instances((pairs % classes.shape[1])[kept].astype(np.int32), scores[kept], chosen, value)


def _instances(classes: Any, scores: Float32, masks: tuple[bytes, ...], value: Queries) -> Instances:
    """Return the instances whose masks are not empty."""
    import numpy as np

    from segserve_builder.kernels.rle_reader import decode

    height, width = value.transform.height, value.transform.width
    boxes = np.zeros((len(masks), 4), np.float32)
    for index, counts in enumerate(masks):
        window = decode(counts, height, width)
        rows, columns = window.bitmap.shape
        boxes[index] = window.left, window.top, window.left + columns, window.top + rows
    shown = np.flatnonzero(boxes[:, 2] > boxes[:, 0]).tolist()
    return Instances(boxes, scores, classes, masks, height, width).take(shown)
