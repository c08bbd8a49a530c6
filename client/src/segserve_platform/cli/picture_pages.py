"""A folder with a picture of each of several pairs of answers, such as of a rollout, and `index.html` with them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from pydantic import ValidationError

from segserve.calls.answers import read_model_info, read_result
from segserve.rendering.comparison import draw_comparison
from segserve.rendering.display import PAGE_STYLE, printable
from segserve.results.images import ImageLike, to_dtype
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.comparator.sheet import Sheet, SheetPair, SheetTensor
from segserve_common.errors import SegserveError
from segserve_common.kserve import DTYPES, InferAnswer
from segserve_platform.cli.errors import CommandError
from segserve_platform.evaluation.pairs import class_name
from segserve_platform.platforms.port import Platform

if TYPE_CHECKING:
    from PIL import Image

PAGE: Final = "index.html"
_CLASSES: Final = 4
"""Classes that a pair's figures name: the ones that agree least."""
_SIZES: Final = ("small", "medium", "large")
Drawing: TypeAlias = "tuple[list[str], Callable[[], Image.Image]]"
"""The figures of a pair as lines of text, and what draws it."""


def fetch_sheet(platform: Platform, model: str) -> tuple[Sheet, tuple[SegmentClass, ...]]:
    """Return a model's sheet and its classes; raises `CommandError` if there is none."""
    resource = platform.model(model)
    content = platform.sheet(model)
    if content is None:
        raise CommandError(
            f"no sheet of {model}: pairs are compared while a rollout with spec.rollout.shadow is in Shadow, and "
            "forgotten an hour after, at an abort, and when the next rollout begins"
        )
    try:
        sheet = Sheet.model_validate_json(content)
    except ValidationError as error:
        raise CommandError(f"the sheet of {model} cannot be read: {error.errors()[0]['msg']}") from error
    if not sheet.pairs:
        compared = f"{sheet.compared:,} pairs were compared" if sheet.compared else "no pair has been compared yet"
        raise CommandError(f"no sheet of {model}: {compared}, and none differs")
    classes = json.dumps(resource.get("spec", {}).get("classes", []))
    return sheet, read_model_info(model, (), {"classes": classes}).classes


def write_sheet(sheet: Sheet, classes: tuple[SegmentClass, ...], folder: Path) -> list[str]:
    """Write a picture per pair and a page with all of them; returns a line of text per pair.

    A pair that cannot be drawn has a line that says why. Raises `CommandError` if the folder cannot be written.
    """
    names = {known.id: known.name for known in classes}
    drawings = [(figures_of(pair, names), partial(_draw, sheet, pair, classes)) for pair in sheet.pairs]
    candidate = printable(sheet.candidate, 200)
    about = f"The {len(sheet.pairs)} pairs of {sheet.compared:,} on which {candidate} differs most from stable."
    if sheet.ended_at_s is not None:
        about += f" Comparing ended at {_time(sheet.ended_at_s)}."
    return write_pictures(folder, sheet.model, about, drawings)


def figures_of(pair: SheetPair, names: Mapping[int, str]) -> list[str]:
    """Return the figures of a pair as lines of text."""
    only = {"stable": pair.stable_only, "candidate": pair.candidate_only}
    return agreement_lines(f"{pair.agreement:.3f}, asked at {_time(pair.asked_at_s)}", pair.classes, only, names)


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _draw(sheet: Sheet, pair: SheetPair, classes: tuple[SegmentClass, ...]) -> Image.Image:
    info = ModelInfo(sheet.model, frozenset(each.name for each in pair.stable), classes=classes)
    stable, candidate = (read_result(_answer(sheet.model, side), info) for side in (pair.stable, pair.candidate))
    figures = figures_of(pair, {known.id: known.name for known in classes})
    return draw_comparison(_image(pair.image), stable, candidate, figures)


def _answer(model: str, tensors: Iterable[SheetTensor]) -> InferAnswer:
    return InferAnswer(model, {each.name: each.tensor() for each in tensors})


def _image(tensor: SheetTensor) -> ImageLike:
    if tensor.name == "PIXELS":
        pixels = to_dtype(tensor.tensor().to_array(), DTYPES["UINT8"])
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    (image,) = tensor.tensor().to_items()
    return image


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
