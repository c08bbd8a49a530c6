"""`Annotation`: one object, segment or class in the form that exports and drawings share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segserve.results.images import ImageLike, picture
from segserve.results.masks import EncodedMask, text_rle
from segserve.results.outlines import Part
from segserve.results.values import SegmentClass, class_colour
from segserve_common.drawing.canvas import Rectangle
from segserve_common.drawing.overlays import Drawing, DrawnShape, is_background
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True, eq=False)
class Annotation:
    """An object, a segment, or all pixels of a class; has a mask, a box or both.

    `number` counts from 1; for a panoptic segment it is the segment's id. `score` is None if the model gives no scores.
    `own_box` is the model's box, x1, y1, x2, y2 in pixels, or None. `points` is float32 (K, 3): x, y, score.
    `is_thing` is False for a segment that is all of a class of stuff.
    """

    number: int
    class_id: int
    class_name: str
    score: float | None
    own_box: Rectangle | None
    mask: EncodedMask | None
    points: NDArray[np.float32] | None = None
    is_thing: bool = True

    @property
    def box(self) -> Rectangle:
        """The model's box, or else the mask's bounding box."""
        if self.own_box is not None:
            return self.own_box
        x1, y1, x2, y2 = (0, 0, 0, 0) if self.mask is None else self.mask.box
        return float(x1), float(y1), float(x2), float(y2)

    @property
    def area(self) -> float:
        """The mask's area in pixels, or the box's if there is no mask."""
        if self.mask is not None:
            return self.mask.area
        x1, y1, x2, y2 = self.box
        return (x2 - x1) * (y2 - y1)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The mask's outlines; () if there is no mask."""
        return () if self.mask is None else self.mask.parts()


class AnnotatedResult(Protocol):
    """The parts of a result that exports and drawings read."""

    @property
    def revision(self) -> str:
        """The revision that answered."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    @property
    def classes(self) -> tuple[SegmentClass, ...]:
        """The model's classes."""

    def annotations(self) -> Iterator[Annotation]:
        """Yield the objects, segments or classes."""


def object_entry(found: Annotation) -> dict[str, Any]:
    """Return an object as plain values; see `Segmentation.to_dict`."""
    entry: dict[str, Any] = {"class_id": found.class_id, "class": found.class_name, "score": found.score}
    entry["box"] = list(found.box)
    if found.mask is not None:
        entry["mask"] = text_rle(found.mask)
    if found.points is not None:
        entry["keypoints"] = found.points.tolist()
    return entry


def foreground(annotations: Iterable[Annotation]) -> Iterator[Annotation]:
    """Leave out the class called `background`, which annotation tools represent by the absence of a shape."""
    return (found for found in annotations if not is_background(found.class_name))


def crop(found: Annotation, image: ImageLike, size: tuple[int, int], *, margin: int, cut_out: bool) -> Image.Image:
    """Return the part of the image in one object's box, `margin` pixels wider; see `Objects.crop`."""
    from PIL import Image

    x1, y1, x2, y2 = found.box
    left, top = max(0, math.floor(x1) - margin), max(0, math.floor(y1) - margin)
    right, bottom = min(size[1], math.ceil(x2) + margin), min(size[0], math.ceil(y2) + margin)
    if left >= right or top >= bottom:
        raise BadRequestError(f"the object's box {found.box} lies outside the image of {size[0]} x {size[1]}")
    part = matching_picture(image, size).crop((left, top, right, bottom))
    if not cut_out:
        return part
    if found.mask is None:
        raise BadRequestError("cut_out needs a mask; this object has only a box")
    patch = found.mask.patch()
    opacity = Image.new("L", part.size)
    if patch.pixels.size:
        opacity.paste(Image.fromarray(patch.pixels.astype(np.uint8) * 255), (patch.x - left, patch.y - top))
    part.putalpha(opacity)
    return part


def drawing_of(image: ImageLike, result: AnnotatedResult, annotations: Iterable[Annotation]) -> Drawing:
    """Return annotations of a result, to be drawn on its image; raises as `matching_picture` does."""
    found = []
    for one in annotations:
        patch = None if one.mask is None else one.mask.patch
        found.append(DrawnShape(one.class_id, one.class_name, one.score, one.box, patch, one.points, one.is_thing))
    colours = {known.id: class_colour(known) for known in result.classes}
    return Drawing(matching_picture(image, result.size), found, colours)


def matching_picture(image: ImageLike, size: tuple[int, int]) -> Image.Image:
    """Return an image as a picture; raises `BadRequestError` unless its height and width are `size`."""
    opened = picture(image)
    if (opened.height, opened.width) != size:
        raise BadRequestError(
            f"the result belongs to an image of {size[0]} x {size[1]} (height x width); "
            f"this image is {opened.height} x {opened.width}"
        )
    return opened
