"""Results as notebook cells: a small table and an overlay, on the image or on grey."""

from __future__ import annotations

import base64
import io
from html import escape
from typing import TYPE_CHECKING, Any, Final, Protocol

from segserve.rendering.display import Summarized, printable
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from PIL import Image

GREY: Final = (232, 232, 232)
# Notebooks store what they show; one that loops over a folder would grow without bound.
MAX_PIXELS: Final = 4_000_000
SIDE_PX: Final = 640


class Drawable(Summarized, Protocol):
    """A result with a text form that can be drawn."""

    def overlay(self, image: Any, *, alpha: float = ...) -> Image.Image:
        """Return the image with the result drawn on it."""
        ...


def html(result: Drawable, drawn: Image.Image | None = None) -> str:
    """Return the table and the picture as HTML; without `drawn`, on grey if the image has at most 4 million pixels.

    Never raises: for a result that cannot be decoded, the HTML shows the error.
    """
    try:
        shown = on_grey(result) if drawn is None else drawn
        return f"<div>{_table(result)}{'' if shown is None else _img(shown)}</div>"
    except SegserveError as error:
        return f"<div><p>{escape(printable(str(error), 300))}</p></div>"


def on_grey(result: Drawable) -> Image.Image | None:
    """Draw the result on a grey image, or return None above 4 million pixels."""
    from PIL import Image

    height, width = result.size
    if height * width > MAX_PIXELS:
        return None
    return result.overlay(Image.new("RGB", (width, height), GREY), alpha=0.7)


def _table(result: Summarized) -> str:
    height, width = result.size
    rows = result.summary_rows()
    head = "".join(f"<th>{escape(column)}</th>" for column in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    about = f"{type(result).__name__} of {width} x {height}, revision {printable(result.revision)}"
    return f"<table><caption>{escape(about)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _img(drawn: Image.Image) -> str:
    shown = drawn.copy()
    shown.thumbnail((SIDE_PX, SIDE_PX))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
