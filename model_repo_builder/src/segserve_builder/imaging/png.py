"""PNG files of label maps and masks, and the palette that gives every class a colour."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray

Rgb: TypeAlias = tuple[int, int, int]

COMPRESSION: Final = 1
"""zlib's fastest level: label maps are regular, so slower levels gain little."""


def default_colour(label: int) -> Rgb:
    """Return the default colour of a class, PASCAL VOC's, in which class 0 is black."""
    red = green = blue = 0
    for bit in range(8):
        red |= (label >> (3 * bit) & 1) << (7 - bit)
        green |= (label >> (3 * bit + 1) & 1) << (7 - bit)
        blue |= (label >> (3 * bit + 2) & 1) << (7 - bit)
    return red, green, blue


def palette(colours: Sequence[str | None]) -> tuple[Rgb, ...]:
    """Return 256 colours: those of the classes, as #rrggbb, and default ones for None and for further labels."""
    own = {label: colour for label, colour in enumerate(colours) if colour is not None}
    return tuple(_rgb(own[label]) if label in own else default_colour(label) for label in range(256))


@cache
def _palette_bytes(colours: tuple[str | None, ...]) -> bytes:
    return bytes(part for colour in palette(colours) for part in colour)


def _rgb(colour: str) -> Rgb:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def label_png(labels: NDArray[Any], colours: Sequence[str | None]) -> bytes:
    """Return a label map (H, W) as PNG: uint8 labels with the classes' palette, uint16 ones as 16-bit grey."""
    from PIL import Image

    image = Image.fromarray(labels)
    if labels.dtype.itemsize == 1:  # with fewer than 256 colours Pillow would write fewer than 8 bits
        image.putpalette(_palette_bytes(tuple(colours)))
    return _file(image)


def mask_png(bitmap: NDArray[Any]) -> bytes:
    """Return a mask, uint8 0/1 shaped (H, W), as 8-bit grey PNG of 0 and 255."""
    from PIL import Image

    return _file(Image.fromarray(bitmap * 255))


def _file(image: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()
