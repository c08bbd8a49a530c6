"""Overlays of results: the colours and drawing order of each kind; crops of single objects."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.canvas import Canvas, Writer
from segserve.rendering.palette import class_colour, palette
from segserve.results.annotation import AnnotatedResult, Annotation, is_background
from segserve.results.images import ImageLike, picture
from segserve.results.masks import Patch
from segserve.results.values import Colour, SegmentClass
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from PIL import Image

ColourBy: TypeAlias = Literal["instance", "class"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a result is drawn: masks filled with `alpha` (0 to 1) of their colour; labels, contours and legend."""

    alpha: float
    labels: bool
    contour: bool
    legend: bool

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadRequestError(f"alpha must be within 0..1, got {self.alpha!r}")


def draw_instances(result: AnnotatedResult, image: ImageLike, style: Style, colour_by: ColourBy) -> Image.Image:
    """Return the image with the masks of objects drawn on it, the best score on top."""
    canvas = Canvas(_matching(image, result.size))
    drawn = _coloured(result, colour_by)
    for one, colour in reversed(drawn):
        if one.mask is not None:
            _paint(canvas, one.mask.patch(), colour, style)
    return _labelled(result.classes, canvas.finished(), drawn, style)


def draw_detections(result: AnnotatedResult, image: ImageLike, style: Style, colour_by: ColourBy) -> Image.Image:
    """Return the image with boxes and keypoints drawn on it, the best score on top."""
    writer = Writer(_matching(image, result.size).copy())
    drawn = _coloured(result, colour_by)
    for one, colour in reversed(drawn):
        if style.contour:
            writer.box(one.box, colour)
        if one.points is not None:
            writer.points(one.points[:, :2].tolist(), colour)
    return _labelled(result.classes, writer.image, drawn, style)


def draw_annotations(result: AnnotatedResult, image: ImageLike, style: Style) -> Image.Image:
    """Return the image with all that is found drawn on it in the colours of classes, except the background."""
    canvas = Canvas(_matching(image, result.size))
    drawn = [each for each in _coloured(result, "class") if not is_background(each[0].class_name)]
    for one, colour in reversed(drawn):
        if one.mask is not None:
            _paint(canvas, one.mask.patch(), colour, style)
    writer = Writer(canvas.finished())
    for one, colour in reversed(drawn):
        if one.mask is None:
            writer.box(one.box, colour)
    return _labelled(result.classes, writer.image, drawn, style)


def draw_labels(
    areas: Mapping[SegmentClass, int], mask_of: Callable[[int], NDArray[np.bool_]], image: ImageLike, style: Style,
    size: tuple[int, int],
) -> Image.Image:  # fmt: skip
    """Return the image with the masks of classes drawn on it, except the background.

    `areas` are the pixels of each class in drawing order, `mask_of` returns a class's mask (H, W) by its id.
    """
    canvas = Canvas(_matching(image, size))
    shown = [one for one, area in areas.items() if area > 0 and not is_background(one.name)]
    for one in shown:
        _paint(canvas, Patch.of(mask_of(one.id)), class_colour(one), style)
    drawn = canvas.finished()
    if style.legend and shown:
        pixels = size[0] * size[1]
        by_area = sorted(shown, key=lambda one: -areas[one])
        Writer(drawn).legend([(class_colour(one), f"{one.name}  {areas[one] / pixels:.1%}") for one in by_area])
    return drawn


def draw_segments(result: AnnotatedResult, is_thing: Mapping[int, bool], image: ImageLike, style: Style) -> Image.Image:
    """Return the image with panoptic segments drawn on it: stuff in the colour of its class, things in their own.

    `is_thing` is by the number of the annotation.
    """
    canvas = Canvas(_matching(image, result.size))
    by_class = _class_colours(result.classes)
    segments = list(result.annotations())
    stuff = {one.class_id: (by_class[one.class_id], one.class_name) for one in segments if not is_thing[one.number]}
    stuff_colours = {colour for colour, _ in stuff.values()}
    free = (colour for colour in map(palette, itertools.count()) if colour not in stuff_colours)
    drawn = [(one, next(free) if is_thing[one.number] else by_class[one.class_id]) for one in segments]
    for one, colour in drawn:
        if one.mask is not None:
            _paint(canvas, one.mask.patch(), colour, style)
    writer = Writer(canvas.finished())
    if style.legend and stuff:
        writer.legend(list(stuff.values()))
    if style.labels:
        _write_labels(writer, ((one, colour) for one, colour in drawn if is_thing[one.number]))
    return writer.image


def crop(found: Annotation, image: ImageLike, size: tuple[int, int], *, margin: int, cut_out: bool) -> Image.Image:
    """Return the part of the image in one object's box, `margin` pixels wider; see `Objects.crop`."""
    from PIL import Image

    x1, y1, x2, y2 = found.box
    left, top = max(0, math.floor(x1) - margin), max(0, math.floor(y1) - margin)
    right, bottom = min(size[1], math.ceil(x2) + margin), min(size[0], math.ceil(y2) + margin)
    if left >= right or top >= bottom:
        raise BadRequestError(f"the object's box {found.box} lies outside the image of {size[0]} x {size[1]}")
    part = _matching(image, size).crop((left, top, right, bottom))
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


def _paint(canvas: Canvas, patch: Patch, colour: Colour, style: Style) -> None:
    if style.alpha:
        canvas.fill(patch, colour, style.alpha)
    if style.contour:
        canvas.contour(patch, colour)


def _coloured(result: AnnotatedResult, colour_by: ColourBy) -> list[tuple[Annotation, Colour]]:
    by_class = _class_colours(result.classes)
    return [
        (one, palette(index) if colour_by == "instance" else by_class[one.class_id])
        for index, one in enumerate(result.annotations())
    ]


def _class_colours(classes: Iterable[SegmentClass]) -> dict[int, Colour]:
    return {one.id: class_colour(one) for one in classes}


def _labelled(
    classes: Iterable[SegmentClass], image: Image.Image, drawn: Sequence[tuple[Annotation, Colour]], style: Style
) -> Image.Image:
    writer = Writer(image)
    if style.legend and drawn:
        colours = _class_colours(classes)
        counts = Counter((one.class_id, one.class_name) for one, _ in drawn).most_common()
        writer.legend([(colours[class_id], f"{name}  {number}") for (class_id, name), number in counts])
    if style.labels:
        _write_labels(writer, drawn)
    return writer.image


def _write_labels(writer: Writer, drawn: Iterable[tuple[Annotation, Colour]]) -> None:
    for one, colour in drawn:
        scored = f"{one.class_name} {one.score:.2f}"
        writer.label(one.box, (scored, one.class_name), colour)


def _matching(image: ImageLike, size: tuple[int, int]) -> Image.Image:
    opened = picture(image)
    if (opened.height, opened.width) != size:
        raise BadRequestError(
            f"the result belongs to an image of {size[0]} x {size[1]} (height x width); "
            f"this image is {opened.height} x {opened.width}"
        )
    return opened
