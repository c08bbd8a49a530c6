"""Boxes, and boxes with keypoints: what detection and keypoint models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from segserve import coco
from segserve.objects import Detection, Found, Objects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from segserve.images import ImageLike


@dataclass(frozen=True, eq=False)
class KeypointDetection(Detection):
    """One object with its points, float32 (K, 3): x, y and score of each; x and y in pixels of the image."""

    points: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class _Boxes(Objects[Found]):
    detections: tuple[Found, ...]

    @property
    def _found(self) -> tuple[Found, ...]:
        return self.detections

    def _coco_objects(self) -> Iterator[coco.Object]:
        for found in self:
            yield coco.Object(found.class_id, None, found.score, found.box)

    def overlay(self, image: ImageLike, *, alpha: float = 0.45, labels: bool = True) -> Image.Image:
        """Return the image with every box, and its points, drawn and labelled; boxes are not filled.

        Raises `BadRequestError` for an image of another size than the one that was sent.
        """
        from segserve.drawing import draw_detections

        return draw_detections(self.detections, image, self.size, labels=labels)


@dataclass(frozen=True, eq=False)
class DetectionResult(_Boxes[Detection]):
    """The boxes of one image, best score first as the model gives them."""


@dataclass(frozen=True, eq=False)
class KeypointResult(_Boxes[KeypointDetection]):
    """The objects of one image with their points, best score first as the model gives them."""

    @property
    def points(self) -> NDArray[np.float32]:
        """All points, float32 (N, K, 3)."""
        found = [one.points for one in self]
        return np.stack(found) if found else np.zeros((0, 0, 3), np.float32)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for found in self:
            yield coco.Object(found.class_id, None, found.score, found.box, found.points)
