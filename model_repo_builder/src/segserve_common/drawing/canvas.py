"""Drawing primitives: masks and contours on an image, boxes, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segserve_common.drawing import printable
from segserve_common.drawing.palette import WHITE, Colour, readable_on

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

Rectangle: TypeAlias = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""
_DARK: Final = (20, 20, 20)
# Fractions of the image that text may cover.
_MOST_LABELS: Final = 0.25
_MOST_LEGEND: Final = 0.3
# The shortest side of an image in pixels below which a second line would hide the object.
_LEAST_CASED: Final = 128


@dataclass(frozen=True, eq=False)
class Patch:
    """The bounding rectangle of a mask: bool (h, w), with its top left pixel at `x`, `y` of the image.

    The patch of an empty mask has the shape (0, 0).
    """

    x: int
    y: int
    pixels: NDArray[np.bool_]

    @classmethod
    def of(cls, bitmap: NDArray[np.bool_], x: int = 0, y: int = 0) -> Patch:
        """Cut the patch out of a bitmap, bool (H, W), whose top left pixel is at `x`, `y`."""
        rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
        if rows.size == 0:
            return cls(0, 0, np.zeros((0, 0), np.bool_))
        top, left = int(rows[0]), int(columns[0])
        return cls(x + left, y + top, bitmap[top : rows[-1] + 1, left : columns[-1] + 1])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The rectangle as x1, y1, x2, y2; x2 and y2 are exclusive."""
        height, width = self.pixels.shape
        return self.x, self.y, self.x + width, self.y + height

    @property
    def window(self) -> tuple[slice, slice]:
        """The index of the patch in an array of the whole image."""
        x1, y1, x2, y2 = self.box
        return slice(y1, y2), slice(x1, x2)


class Canvas:
    """An image, uint8 (H, W, 3), on which masks are painted."""

    def __init__(self, image: Image.Image) -> None:
        self.pixels: NDArray[np.uint8] = np.array(image)
        self._width = line_width(image)

    def fill(self, patch: Patch, colour: Colour, alpha: float) -> None:
        """Blend the colour into the mask with the weight `alpha` (0 to 1)."""
        part = self.pixels[patch.window]
        levels = np.arange(256)
        for channel, tint in enumerate(colour):
            blended = (levels * (1 - alpha) + tint * alpha).round().astype(np.uint8)
            part[..., channel][patch.pixels] = blended[part[..., channel][patch.pixels]]

    def contour(self, patch: Patch, colour: Colour) -> None:
        """Draw the mask's outline inside the mask: the colour, then a thin contrasting line.

        The second line shows the contour on an image of the same colour. There is no outline along the image's border.
        """
        if not patch.pixels.size:
            return
        thin = max(1, self._width // 2)
        margin = self._width + thin
        grown = np.pad(patch.pixels, margin)
        # The mask continues beyond the image's border.
        x1, y1, x2, y2 = patch.box
        height, width = self.pixels.shape[:2]
        if y1 == 0:
            grown[:margin] = grown[margin]
        if y2 == height:
            grown[-margin:] = grown[-margin - 1]
        if x1 == 0:
            grown[:, :margin] = grown[:, margin : margin + 1]
        if x2 == width:
            grown[:, -margin:] = grown[:, -margin - 1 : -margin]
        inner = _eroded(grown, self._width)
        part = self.pixels[patch.window]
        core = inner[thin:-thin, thin:-thin]
        part[patch.pixels & ~core] = colour
        if min(self.pixels.shape[:2]) >= _LEAST_CASED:
            part[core & ~_eroded(inner, thin)] = readable_on(colour)

    def finished(self) -> Image.Image:
        """Return the painted image."""
        from PIL import Image

        return Image.fromarray(self.pixels)


def line_width(image: Image.Image) -> int:
    """Return the line width in pixels for an image of that size."""
    return math.ceil(min(image.size) / 256)


class Writer:
    """Boxes, points and text on an image; labels do not overlap."""

    def __init__(self, image: Image.Image) -> None:
        from PIL import ImageDraw, ImageFont

        self.image = image
        self._draw: ImageDraw.ImageDraw = ImageDraw.Draw(image)
        self._line = line_width(image)
        self._size = int(np.clip(min(image.size) / 32, 9, 64))
        self._font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(self._size)
        self._pad = max(2, self._size // 5)
        self._taken: list[Rectangle] = []
        self._room = image.width * image.height * _MOST_LABELS

    def label(self, box: Rectangle, texts: Sequence[str], colour: Colour) -> None:
        """Write the first of `texts` that fits near `box`; none if labels already cover the area, or too much of the
        image.
        """
        for text in map(printable, texts):
            width, height = self._measure(text)
            if width > self.image.width or width * height > self._room:
                continue
            places = (self._moved_inside(place) for place in _places(box, width, height))
            free = (place for place in places if not any(_overlap(place, taken) for taken in self._taken))
            place = next(free, None)
            if place is not None:
                self._taken.append(place)
                self._room -= width * height
                self._draw.rectangle(place, fill=colour, outline=readable_on(colour))
                self._write(place[0] + self._pad, (place[1] + place[3]) / 2, text, readable_on(colour))
                return

    def box(self, box: Rectangle, colour: Colour) -> None:
        """Draw a box's outline, with a thin contrasting line inside."""
        x1, y1, x2, y2 = box
        if x1 > x2 or y1 > y2:
            return
        self._draw.rectangle(box, outline=colour, width=self._line)
        inner = (x1 + self._line, y1 + self._line, x2 - self._line, y2 - self._line)
        if inner[0] < inner[2] and inner[1] < inner[3] and min(self.image.size) >= _LEAST_CASED:
            self._draw.rectangle(inner, outline=readable_on(colour), width=max(1, self._line // 2))

    def points(self, points: Iterable[tuple[float, float]], colour: Colour) -> None:
        """Draw a dot at each x, y."""
        radius = max(2, math.ceil(min(self.image.size) / 90))
        for x, y in points:
            place = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(place, fill=colour, outline=readable_on(colour), width=max(1, self._line // 2))

    def legend(self, entries: Sequence[tuple[Colour, str]]) -> None:
        """Write the entries below each other, each next to its colour, in the top left corner.

        Entries without room are counted in the last line; there is no legend if it would hide the image.
        """
        swatch, gap = self._size, self._pad * 2
        line = self._size + gap
        room = max(1, (self.image.height - 2 * gap) // line)
        shown = list(entries) if len(entries) <= room else list(entries[: room - 1])
        lines: list[tuple[Colour, str]] = [(colour, printable(text)) for colour, text in shown]
        if len(shown) < len(entries):
            lines.append((_DARK, f"and {len(entries) - len(shown)} more"))
        width = max(self._measure(text)[0] for _, text in lines) + swatch + gap * 2
        frame = (gap, gap, gap + width, gap * 2 + line * len(lines))
        if frame[2] > self.image.width or width * frame[3] > self.image.width * self.image.height * _MOST_LEGEND:
            return
        self._draw.rectangle(frame, fill=_DARK, outline=WHITE)
        self._taken.append(frame)
        for index, (colour, text) in enumerate(lines):
            top = gap * 2 + line * index
            self._draw.rectangle((gap * 2, top, gap * 2 + swatch, top + swatch), fill=colour)
            self._write(gap * 3 + swatch, top + swatch / 2, text, WHITE)

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
    """Yield places for a label: above and below the box, then downwards inside it."""
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


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """Return the mask without its outermost pixels, smaller by that many on each side."""
    done = 0
    while done < pixels:
        # A rhombus and its copies as far away as it reaches, or less, are a larger one.
        step = min(max(done, 1), pixels - done)
        middle, ahead, behind = slice(step, -step), slice(2 * step, None), slice(None, -2 * step)
        rows = mask[ahead, middle] & mask[behind, middle]
        mask = mask[middle, middle] & rows & mask[middle, ahead] & mask[middle, behind]
        done += step
    return mask
