"""Colours: stable per class, distinguishable for colour-blind viewers; and readable text on them."""

from __future__ import annotations

import colorsys
from typing import Final, TypeAlias

Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue, each 0 to 255."""

BLACK: Final = (0, 0, 0)
WHITE: Final = (255, 255, 255)
# Okabe and Ito's colours without black, which does not suit fills; neighbours also differ in brightness.
OKABE_ITO: Final = (
    (230, 159, 0),
    (86, 180, 233),
    (213, 94, 0),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (204, 121, 167),
)
_TINTS: Final = ((0, 0.0), (255, 0.5), (0, 0.4))
_GOLDEN: Final = 0.618033988749895
_TONES: Final = ((0.85, 1.0), (0.6, 0.95), (1.0, 0.8))


def palette(index: int) -> Colour:
    """Return the colour with this number, always the same: Okabe and Ito's, then lighter, darker and further ones."""
    tint, place = divmod(index, len(OKABE_ITO))
    if tint < len(_TINTS):
        towards, share = _TINTS[tint]
        red, green, blue = (round(part + (towards - part) * share) for part in OKABE_ITO[place])
    else:
        saturation, value = _TONES[index % len(_TONES)]
        colour = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN) % 1, saturation, value)
        red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def colour_of(text: str | None) -> Colour | None:
    """Return the colour that `#rrggbb` names, None for None."""
    if text is None:
        return None
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue


def readable_on(colour: Colour) -> Colour:
    """Return black or white, whichever contrasts more with the colour."""
    luminance = sum(weight * (part / 255) ** 2.2 for weight, part in zip((0.2126, 0.7152, 0.0722), colour, strict=True))
    # At this luminance, WCAG 2 measures the same contrast with black and with white.
    return BLACK if luminance > 0.179 else WHITE
