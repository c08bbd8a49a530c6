"""Boxes, and boxes with keypoints: what detection and keypoint models answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from segserve import coco
from segserve.types import Segmentation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from segserve.images import ImageLike


@dataclass(frozen=True, eq=False)
class Detection:
    """One object: `box` is x1, y1, x2, y2 in pixels of the image."""

    box: tuple[float, float, float, float]
    score: float
    class_id: int
    class_name: str


@dataclass(frozen=True, eq=False)
class KeypointDetection(Detection):
    """One object with its points, float32 (K, 3): x, y and score of each; x and y in pixels of the image."""

    points: NDArray[np.float32]


Found = TypeVar("Found", bound=Detection)


@dataclass(frozen=True, eq=False)
class _Detections(Segmentation, Generic[Found]):
    detections: tuple[Found, ...]

    def __len__(self) -> int:
        return len(self.detections)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.detections)

    def __getitem__(self, index: int) -> Found:
        return self.detections[index]

    @property
    def boxes(self) -> NDArray[np.float32]:
        """All boxes, float32 (N, 4)."""
        return np.array([found.box for found in self.detections], np.float32).reshape(-1, 4)

    @property
    def scores(self) -> NDArray[np.float32]:
        """All scores, float32 (N,)."""
        return np.array([found.score for found in self.detections], np.float32)

    @property
    def class_ids(self) -> NDArray[np.int32]:
        """All class ids, int32 (N,)."""
        return np.array([found.class_id for found in self.detections], np.int32)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for found in self.detections:
            yield coco.Object(found.class_id, None, found.score, found.box)

    def overlay(self, image: ImageLike, *, alpha: float = 0.45, labels: bool = True) -> Image.Image:
        """Return the image with every box, and its points, drawn and labelled; boxes are not filled.

        Raises `BadRequestError` for an image of another size than the one that was sent.
        """
        from segserve.drawing import draw_detections

        return draw_detections(self.detections, image, self.size, labels=labels)


@dataclass(frozen=True, eq=False)
class DetectionResult(_Detections[Detection]):
    """The boxes of one image, best score first as the model gives them."""


@dataclass(frozen=True, eq=False)
class KeypointResult(_Detections[KeypointDetection]):
    """The objects of one image with their points, best score first as the model gives them."""

    @property
    def points(self) -> NDArray[np.float32]:
        """All points, float32 (N, K, 3)."""
        found = [one.points for one in self.detections]
        return np.stack(found) if found else np.zeros((0, 0, 3), np.float32)

    def _coco_objects(self) -> Iterator[coco.Object]:
        for found in self.detections:
            yield coco.Object(found.class_id, None, found.score, found.box, found.points)
