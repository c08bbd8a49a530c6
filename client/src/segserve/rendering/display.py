"""Results as text, tables and notebook cells. Class names are untrusted and made printable."""

from __future__ import annotations

import base64
import io
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from segserve_common.drawing import printable as printable
from segserve_common.errors import SegserveError

if TYPE_CHECKING:
    from PIL import Image
    from rich.table import Table


Row: TypeAlias = dict[str, str]
"""The cells of a row by the name of their column."""

NOTHING: Final = "nothing"
_MAX_CLASSES_IN_LINE: Final = 5
GREY: Final = (232, 232, 232)
# Notebooks store what they show; one that loops over a folder would grow without bound.
MAX_PIXELS: Final = 4_000_000
SIDE_PX: Final = 640
PAGE_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:24px;color:#141414;background:#fff}"
    "table{border-collapse:collapse}caption{text-align:left;padding:4px 0}"
    "th,td{text-align:right;padding:3px 14px 3px 0;border-bottom:1px solid #ddd}th:first-child{text-align:left}"
    "img{max-width:100%;border:1px solid #ddd}section{margin:28px 0}h2{font-size:16px;margin:0 0 6px}small{color:#555}"
)
"""The style of pages that tools write: it refers to nothing outside of them."""


class Summarized(Protocol):
    """The parts of a result that its text forms read."""

    @property
    def model(self) -> str:
        """The model's name."""

    @property
    def revision(self) -> str:
        """The revision that answered."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""

    def summary(self) -> list[str]:
        """Return a short text per class; decodes no mask."""

    def summary_rows(self) -> list[Row]:
        """Return a row per class."""


def one_line(result: Summarized) -> str:
    """Return the text of `repr`: type, size, revision and classes; decodes no mask."""
    height, width = result.size
    classes = result.summary()
    if len(classes) > _MAX_CLASSES_IN_LINE:
        classes = [*classes[:_MAX_CLASSES_IN_LINE], f"and {len(classes) - _MAX_CLASSES_IN_LINE} more classes"]
    content = ", ".join(classes) or NOTHING
    return f"<{type(result).__name__} of {width} x {height} by {printable(result.revision)}: {content}>"


def table(result: Summarized, title: str | None = None) -> Table:
    """Return a table with one row per class; `title` is the model's name by default."""
    from rich.table import Table
    from rich.text import Text

    height, width = result.size
    heading = Text.assemble(printable(title or result.model), (f"  {width} x {height}", "dim"))
    caption = Text(f"revision {printable(result.revision)}")
    drawn = Table(title=heading, caption=caption, title_justify="left", caption_justify="left")
    rows = result.summary_rows()
    for column in rows[0]:
        drawn.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        drawn.add_row(*map(Text, row.values()))
    return drawn


def object_summary(class_names: Iterable[str]) -> list[str]:
    """Return the classes by number of objects, as in `24 coin`."""
    return [f"{number} {printable(name)}" for name, number in Counter(class_names).most_common()]


def object_rows(objects: Iterable[Any], size: tuple[int, int]) -> list[Row]:
    """Return a row per class, most objects first; areas only if the objects have masks."""
    by_class: defaultdict[str, list[Any]] = defaultdict(list)
    for one in objects:
        by_class[one.class_name].append(one)
    rows = []
    for name, ones in sorted(by_class.items(), key=lambda item: -len(item[1])):
        low, high = (f"{bound(one.score for one in ones):.2f}" for bound in (min, max))
        row = {"class": printable(name), "count": str(len(ones)), "score": low if low == high else f"{low} to {high}"}
        areas = [area for one in ones if (area := getattr(one, "area", None)) is not None]
        rows.append(row | (_area_cells(sum(areas), size) if areas else {}))
    return rows or [{"class": NOTHING, "count": "0"}]


def area_summary(areas: Mapping[str, int], size: tuple[int, int]) -> list[str]:
    """Return the classes by their share of the pixels, as in `coin 36.2%`."""
    return [f"{row['class']} {row['share']}" for row in _area_rows(areas, size)]


def area_rows(areas: Mapping[str, int], size: tuple[int, int]) -> list[Row]:
    """Return a row per class with pixels, largest area first."""
    return list(_area_rows(areas, size)) or [{"class": NOTHING}]


def _area_rows(areas: Mapping[str, int], size: tuple[int, int]) -> Iterator[Row]:
    for name, area in sorted(areas.items(), key=lambda item: -item[1]):
        if area:
            yield {"class": printable(name)} | _area_cells(area, size)


def _area_cells(area: int, size: tuple[int, int]) -> Row:
    height, width = size
    return {"area px": f"{area:,}", "share": f"{area / (height * width):.1%}"}


class Drawable(Summarized, Protocol):
    """A result with a text form that can be drawn."""

    def overlay(self, image: Any, *, alpha: float = ...) -> Image.Image:
        """Return the image with the result drawn on it."""


def html(result: Drawable, picture: Image.Image | None = None) -> str:
    """Return the table and the picture as HTML; without `picture`, on grey if the image has at most 4 million pixels.

    Never raises: for a result that cannot be decoded, the HTML shows the error.
    """
    try:
        shown = on_grey(result) if picture is None else picture
        return f"<div>{_table(result)}{'' if shown is None else _img(shown)}</div>"
    except SegserveError as error:
        return f"<div><p>{escape(printable(str(error), 300))}</p></div>"


def on_grey(result: Drawable) -> Image.Image | None:
    """Draw the result on a grey image, or return None above 4 million pixels."""
    height, width = result.size
    return None if height * width > MAX_PIXELS else drawn(result)


def drawn(result: Drawable, image: Any = None) -> Image.Image:
    """Draw the result on its image, or on grey. Raises `BadRequestError` as `overlay` does."""
    from PIL import Image

    if image is not None:
        return result.overlay(image)
    height, width = result.size
    return result.overlay(Image.new("RGB", (width, height), GREY), alpha=0.7)


def show(picture: Image.Image) -> None:
    """Show a picture in the notebook, else in the system's viewer; raises `SegserveError` without a viewer."""
    from PIL import ImageShow

    # Pillow tries the desktop first, which is not where a notebook's kernel is looked at.
    is_shown = ImageShow.IPythonViewer().show(picture) if "ipykernel" in sys.modules else ImageShow.show(picture)
    if not is_shown:
        raise SegserveError("there is no program on this machine that shows pictures: use save('result.png')")


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
