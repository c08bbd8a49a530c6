"""Two answers to one image beside each other: the image, both answers, and where they differ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from segserve.rendering.display import printable
from segserve.results.annotation import AnnotatedResult, Annotation, drawing_of, foreground
from segserve.results.images import ImageLike, picture
from segserve_common.drawing.canvas import Canvas, Patch, Writer
from segserve_common.drawing.overlays import Style, draw_objects
from segserve_common.drawing.palette import OKABE_ITO

if TYPE_CHECKING:
    from PIL import Image, ImageFont

    from segserve.results.result import Result

STABLE_ONLY: Final = OKABE_ITO[0]
CANDIDATE_ONLY: Final = OKABE_ITO[5]
OTHER_CLASS: Final = OKABE_ITO[6]
SIDE_PX: Final = 480
"""Longest side of each of the four panels."""
_BACKGROUND: Final = (255, 255, 255)
_TEXT: Final = (20, 20, 20)
_FONT_PX: Final = 15
_LINE_PX: Final = 21
_MARGIN_PX: Final = 10
_PALE: Final = 0.35
"""How much of the image is left where the answers are compared."""
_LINE_CHARACTERS: Final = 200
_KEY_PX: Final = _FONT_PX + 2
"""Width of a colour of the legend."""
_NAME_PX: Final = 160
"""Longest name in the legend."""
_DIFFERENCE: Final = "difference:"
_OVERLAY: Final = Style(alpha=0.45, labels=False, contour=True, legend=True)


def draw_comparison(
    image: ImageLike,
    stable: Result,
    candidate: Result,
    figures: Sequence[str],
    names: tuple[str, str] = ("stable", "candidate"),
) -> Image.Image:
    """Return four panels in a row, with the lines of text `figures` below: image, stable, candidate, difference.

    `names` are the answers' names. Raises `BadRequestError` if the size of `image` differs from an answer's.
    """
    shown = picture(image)
    panels = [
        ("image", shown.copy()),
        (f"{names[0]} {stable.revision}", stable.overlay(shown, labels=False, legend=True)),
        (f"{names[1]} {candidate.revision}", candidate.overlay(shown, labels=False, legend=True)),
        (_DIFFERENCE, draw_difference(shown, stable, candidate)),
    ]
    return _side_by_side(panels, figures, names)


def draw_label_comparison(
    image: ImageLike, labels: AnnotatedResult, answer: AnnotatedResult, figures: Sequence[str]
) -> Image.Image:
    """Return panels as `draw_comparison` does, of an image's labels and of the answer to it; `background` is not drawn.

    Raises `BadRequestError` if the size of `image` differs from the labels' or the answer's.
    """
    shown = picture(image)
    panels = [
        ("image", shown.copy()),
        ("labels", _foreground(shown, labels)),
        (f"answer {answer.revision}", _foreground(shown, answer)),
        (_DIFFERENCE, draw_difference(shown, labels, answer)),
    ]
    return _side_by_side(panels, figures, ("labels", "answer"))


def _foreground(image: ImageLike, result: AnnotatedResult) -> Image.Image:
    return draw_objects(drawing_of(image, result, foreground(result.annotations())), _OVERLAY, "class")


def draw_difference(image: ImageLike, stable: AnnotatedResult, candidate: AnnotatedResult) -> Image.Image:
    """Return the image, pale and grey, and on it what only one of the answers has, by class.

    Pixels that each gives to another class have a third colour. Objects without masks are drawn as boxes of both.
    """
    from PIL import Image

    grey = picture(image).convert("L").convert("RGB")
    pale = Image.blend(Image.new("RGB", grey.size, _BACKGROUND), grey, _PALE)
    sides = [list(foreground(each.annotations())) for each in (stable, candidate)]
    if any(found.mask is None for side in sides for found in side):
        writer = Writer(pale)
        for side, colour in zip(sides, (STABLE_ONLY, CANDIDATE_ONLY), strict=True):
            for found in side:
                writer.box(found.box, colour)
                if found.points is not None:
                    writer.points(found.points[:, :2].tolist(), colour)
        return writer.image
    only = [np.zeros((pale.height, pale.width), bool) for _ in sides]
    for number in sorted({found.class_id for side in sides for found in side}):
        ours, theirs = (_mask((found for found in side if found.class_id == number), only[0].shape) for side in sides)
        only[0] |= ours & ~theirs
        only[1] |= theirs & ~ours
    canvas = Canvas(pale)
    for mask, colour in (
        (only[0] & ~only[1], STABLE_ONLY),
        (only[1] & ~only[0], CANDIDATE_ONLY),
        (only[0] & only[1], OTHER_CLASS),
    ):
        canvas.fill(Patch.of(mask), colour, 1.0)
    return canvas.finished()


def _mask(found: Iterable[Annotation], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    whole = np.zeros(shape, bool)
    for one in found:
        assert one.mask is not None
        patch = one.mask.patch()
        whole[patch.window] |= patch.pixels
    return whole


def _side_by_side(
    panels: Sequence[tuple[str, Image.Image]], figures: Sequence[str], names: tuple[str, str]
) -> Image.Image:
    from PIL import Image, ImageDraw, ImageFont

    width, height = panels[0][1].size
    scale = SIDE_PX / max(width, height)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    # Small images stay as sharp as their pixels.
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    top, font = _MARGIN_PX + _LINE_PX, ImageFont.load_default(_FONT_PX)
    only = [f"{_fitting(name, _NAME_PX, font)} only" for name in names]
    legend = list(zip((STABLE_ONLY, CANDIDATE_ONLY, OTHER_CLASS), (*only, "other class"), strict=True))
    last = (len(panels) - 1) * (size[0] + _MARGIN_PX) + _MARGIN_PX
    x = last + math.ceil(font.getlength(_DIFFERENCE)) + _MARGIN_PX
    # Beside narrow panels the legend needs more room than the last of them.
    legend_px = x - last + sum(math.ceil(_KEY_PX + font.getlength(name) + _MARGIN_PX) for _, name in legend)
    sheet = Image.new(
        "RGB",
        (
            last + max(size[0] + _MARGIN_PX, legend_px),
            top + size[1] + _MARGIN_PX + _LINE_PX * len(figures) + 6,
        ),
        _BACKGROUND,
    )
    draw = ImageDraw.Draw(sheet)
    for index, (title, panel) in enumerate(panels):
        left = _MARGIN_PX + index * (size[0] + _MARGIN_PX)
        shown = title if title == _DIFFERENCE else _fitting(title, size[0], font)
        draw.text((left, _MARGIN_PX // 2), shown, fill=_TEXT, font=font)
        sheet.paste(panel.convert("RGB").resize(size, filter_), (left, top))
    for colour, name in legend:
        draw.rectangle((x, _MARGIN_PX, x + _FONT_PX - 3, _MARGIN_PX + _FONT_PX - 3), fill=colour)
        draw.text((x + _KEY_PX, _MARGIN_PX // 2), name, fill=_TEXT, font=font)
        x += math.ceil(_KEY_PX + font.getlength(name) + _MARGIN_PX)
    for number, line in enumerate(figures):
        place = (_MARGIN_PX, top + size[1] + _MARGIN_PX + number * _LINE_PX)
        draw.text(place, _fitting(line, sheet.width - 2 * _MARGIN_PX, font), fill=_TEXT, font=font)
    return sheet


def _fitting(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return as much of a text as fits into `width` pixels."""
    shown = printable(text, _LINE_CHARACTERS)
    while shown and font.getlength(shown) > width:
        shown = shown[:-2] + "…" if len(shown) > 2 else ""
    return shown
