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
    `exclusive` as DETR's: every pixel is of one query at most, as in panopticQueries. If classes have sigmoids of their
    own, it equals RF-DETR's: pairs are scored by their class alone, masks are sampled bilinearly at the image's pixels,
    and boxes are those of the network. Instances without a pixel are dropped.
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
        0.8, ge=0, le=1, description="With exclusive, drop a query that wins at most this fraction of its own mask."
    )
    mask_size: tuple[int, int] | None = Field(
        None,
        description="Height and width that masks are interpolated to first, such as [384, 384] for Mask2Former.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Instances:
        """Return the instances, best score first; boxes are the network's or the least around masks."""
        import numpy as np

        least = request.least_score(self.threshold)
        if self.exclusive:
            found = self._exclusive(value, least)
        else:
            found = self._detections(value, least) if value.sigmoid else self._overlapping(value, least)
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

        from segserve_builder.imaging.probabilities import logit, sigmoid
        from segserve_builder.imaging.query_masks import best_pairs, content, mask_logits, nearest_first
        from segserve_builder.kernels.blocks import nearest_rles

        # A mask's mean probability is at most 1: no pair below the threshold gets above it.
        queries, classes, scores = best_pairs(value)
        number = np.count_nonzero(scores >= np.float32(least))
        queries, classes, scores = queries[:number], classes[:number], scores[:number]
        which, row = np.unique(queries, return_inverse=True)
        logits, rows, columns = mask_logits(value, which, self.mask_size)
        inside = content(logits, rows, columns)
        bits: Any = inside > np.float32(logit(self.mask_threshold))
        mean = np.zeros(len(which), np.float32)
        for k, (values, mask) in enumerate(zip(inside, bits, strict=True)):
            mean[k] = sigmoid(values[mask][None]).sum() / (np.float32(np.count_nonzero(mask)) + np.float32(1e-6))
        scores = scores * mean[row]
        masks = nearest_rles(bits.view(np.uint8), nearest_first(rows), nearest_first(columns))
        kept = np.flatnonzero(scores >= np.float32(least))
        return _instances(classes[kept], scores[kept], tuple(masks[k] for k in row[kept]), value)

    def _detections(self, value: Queries, least: float) -> Instances:
        import numpy as np

        from segserve_builder.imaging.probabilities import logit
        from segserve_builder.imaging.query_masks import best_pairs, corners, mask_logits
        from segserve_builder.kernels.queries import resample
        from segserve_builder.kernels.rle import encode_bitmap

        queries, classes, scores = best_pairs(value)
        kept = scores > np.float32(least)
        which, row = np.unique(queries[kept], return_inverse=True)
        logits, rows, columns = mask_logits(value, which, self.mask_size)
        limit = np.float32(logit(self.mask_threshold))
        # One mask at a time has the image's size.
        masks = [
            encode_bitmap((resample(logits[k : k + 1], rows, columns)[0] > limit).view(np.uint8))
            for k in range(len(which))
        ]
        boxes = None if value.boxes is None else corners(value)[queries[kept]]
        return _instances(classes[kept], scores[kept], tuple(masks[k] for k in row), value, boxes)


def _instances(
    classes: Any, scores: Float32, masks: tuple[bytes, ...], value: Queries, boxes: Float32 | None = None
) -> Instances:
    """Return the instances whose masks are not empty, with the boxes given or else those around the masks."""
    import numpy as np

    from segserve_builder.kernels.rle_reader import decode

    height, width = value.transform.height, value.transform.width
    around = np.zeros((len(masks), 4), np.float32)
    for index, counts in enumerate(masks):
        window = decode(counts, height, width)
        rows, columns = window.bitmap.shape
        around[index] = window.left, window.top, window.left + columns, window.top + rows
    shown = np.flatnonzero(around[:, 2] > around[:, 0]).tolist()
    return Instances(around if boxes is None else boxes, scores, classes, masks, height, width).take(shown)
