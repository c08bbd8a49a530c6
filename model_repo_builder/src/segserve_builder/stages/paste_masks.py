"""The stage that turns candidates with low-resolution masks into instances."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Instances, MaskHeads, ValueType


class PasteMasks(Stage):
    """Resize every candidate's mask to its box, at the image's size.

    Masks may be empty. Boxes are clipped to the image.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.MASK_HEADS})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    convention: Literal["torchvision", "detectron2"] = Field(
        "torchvision",
        description="Alignment of masks and pixels: over boxes cut to whole pixels (torchvision), or over exact boxes "
        "(detectron2 and mmdetection).",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="Probability from which (torchvision: above which) a pixel belongs to the mask.",
    )

    def __call__(self, value: Candidates, request: RequestOptions) -> Instances:
        """Return an instance for each candidate, in the same order."""
        import numpy as np

        from segserve_builder.kernels.paste import paste_rles

        height, width = value.transform.height, value.transform.width
        heads = cast("MaskHeads", value.heads)
        whole_pixels = self.convention == "torchvision"
        masks = paste_rles(heads.masks, value.boxes, height, width, self.threshold, whole_pixels=whole_pixels)
        boxes = np.clip(value.boxes, 0, np.array([width, height] * 2, np.float32))
        return Instances(boxes, value.scores, value.classes, masks, height, width)
