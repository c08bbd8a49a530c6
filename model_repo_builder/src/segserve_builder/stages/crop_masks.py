"""The stage that turns candidates into instances with masks."""

from __future__ import annotations

from typing import ClassVar, cast

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Instances, PrototypeHeads, ValueType


class CropMasks(Stage):
    """Compute every candidate's mask from prototypes, within its box, at the image's size.

    The mask's logits (coefficients times prototypes) are sampled bilinearly at the image's pixels in one
    interpolation. Boxes are clipped to the image; a candidate without a pixel is dropped, as in Ultralytics.
    """

    version: ClassVar[int] = 2
    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.PROTOTYPES})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    threshold: float = Field(0.5, gt=0, lt=1, description="Probability above which a pixel belongs to the mask.")

    def __call__(self, value: Candidates, request: RequestOptions) -> Instances:
        """Return an instance for each candidate that has a mask, in the same order."""
        import numpy as np

        from segserve_builder.imaging.probabilities import logit
        from segserve_builder.kernels.masks import mask_rles
        from segserve_builder.kernels.rle import MaskWindow, encode
        from segserve_builder.sampling import axes

        height, width = value.transform.height, value.transform.width
        heads = cast("PrototypeHeads", value.heads)
        rows, columns = axes(value.transform, *heads.prototypes.shape[1:])
        boxes = np.clip(value.boxes, 0, np.array([width, height] * 2, np.float32))
        limit = logit(self.threshold)
        masks = mask_rles(heads.prototypes, heads.coefficients, boxes, rows, columns, limit)
        found = Instances(boxes, value.scores, value.classes, masks, height, width)
        nothing = encode(MaskWindow(np.zeros((1, 1), np.uint8), 0, 0), height, width)
        return found.take([index for index, mask in enumerate(masks) if mask != nothing]) if nothing in masks else found
