"""The stage that turns mask queries into a panoptic map."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Panoptic, Queries, Segment, ValueType


class PanopticQueries(Stage):
    """Turn mask queries into a panoptic map: every pixel gets its most probable query.

    Equals `post_process_panoptic_segmentation` of transformers' Mask2Former, MaskFormer and DETR, and with
    `convention: eomt` EoMT's, whose masks are first interpolated to the network's input. Segments count from 1 in the
    order of the queries; the segment of several fused queries has the best of their scores.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.QUERIES})
    gives: ClassVar[ValueType | None] = ValueType.PANOPTIC

    threshold: float = Field(0.5, ge=0, le=1, description="Score above which a query takes part.")
    mask_threshold: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Product of score and probability from which a pixel belongs to a query's own mask.",
    )
    overlap_threshold: float = Field(
        0.8, ge=0, le=1, description="Drop a query that wins at most this fraction of its own mask."
    )
    fuse: tuple[int, ...] | None = Field(
        None,
        description="Ids of the classes whose queries become one segment. Default: those that are not things, if the "
        "model has things.",
    )
    mask_size: tuple[int, int] | None = Field(
        None,
        description="Height and width that masks are interpolated to first, such as [384, 384] for Mask2Former.",
    )

    convention: Literal["eomt"] | None = Field(
        None,
        description="With eomt, maskThreshold applies to a query's own probability, and the query gets no pixel "
        "below it, as in EoMT. Default: as in MaskFormer, Mask2Former and DETR.",
    )

    def __call__(self, value: Queries, request: RequestOptions) -> Panoptic:
        """Return the segments of one image."""
        from segserve_builder.imaging.query_masks import exclusive_segments

        classes = range(value.logits.shape[1] - 1)
        stuff = [class_id for class_id in classes if class_id not in value.things] if value.things else []
        fuse = frozenset(stuff if self.fuse is None else self.fuse)
        size, of_eomt = self.mask_size, self.convention == "eomt"
        if of_eomt and size is None:
            size = (value.transform.input_height, value.transform.input_width)
        result = exclusive_segments(
            value, self.threshold, self.mask_threshold, self.overlap_threshold, fuse, size, of_eomt
        )
        rows = zip(result.classes.tolist(), result.scores.tolist(), strict=True)
        segments = (
            Segment(number, class_id, class_id in value.things, score)
            for number, (class_id, score) in enumerate(rows, 1)
        )
        return Panoptic(result.ids, tuple(segments))
