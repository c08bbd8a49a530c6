"""Objects with masks: what instance models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from segserve import coco
from segserve.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from segserve.images import ImageLike
    from segserve.masks import EncodedMask, Polygon, Rle


@dataclass(frozen=True, eq=False)
class Instance:
    """One object: `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str
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
class InstanceResult(Segmentation):
    """The objects of one image, best score first as the model gives them."""

    instances: tuple[Instance, ...]

    def __len__(self) -> int:
        return len(self.instances)

    def __iter__(self) -> Iterator[Instance]:
        return iter(self.instances)

    def __getitem__(self, index: int) -> Instance:
        return self.instances[index]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """All boxes, float32 (N, 4)."""
        return np.array([instance.box for instance in self.instances], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float32]:
        """All scores, float32 (N,)."""
        return np.array([instance.score for instance in self.instances], np.float32)

    @property
    def class_ids(self) -> NDArray[np.int32]:
        """All class ids, int32 (N,)."""
        return np.array([instance.class_id for instance in self.instances], np.int32)

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
        for instance in self.instances:
            yield coco.Object(instance.class_id, instance.rle, instance.score, instance.box)
