"""Objects with masks: what instance models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from segserve import coco
from segserve.objects import Detection, Objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from segserve.images import ImageLike
    from segserve.masks import EncodedMask, Polygon, Rle


@dataclass(frozen=True, eq=False)
class Instance(Detection):
    """One object with its mask."""

    encoded: EncodedMask

    @property
    def mask(self) -> NDArray[np.bool_]:
        """The mask as bool, shaped (H, W) of the whole image, read-only."""
        return self.encoded.bitmap

    @property
    def rle(self) -> Rle:
        """The mask as COCO compressed RLE; `counts` is bytes."""
        return self.encoded.rle

    @property
    def polygons(self) -> list[Polygon]:
        """The outlines of the mask's parts as [x, y, x, y, ...] in pixels, without holes."""
        return self.encoded.polygons

    @property
    def area(self) -> int:
        """The mask's pixels."""
        return self.encoded.area


@dataclass(frozen=True, eq=False)
class InstanceResult(Objects[Instance]):
    """The objects of one image, best score first as the model gives them."""

    instances: tuple[Instance, ...]

    @property
    def _found(self) -> tuple[Instance, ...]:
        return self.instances

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        colour_by: Literal["instance", "class"] = "instance",
    ) -> Image.Image:
        """Return the image with every mask filled (`alpha` of its colour), outlined and labelled.

        Raises `BadRequestError` for an image of another size than the one that was segmented.
        """
        from segserve.drawing import draw_instances

        return draw_instances(self, image, alpha=alpha, labels=labels, colour_by=colour_by)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for instance in self:
            yield coco.Object(instance.class_id, instance.rle, instance.score, instance.box)
