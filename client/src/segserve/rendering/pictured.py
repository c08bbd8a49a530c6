"""Results in notebooks: a small table, and a picture of it on its image or on neutral ground."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Final

from segserve.rendering.display import one_line, printable, summary
from segserve.results.objects import Objects
from segserve_common.errors import BadRequestError, SegserveError

if TYPE_CHECKING:
    from PIL import Image

    from segserve.results.base import Segmentation
    from segserve.results.images import ImageLike

GROUND: Final = (232, 232, 232)
# A notebook stores what it shows, and one that runs through a folder shows many.
MOST_PIXELS: Final = 4_000_000
SIDE: Final = 640


@dataclass(frozen=True, eq=False, repr=False)
class Pictured:
    """A result with the image that it is of."""

    result: Segmentation
    image: ImageLike

    def overlay(self, **options: Any) -> Image.Image:
        """Draw the result on its image; options as for the result's own `overlay`."""
        return self.result.overlay(self.image, **options)

    def crop(self, index: int, *, margin: int = 0, cut_out: bool = False) -> Image.Image:
        """Return the part of the image with one object, as `Objects.crop` does.

        Raises `BadRequestError` for a result that has no separate objects.
        """
        if not isinstance(self.result, Objects):
            raise BadRequestError(f"a {type(self.result).__name__} has no separate objects to crop")
        return self.result.crop(index, self.image, margin=margin, cut_out=cut_out)

    def __repr__(self) -> str:
        return one_line(self.result)

    def _repr_html_(self) -> str:
        return html(self.result, self.overlay())


def html(result: Segmentation, drawn: Image.Image | None = None) -> str:
    """Return the table and the picture as HTML; without `drawn`, on neutral ground, where that is cheap.

    A result that cannot be decoded is shown as the error's text: to look at it never raises.
    """
    try:
        shown = on_neutral_ground(result) if drawn is None else drawn
        return f"<div>{_table(result)}{'' if shown is None else _img(shown)}</div>"
    except SegserveError as error:
        return f"<div><p>{escape(printable(str(error), 300))}</p></div>"


def on_neutral_ground(result: Segmentation) -> Image.Image | None:
    """Draw the result without its image, or return None where it is of more than 4 million pixels."""
    from PIL import Image

    height, width = result.size
    if height * width > MOST_PIXELS:
        return None
    return result.overlay(Image.new("RGB", (width, height), GROUND), alpha=0.7)


def _table(result: Segmentation) -> str:
    height, width = result.size
    rows = summary(result)
    head = "".join(f"<th>{escape(column)}</th>" for column in rows[0])
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.values())}</tr>" for row in rows)
    about = f"{type(result).__name__} of {width} x {height}, revision {printable(result.revision)}"
    return f"<table><caption>{escape(about)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _img(drawn: Image.Image) -> str:
    shown = drawn.copy()
    shown.thumbnail((SIDE, SIDE))
    buffer = io.BytesIO()
    shown.save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
