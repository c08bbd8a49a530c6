"""The stage that turns candidates with low-resolution masks into instances."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

from pydantic import Field

from segserve_builder.stages.base import RequestOptions, Stage
from segserve_builder.values import Candidates, Instances, MaskHeads, ValueType


class PasteMasks(Stage):
    """Stretch every candidate's mask over its box, at the image's own size.

    A mask may come out empty. Boxes are clipped to the image.
    """

    takes: ClassVar[frozenset[ValueType]] = frozenset({ValueType.MASK_HEADS})
    gives: ClassVar[ValueType | None] = ValueType.INSTANCES

    convention: Literal["torchvision", "detectron2"] = Field(
        "torchvision",
        description="How masks meet pixels: over boxes cut to whole pixels (torchvision), or over boxes as they are "
        "(detectron2, and mmdetection).",
    )
    threshold: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="The probability from which a pixel is of the mask; with torchvision's convention, above which.",
    )

    def __call__(self, value: Candidates, request: RequestOptions) -> Instances:
        """Return an instance for every candidate, in their order."""
        import numpy as np

        from segserve_builder.kernels.paste import paste_rles

        height, width = value.transform.height, value.transform.width
        heads = cast("MaskHeads", value.heads)
        whole_pixels = self.convention == "torchvision"
        masks = paste_rles(heads.masks, value.boxes, height, width, self.threshold, whole_pixels=whole_pixels)
        boxes = np.clip(value.boxes, 0, np.array([width, height] * 2, np.float32))
        return Instances(boxes, value.scores, value.classes, masks, height, width)
