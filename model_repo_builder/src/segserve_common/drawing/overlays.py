"""Overlays of answers: the colours and drawing order of each kind."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from numpy.typing import NDArray

from segserve_common.drawing.canvas import Canvas, Patch, Rectangle, Writer
from segserve_common.drawing.palette import Colour, palette
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from PIL import Image

ColourBy: TypeAlias = Literal["instance", "class"]


@dataclass(frozen=True, slots=True)
class DrawnShape:
    """An object, a segment, or all pixels of a class, as it is drawn.

    `patch` returns its mask, and is None if there is only a box; `points` are (K, 3) as x, y, score.
    """

    class_id: int
    class_name: str
    score: float | None
    box: Rectangle
    patch: Callable[[], Patch] | None
    points: NDArray[Any] | None = None
    is_thing: bool = True


@dataclass(frozen=True, slots=True)
class Drawing:
    """An image, what is drawn on it, and the colours of classes by their id."""

    image: Image.Image
    found: Sequence[DrawnShape]
    colours: Mapping[int, Colour]


@dataclass(frozen=True, slots=True)
class Style:
    """How a result is drawn: masks filled with `alpha` (0 to 1) of their colour; labels, contours and legend."""

    alpha: float = 0.45
    labels: bool = True
    contour: bool = True
    legend: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise BadRequestError(f"alpha must be within 0..1, got {self.alpha!r}")


def draw_objects(drawing: Drawing, style: Style, colour_by: ColourBy = "instance") -> Image.Image:
    """Return the image with objects drawn on it, the best score on top: masks, or else boxes, and keypoints."""
    canvas = Canvas(drawing.image)
    drawn = [
        (one, palette(index) if colour_by == "instance" else drawing.colours[one.class_id])
        for index, one in enumerate(drawing.found)
    ]
    for one, colour in reversed(drawn):
        _paint(canvas, one, colour, style)
    writer = Writer(canvas.finished())
    for one, colour in reversed(drawn):
        if one.patch is None and style.contour:
            writer.box(one.box, colour)
        if one.points is not None:
            writer.points(one.points[:, :2].tolist(), colour)
    if style.legend and drawn:
        counts = Counter((one.class_id, one.class_name) for one, _ in drawn).most_common()
        writer.legend([(drawing.colours[class_id], f"{name}  {number}") for (class_id, name), number in counts])
    if style.labels:
        _write_labels(writer, drawn)
    return writer.image


def draw_labels(drawing: Drawing, areas: Mapping[int, int], style: Style) -> Image.Image:
    """Return the image with the masks of classes drawn on it, except the background; `areas` are pixels by id."""
    canvas = Canvas(drawing.image)
    shown = [one for one in drawing.found if areas[one.class_id] > 0 and not is_background(one.class_name)]
    for one in shown:
        _paint(canvas, one, drawing.colours[one.class_id], style)
    drawn = canvas.finished()
    if style.legend and shown:
        pixels = drawn.height * drawn.width
        by_area = sorted(shown, key=lambda one: -areas[one.class_id])
        shares = [f"{one.class_name}  {areas[one.class_id] / pixels:.1%}" for one in by_area]
        Writer(drawn).legend([(drawing.colours[one.class_id], text) for one, text in zip(by_area, shares, strict=True)])
    return drawn


def draw_segments(drawing: Drawing, style: Style) -> Image.Image:
    """Return the image with panoptic segments drawn on it: stuff in the colour of its class, things in their own."""
    canvas = Canvas(drawing.image)
    by_class = drawing.colours
    stuff = {one.class_id: (by_class[one.class_id], one.class_name) for one in drawing.found if not one.is_thing}
    stuff_colours = {colour for colour, _ in stuff.values()}
    free = (colour for colour in map(palette, itertools.count()) if colour not in stuff_colours)
    drawn = [(one, next(free) if one.is_thing else by_class[one.class_id]) for one in drawing.found]
    for one, colour in drawn:
        _paint(canvas, one, colour, style)
    writer = Writer(canvas.finished())
    if style.legend and stuff:
        writer.legend(list(stuff.values()))
    if style.labels:
        _write_labels(writer, ((one, colour) for one, colour in drawn if one.is_thing))
    return writer.image


def is_background(class_name: str) -> bool:
    """Return whether a class is called `background`, in any case."""
    return class_name.lower() == "background"


def _paint(canvas: Canvas, one: DrawnShape, colour: Colour, style: Style) -> None:
    if one.patch is None:
        return
    patch = one.patch()
    if style.alpha:
        canvas.fill(patch, colour, style.alpha)
    if style.contour:
        canvas.contour(patch, colour)


def _write_labels(writer: Writer, drawn: Iterable[tuple[DrawnShape, Colour]]) -> None:
    for one, colour in drawn:
        scored = f"{one.class_name} {one.score:.2f}"
        writer.label(one.box, (scored, one.class_name), colour)
