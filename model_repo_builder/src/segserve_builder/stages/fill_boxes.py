"""The stage that turns rotated boxes into instances."""

from __future__ import annotations

from typing import ClassVar, cast

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Instances, RotatedHeads, ValueType


class FillBoxes(Stage):
    """Fill every rotated box as the mask of an instance.

    A pixel belongs to it if its centre lies in the box. Boxes of instances enclose the rotated ones and are clipped to
    the image; masks of those that hold no centre are empty.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.ROTATED})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    def __call__(self, value: Candidates, request: RequestOptions) -> Instances:
        """Return an instance for each candidate, in the same order."""
        import numpy as np

        from segserve_builder.kernels.rotated import fill_rles

        height, width = value.transform.height, value.transform.width
        masks = fill_rles(cast("RotatedHeads", value.heads).corners(value.transform), height, width)
        boxes = np.clip(value.boxes, 0, np.array([width, height] * 2, np.float32))
        return Instances(boxes, value.scores, value.classes, masks, height, width)
