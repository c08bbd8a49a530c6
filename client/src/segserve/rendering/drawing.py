"""Pictures of results: what is drawn of each kind, in which colour and order; crops of single objects."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from segserve.rendering.canvas import Canvas, Writer
from segserve.rendering.palette import class_colour, palette
from segserve.results.annotation import BACKGROUND
from segserve.results.detections import KeypointDetection
from segserve.results.images import picture
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from PIL import Image

    from segserve.results.annotation import Annotation
    from segserve.results.base import Colour, Segmentation
    from segserve.results.images import ImageLike
    from segserve.results.instances import InstanceResult
    from segserve.results.masks import Patch
    from segserve.results.objects import Detection, Objects
    from segserve.results.panoptic import PanopticResult
    from segserve.results.semantic import SemanticResult

ColourBy: TypeAlias = Literal["instance", "class"]


@dataclass(frozen=True, slots=True)
class Style:
    """How a result is drawn: masks filled with `alpha` of their colour; which of the rest there is."""

    alpha: float
    labels: bool
    contour: bool
    legend: bool

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadRequestError(f"alpha is within 0..1, got {self.alpha!r}")


def draw_instances(result: InstanceResult, image: ImageLike, style: Style, colour_by: ColourBy) -> Image.Image:
    """Return the image with the instances of a result drawn on it, the best-scored on top."""
    canvas = Canvas(_matching(image, result.size))
    drawn = list(zip(result, _object_colours(result, colour_by), strict=True))
    for one, colour in reversed(drawn):
        _paint(canvas, one.encoded.patch(), colour, style)
    return _labelled(result, canvas.finished(), drawn, style)


def draw_detections(result: Objects[Any], image: ImageLike, style: Style, colour_by: ColourBy) -> Image.Image:
    """Return the image with boxes, and their points, drawn on it, the best-scored on top."""
    writer = Writer(_matching(image, result.size).copy())
    drawn = list(zip(result, _object_colours(result, colour_by), strict=True))
    for found, colour in reversed(drawn):
        if style.contour:
            writer.box(found.box, colour)
        if isinstance(found, KeypointDetection):
            writer.points(found.points[:, :2].tolist(), colour)
    return _labelled(result, writer.image, drawn, style)


def draw_labels(result: SemanticResult, image: ImageLike, style: Style) -> Image.Image:
    """Return the image with the classes of a result drawn on it, all but the background."""
    from segserve.results.masks import Patch

    canvas = Canvas(_matching(image, result.size))
    shown = [
        known for known in result.classes if known.name.lower() != BACKGROUND and result.areas.get(known.name, 0) > 0
    ]
    for known in shown:
        _paint(canvas, Patch.of(result.mask(known.id)), class_colour(known), style)
    drawn = canvas.finished()
    if style.legend and shown:
        pixels = result.size[0] * result.size[1]
        by_area = sorted(shown, key=lambda known: -result.areas[known.name])
        shares = ((class_colour(known), f"{known.name}  {result.areas[known.name] / pixels:.1%}") for known in by_area)
        Writer(drawn).legend(list(shares))
    return drawn


def draw_segments(result: PanopticResult, image: ImageLike, style: Style) -> Image.Image:
    """Return the image with the segments of a result drawn on it: stuff in its class's colour, things in their own."""
    canvas = Canvas(_matching(image, result.size))
    by_class = _class_colours(result)
    stuff = {found.class_id: (by_class[found.class_id], found.class_name) for found in result if not found.is_thing}
    taken = {colour for colour, _ in stuff.values()}
    free = (colour for colour in map(palette, itertools.count()) if colour not in taken)
    drawn = [(found, next(free) if found.is_thing else by_class[found.class_id]) for found in result]
    for (_, colour), found in zip(drawn, result.annotations(), strict=True):
        if found.mask is not None:
            _paint(canvas, found.mask.patch(), colour, style)
    writer = Writer(canvas.finished())
    if style.legend and stuff:
        writer.legend(list(stuff.values()))
    if style.labels:
        _write_labels(writer, ((found, colour) for found, colour in drawn if found.is_thing))
    return writer.image


def crop(found: Annotation, image: ImageLike, size: tuple[int, int], *, margin: int, cut_out: bool) -> Image.Image:
    """Return the part of the image in one object's box, `margin` pixels wider; see `Objects.crop`."""
    from PIL import Image

    x1, y1, x2, y2 = found.box
    left, top = max(0, math.floor(x1) - margin), max(0, math.floor(y1) - margin)
    right, bottom = min(size[1], math.ceil(x2) + margin), min(size[0], math.ceil(y2) + margin)
    if left >= right or top >= bottom:
        raise BadRequestError(f"the object's box {found.box} has nothing of the image of {size[0]} x {size[1]}")
    part = _matching(image, size).crop((left, top, right, bottom))
    if not cut_out:
        return part
    if found.mask is None:
        raise BadRequestError("cut_out needs a mask; this object has only a box")
    patch = found.mask.patch()
    inside = Image.fromarray(patch.pixels.astype(np.uint8) * 255) if patch.pixels.size else None
    opacity = Image.new("L", part.size)
    if inside is not None:
        opacity.paste(inside, (patch.x - left, patch.y - top))
    part.putalpha(opacity)
    return part


def _paint(canvas: Canvas, patch: Patch, colour: Colour, style: Style) -> None:
    if style.alpha:
        canvas.fill(patch, colour, style.alpha)
    if style.contour:
        canvas.contour(patch, colour)


def _object_colours(result: Objects[Any], colour_by: ColourBy) -> list[Colour]:
    if colour_by == "instance":
        return [palette(index) for index in range(len(result))]
    by_class = _class_colours(result)
    return [by_class[found.class_id] for found in result]


def _class_colours(result: Segmentation) -> dict[int, Colour]:
    return {known.id: class_colour(known) for known in result.classes}


def _labelled(result: Objects[Any], image: Image.Image, drawn: list[tuple[Any, Colour]], style: Style) -> Image.Image:
    writer = Writer(image)
    if style.legend and drawn:
        colours = _class_colours(result)
        writer.legend([(colours[class_id], name) for class_id, name in _counted(result)])
    if style.labels:
        _write_labels(writer, drawn)
    return writer.image


def _write_labels(writer: Writer, drawn: Iterable[tuple[Detection, Colour]]) -> None:
    for found, colour in drawn:
        writer.label(found.box, (f"{found.class_name} {found.score:.2f}", found.class_name), colour)


def _counted(result: Objects[Any]) -> list[tuple[int, str]]:
    """Return the classes that were found as id, and name with number, the most frequent first."""
    numbers: dict[tuple[int, str], int] = {}
    for found in result:
        key = (found.class_id, found.class_name)
        numbers[key] = numbers.get(key, 0) + 1
    ordered = sorted(numbers.items(), key=lambda item: -item[1])
    return [(class_id, f"{name}  {number}") for (class_id, name), number in ordered]


def _matching(image: ImageLike, size: tuple[int, int]) -> Image.Image:
    opened = picture(image)
    if (opened.height, opened.width) != size:
        raise BadRequestError(
            f"the result is of an image of {size[0]} x {size[1]} (height x width), "
            f"this one is {opened.height} x {opened.width}"
        )
    return opened
