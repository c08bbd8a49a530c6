"""The stage that turns mask queries into a panoptic map."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Panoptic, Queries, Segment, ValueType


class PanopticQueries(Stage):
    """Give every pixel to the query that is the most probable there.

    As `post_process_panoptic_segmentation` of transformers' Mask2Former, MaskFormer and DETR. Segments count from 1 in
    the order of the queries; the segment of several fused queries has the best of their scores.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.PANOPTIC

    threshold: float = Field(0.5, ge=0, le=1, description="The score above which a query takes part.")
    mask_threshold: float = Field(
        0.5, ge=0, le=1, description="The score times probability from which a pixel counts as of a query's own mask."
    )
    overlap_threshold: float = Field(
        0.8, ge=0, le=1, description="A query goes unless it gets more than this part of its own mask."
    )
    fuse: tuple[int, ...] | None = Field(
        None,
        description="Ids of the classes whose queries become one segment; by default those that are not things, "
        "where the model has things, else none.",
    )
    mask_size: tuple[int, int] | None = Field(
        None,
        description="Height and width that masks are interpolated to first; [384, 384] for Mask2Former, else none.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Panoptic:
        """Return the segments of one image."""
        from segserve_builder.imaging.query_masks import exclusive_segments

        classes = range(value.logits.shape[1] - 1)
        stuff = [class_id for class_id in classes if class_id not in value.things] if value.things else []
        fuse = frozenset(stuff if self.fuse is None else self.fuse)
        found = exclusive_segments(
            value, self.threshold, self.mask_threshold, self.overlap_threshold, fuse, self.mask_size
        )
        known = zip(found.classes.tolist(), found.scores.tolist(), strict=True)
        segments = (
            Segment(number, class_id, class_id in value.things, score)
            for number, (class_id, score) in enumerate(known, 1)
        )
        return Panoptic(found.ids, tuple(segments))
