"""A folder with a picture for each of several pairs of answers, and `index.html` with all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from segserve.rendering.display import PAGE_STYLE, printable
from segserve_common.errors import SegserveError
from segserve_platform.cli.errors import CommandError
from segserve_platform.evaluation.pairs import class_name

if TYPE_CHECKING:
    from PIL import Image

PAGE: Final = "index.html"
_CLASSES: Final = 4
"""Classes that a pair's figures name: those of least agreement."""
_SIZES: Final = ("small", "medium", "large")
Drawing: TypeAlias = "tuple[list[str], Callable[[], Image.Image]]"
"""The figures of a pair as lines of text, and what draws it."""


def agreement_lines(
    first: str, classes: Mapping[int, float], only: Mapping[str, Sequence[int]], names: Mapping[int, str]
) -> list[str]:
    """Return the figures of a pair as lines of text: the agreement, the classes that agree least, and objects without
    a partner, `only` one side's, by size.
    """
    lines = [f"agreement {first}"]
    worst = sorted(classes.items(), key=lambda item: item[1])[:_CLASSES]
    if worst:
        shown = ", ".join(f"{class_name(number, names)} {value:.3f}" for number, value in worst)
        lines.append(f"least by class: {shown}")
    for side, counts in only.items():
        if any(counts):
            by_size = ", ".join(f"{count} {size}" for count, size in zip(counts, _SIZES, strict=True) if count)
            lines.append(f"only {side} has: {by_size}")
    return lines


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
        f"<h1>{name}</h1><p>{escape(printable(about, 800))} Agreement is no quality: look which one is right.</p>"
        f"{''.join(sections)}</html>\n"
    )
