"""What a result says of itself: one line, rows by class, a table. Names of classes come from anywhere."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from segserve.results.base import Segmentation
    from segserve.results.objects import Detection, Objects
    from segserve.results.semantic import SemanticResult

Row: TypeAlias = dict[str, str]

NOTHING: Final = "nothing"
_MOST_IN_LINE: Final = 5


def printable(text: str, most: int = 60) -> str:
    """Return the text as one line of at most `most` characters: no control characters, nothing unprintable."""
    clean = "".join(character if character.isprintable() else "�" for character in text[: most + 1])
    return clean if len(clean) <= most else f"{clean[: most - 1]}…"


def one_line(result: Segmentation) -> str:
    """Return what `repr` says: kind, size, revision and what was found; no mask is decoded."""
    height, width = result.size
    return f"<{type(result).__name__} of {width} x {height} by {printable(result.revision)}: {found(result)}>"


def found(result: Segmentation) -> str:
    """Return the classes by number found or by share, as in `24 coin, 3 dog` or `coin 36.2%`; no mask is decoded."""
    from segserve.results.objects import Objects
    from segserve.results.semantic import SemanticResult

    if isinstance(result, SemanticResult):
        classes = [f"{row['class']} {row['share']}" for row in _semantic_rows(result)]
    elif isinstance(result, Objects):
        numbers = Counter(one.class_name for one in result)
        classes = [f"{number} {printable(name)}" for name, number in numbers.most_common()]
    else:
        classes = []
    if len(classes) > _MOST_IN_LINE:
        classes = [*classes[:_MOST_IN_LINE], f"and {len(classes) - _MOST_IN_LINE} more classes"]
    return ", ".join(classes) or NOTHING


def summary(result: Segmentation) -> list[Row]:
    """Return a row for each class that was found, by number or by area, most first; one that says so for nothing."""
    from segserve.results.objects import Objects
    from segserve.results.semantic import SemanticResult

    if isinstance(result, SemanticResult):
        return list(_semantic_rows(result)) or [{"class": NOTHING}]
    if isinstance(result, Objects):
        return list(_object_rows(result)) or [{"class": NOTHING, "count": "0"}]
    raise TypeError(f"a result is semantic or of objects, got {type(result).__name__}")


def table(result: Segmentation, title: str | None = None) -> Table:
    """Return a table with a row a class; `title` is by default the model's name."""
    from rich.table import Table
    from rich.text import Text

    height, width = result.size
    heading = Text.assemble(printable(title or result.model), (f"  {width} x {height}", "dim"))
    caption = Text(f"revision {printable(result.revision)}")
    drawn = Table(title=heading, caption=caption, title_justify="left", caption_justify="left")
    rows = summary(result)
    for column in rows[0]:
        drawn.add_column(column, justify="left" if column == "class" else "right")
    for row in rows:
        drawn.add_row(*map(Text, row.values()))
    return drawn


def _object_rows(result: Objects[Any]) -> Iterator[Row]:
    """Yield a row for each class that was found; areas only where the answer has masks."""
    by_class: defaultdict[str, list[Detection]] = defaultdict(list)
    for one in result:
        by_class[one.class_name].append(one)
    for name, ones in sorted(by_class.items(), key=lambda item: -len(item[1])):
        low, high = (f"{bound(one.score for one in ones):.2f}" for bound in (min, max))
        row = {"class": printable(name), "count": str(len(ones)), "score": low if low == high else f"{low} to {high}"}
        areas = [area for one in ones if (area := getattr(one, "area", None)) is not None]
        yield row | (_area(sum(areas), result) if areas else {})


def _semantic_rows(result: SemanticResult) -> Iterator[Row]:
    for name, area in sorted(result.areas.items(), key=lambda item: -item[1]):
        if area:
            yield {"class": printable(name)} | _area(area, result)


def _area(area: int, result: Segmentation) -> Row:
    height, width = result.size
    return {"area px": f"{area:,}", "share": f"{area / (height * width):.1%}"}
