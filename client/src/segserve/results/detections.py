"""Results of detection and keypoint models: boxes, and boxes with keypoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from segserve.results.annotation import Annotation
from segserve.results.images import ImageLike
from segserve.results.objects import Detection, Found, Objects

if TYPE_CHECKING:
    from PIL import Image
    from supervision import KeyPoints


@dataclass(frozen=True, eq=False)
class KeypointDetection(Detection):
    """One object with its keypoints, float32 (K, 3): x, y and score; x and y in pixels of the image."""

    points: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True, eq=False, repr=False)
class _Boxes(Objects[Found]):
    detections: tuple[Found, ...]

    @property
    def _found(self) -> tuple[Found, ...]:
        return self.detections

    def annotations(self) -> Iterator[Annotation]:
        """Yield the objects in the form that exports share."""
        for number, one in enumerate(self, 1):
            points = one.points if isinstance(one, KeypointDetection) else None
            yield Annotation(number, one.class_id, one.class_name, one.score, one.box, None, points)

    def overlay(
        self,
        image: ImageLike,
        *,
        alpha: float = 0.45,
        labels: bool = True,
        contour: bool = True,
        legend: bool | None = None,
        colour_by: Literal["instance", "class"] | None = None,
    ) -> Image.Image:
        """Return the image with every box and its keypoints drawn and labelled; boxes are not filled.

        `alpha` has no effect. Without `contour`, only keypoints and labels are drawn. `legend` and `colour_by` are as
        for instances. Raises `BadRequestError` if the size of `image` differs from that of the segmented image.
        """
        from segserve.rendering.drawing import Style, draw_detections

        style = Style(alpha, labels, contour, bool(legend))
        return draw_detections(self, image, style, colour_by or ("class" if legend else "instance"))


@dataclass(frozen=True, eq=False, repr=False)
class DetectionResult(_Boxes[Detection]):
    """The boxes of one image in the model's order, best score first."""


@dataclass(frozen=True, eq=False, repr=False)
class KeypointResult(_Boxes[KeypointDetection]):
    """The objects of one image with their keypoints, in the model's order, best score first."""

    @property
    def points(self) -> NDArray[np.float32]:
        """All keypoints, float32 (N, K, 3)."""
        found = [one.points for one in self]
        return np.stack(found) if found else np.zeros((0, 0, 3), np.float32)

    def to_key_points(self) -> KeyPoints:
        """Return the `supervision.KeyPoints`; raises `MissingExtraError` without the extra `annotations`."""
        from segserve.exports.supervision import key_points

        return key_points(self)

    def _row(self, index: int, found: KeypointDetection) -> dict[str, Any]:
        names = (f"point{number}_{part}" for number in range(len(found.points)) for part in ("x", "y", "score"))
        return super()._row(index, found) | dict(zip(names, found.points.ravel().tolist(), strict=True))
