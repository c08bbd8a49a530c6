"""Pictures of results: filled and outlined masks, labels that keep out of each other's way, a legend."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from segserve.detections import KeypointDetection
from segserve.errors import BadRequestError
from segserve.images import picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray
    from PIL import Image, ImageDraw, ImageFont

    from segserve.images import ImageLike
    from segserve.instances import InstanceResult
    from segserve.objects import Detection
    from segserve.panoptic import PanopticResult
    from segserve.semantic import SemanticResult
    from segserve.types import Colour, SegmentClass

Rectangle: TypeAlias = tuple[float, float, float, float]

BACKGROUND: Final = "background"
_GOLDEN: Final = 0.618033988749895
_MIN_LUMA: Final = 0.4
_TONES: Final = ((0.85, 1.0), (0.6, 0.95), (1.0, 0.8))


def palette(index: int) -> Colour:
    """Return the colour of that number: always the same, neighbours far apart in hue, none dark."""
    saturation, value = _TONES[index % len(_TONES)]
    colour = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, saturation, value)
    luma = _luma(colour)
    white = max(0.0, (_MIN_LUMA - luma) / (1 - luma))
    red, green, blue = (round(255 * (part + (1 - part) * white)) for part in colour)
    return red, green, blue


def class_colour(known: SegmentClass) -> Colour:
    """Return the colour that the model's file gives a class, else that of its id."""
    return known.colour or palette(known.id)


def draw_instances(
    result: InstanceResult,
    image: ImageLike,
    *,
    alpha: float,
    labels: bool,
    colour_by: Literal["instance", "class"],
) -> Image.Image:
    """Return the image with the instances of a result drawn on it, the best-scored on top."""
    canvas = Canvas(_matching(image, result.size))
    classes = {known.id: known for known in result.classes}
    colours = [
        palette(index) if colour_by == "instance" else class_colour(classes[instance.class_id])
        for index, instance in enumerate(result.instances)
    ]
    drawn = list(zip(result.instances, colours, strict=True))
    for instance, colour in reversed(drawn):
        canvas.paint(instance.mask, colour, alpha)
    if labels:
        writer = Writer(canvas.finished())
        for instance, colour in drawn:
            writer.label(instance.box, f"{instance.class_name} {instance.score:.2f}", colour)
        return writer.image
    return canvas.finished()


def draw_labels(result: SemanticResult, image: ImageLike, *, alpha: float, labels: bool) -> Image.Image:
    """Return the image with the classes of a result drawn on it, all but the background."""
    canvas = Canvas(_matching(image, result.size))
    shown = [
        known for known in result.classes if known.name.lower() != BACKGROUND and result.areas.get(known.name, 0) > 0
    ]
    for known in shown:
        canvas.paint(result.mask(known.id), class_colour(known), alpha)
    if not (labels and shown):
        return canvas.finished()
    writer = Writer(canvas.finished())
    pixels = result.size[0] * result.size[1]
    writer.legend([(class_colour(known), f"{known.name}  {result.areas[known.name] / pixels:.1%}") for known in shown])
    return writer.image


def draw_detections(
    detections: Sequence[Detection], image: ImageLike, size: tuple[int, int], *, labels: bool
) -> Image.Image:
    """Return the image with boxes, and their points, drawn on it, the best-scored on top."""
    writer = Writer(_matching(image, size).copy())
    drawn = [(found, palette(index)) for index, found in enumerate(detections)]
    for found, colour in reversed(drawn):
        writer.box(found.box, colour)
        if isinstance(found, KeypointDetection):
            writer.points(found.points[:, :2].tolist(), colour)
    if labels:
        for found, colour in drawn:
            writer.label(found.box, f"{found.class_name} {found.score:.2f}", colour)
    return writer.image


def draw_segments(result: PanopticResult, image: ImageLike, *, alpha: float, labels: bool) -> Image.Image:
    """Return the image with the segments of a result drawn on it: stuff in its class's colour, things in their own."""
    canvas = Canvas(_matching(image, result.size))
    classes = {known.id: known for known in result.classes}
    drawn = [
        (found, palette(index) if found.is_thing else class_colour(classes[found.class_id]))
        for index, found in enumerate(result.segments)
    ]
    for found, colour in drawn:
        canvas.paint(result.mask(found), colour, alpha)
    if not labels:
        return canvas.finished()
    writer = Writer(canvas.finished())
    for found, colour in drawn:
        text = f"{found.class_name} {found.score:.2f}" if found.is_thing else found.class_name
        writer.label(found.box, text, colour)
    return writer.image


@dataclass
class Canvas:
    """The image as it is painted, uint8 (H, W, 3)."""

    base: Image.Image
    pixels: NDArray[np.uint8] = field(init=False)

    def __post_init__(self) -> None:
        self.pixels = np.array(self.base)

    def paint(self, mask: NDArray[np.bool_], colour: Colour, alpha: float) -> None:
        """Blend `alpha` of the colour into the mask and draw its outline in full."""
        box = _bounds(mask)
        if box is None:
            return
        # All work is done in the mask's own box: an image may have hundreds of masks.
        part, inside = self.pixels[box], mask[box]
        tint = np.array(colour, np.float32)
        part[inside] = (part[inside] * (1 - alpha) + tint * alpha).round().astype(np.uint8)
        part[inside & ~_eroded(inside, outline_width(self.base))] = colour

    def finished(self) -> Image.Image:
        """Return what was painted."""
        from PIL import Image

        return Image.fromarray(self.pixels)


def outline_width(image: Image.Image) -> int:
    """Return how many pixels an outline is wide."""
    return max(1, round(min(image.size) / 400))


class Writer:
    """Text on an image, in boxes of a colour; those of labels do not overlap where there is room."""

    def __init__(self, image: Image.Image) -> None:
        from PIL import ImageDraw, ImageFont

        self.image = image
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(image)
        self._size = int(np.clip(min(image.size) / 32, 10, 28))
        self._font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(self._size)
        self._pad = max(2, self._size // 5)
        self._taken: list[Rectangle] = []

    def label(self, box: Rectangle, text: str, colour: Colour) -> None:
        """Write at the first place near `box` where no label is, else over one, above the box."""
        width, height = self._measure(text)
        places = [self._moved_inside(place) for place in _places(box, width, height)]
        free = (place for place in places if not any(_overlap(place, taken) for taken in self._taken))
        place = next(free, places[0])
        self._taken.append(place)
        self._draw.rectangle(place, fill=colour)
        self._write(place[0] + self._pad, (place[1] + place[3]) / 2, text, _readable_on(colour))

    def box(self, box: Rectangle, colour: Colour) -> None:
        """Draw a box's outline."""
        self._draw.rectangle(box, outline=colour, width=outline_width(self.image))

    def points(self, points: Iterable[tuple[float, float]], colour: Colour) -> None:
        """Draw a dot at each x, y, readable on any background."""
        radius = 2 * outline_width(self.image)
        for x, y in points:
            place = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(place, fill=colour, outline=_readable_on(colour))

    def legend(self, entries: list[tuple[Colour, str]]) -> None:
        """Write the entries under each other, each behind its colour, in the top left corner."""
        swatch, gap = self._size, self._pad * 2
        line = self._size + gap
        width = max(self._measure(text)[0] for _, text in entries) + swatch + gap * 2
        self._draw.rectangle((gap, gap, gap + width, gap * 2 + line * len(entries)), fill=(20, 20, 20))
        for index, (colour, text) in enumerate(entries):
            top = gap * 2 + line * index
            self._draw.rectangle((gap * 2, top, gap * 2 + swatch, top + swatch), fill=colour)
            self._write(gap * 3 + swatch, top + swatch / 2, text, (255, 255, 255))

    def _measure(self, text: str) -> tuple[float, float]:
        return self._draw.textlength(text, self._font) + 2 * self._pad, self._size + self._pad

    def _write(self, left: float, middle: float, text: str, colour: Colour) -> None:
        self._draw.text((left, middle), text, fill=colour, font=self._font, anchor="lm")

    def _moved_inside(self, place: Rectangle) -> Rectangle:
        left, top, right, bottom = place
        dx = min(0, self.image.width - 1 - right) or max(0, -left)
        dy = min(0, self.image.height - 1 - bottom) or max(0, -top)
        return left + dx, top + dy, right + dx, bottom + dy


def _places(box: Rectangle, width: float, height: float) -> Iterator[Rectangle]:
    """Yield where a label may go: above, below, and down along the inside of the box."""
    x1, y1, x2, y2 = box
    middle = (x1 + x2 - width) / 2
    corners = (
        (x1, y1 - height),
        (x1, y2),
        (middle, y1),
        (middle, (y1 + y2 - height) / 2),
        (middle, y2 - height),
    )
    for left, top in corners:
        yield left, top, left + width, top + height


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _readable_on(colour: Colour) -> Colour:
    return (0, 0, 0) if _luma(colour) > 140 else (255, 255, 255)


def _luma(colour: tuple[float, float, float]) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _bounds(mask: NDArray[np.bool_]) -> tuple[slice, slice] | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return None
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    inner = np.pad(mask, 1)
    for _ in range(pixels):
        core = inner[1:-1, 1:-1]
        core = core & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        inner = np.pad(core, 1)
    return inner[1:-1, 1:-1]


def _matching(image: ImageLike, size: tuple[int, int]) -> Image.Image:
    opened = picture(image)
    if (opened.height, opened.width) != size:
        raise BadRequestError(
            f"the result is of an image of {size[0]} x {size[1]} (height x width), "
            f"this one is {opened.height} x {opened.width}"
        )
    return opened
