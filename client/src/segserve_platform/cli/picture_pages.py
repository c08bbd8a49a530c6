"""A folder with a picture of each of several pairs of answers, such as of a rollout, and `index.html` with them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from segserve.rendering.display import PAGE_STYLE, printable
from segserve.results.values import SegmentClass
from segserve_builder.comparator.sheet import Sheet
from segserve_common.errors import SegserveError
from segserve_platform.cli.errors import CommandError
from segserve_platform.evaluation.sheets import draw_pair, figures_of, time_words

if TYPE_CHECKING:
    from PIL import Image

PAGE: Final = "index.html"
Drawing: TypeAlias = "tuple[list[str], Callable[[], Image.Image]]"
"""The figures of a pair as lines of text, and what draws it."""


def write_sheet(sheet: Sheet, classes: tuple[SegmentClass, ...], folder: Path) -> list[str]:
    """Write a picture per pair and a page with all of them; returns a line of text per pair.

    A pair that cannot be drawn has a line that says why. Raises `CommandError` if the folder cannot be written.
    """
    names = {known.id: known.name for known in classes}
    drawings = [(figures_of(pair, names), partial(draw_pair, sheet, pair, classes)) for pair in sheet.pairs]
    candidate = printable(sheet.candidate, 200)
    about = f"The {len(sheet.pairs)} pairs of {sheet.compared:,} on which {candidate} differs most from stable."
    if sheet.ended_at_s is not None:
        about += f" Comparing ended at {time_words(sheet.ended_at_s)}."
    return write_pictures(folder, sheet.model, about, drawings)


def write_pictures(folder: Path, title: str, about: str, drawings: Sequence[Drawing]) -> list[str]:
    """Write a picture per pair and a page with all of them; returns a line of text per pair.

    A pair that cannot be drawn has a line that says why. Raises `CommandError` if the folder cannot be written.
    """
    sections, lines = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, (figures, draw) in enumerate(drawings, 1):
            name, shown = f"pair-{number}.png", figures
            try:
                draw().save(folder / name)
            except (SegserveError, ValueError) as error:
                name, shown = "", [*figures, f"not drawn: {printable(str(error), 200)}"]
            lines.append(f"{name or f'pair {number}'}: {shown[0]}")
            sections.append(_section(number, name, shown))
        (folder / PAGE).write_text(_page(title, about, sections), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror}") from error
    return lines


def _section(number: int, name: str, figures: Iterable[str]) -> str:
    first, *more = (escape(line) for line in figures)
    drawn = f'<a href="{name}"><img src="{name}" alt="pair {number}"></a>' if name else ""
    return f"<section><h2>{number}: {first}</h2><p>{'<br>'.join(more)}</p>{drawn}</section>"


def _page(title: str, about: str, sections: Iterable[str]) -> str:
    name = escape(printable(title, 200))
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}: sheet</title><style>{PAGE_STYLE}</style>'
        f"<h1>{name}</h1><p>{escape(printable(about, 800))} Agreement is not quality: check which one is right.</p>"
        f"{''.join(sections)}</html>\n"
    )
