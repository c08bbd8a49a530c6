"""The sheet of a rollout in Shadow: the images on which both revisions differ most, as pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from segserve.calls.answers import read_model_info, read_result
from segserve.cli.errors import CommandError
from segserve.platforms.port import Platform
from segserve.rendering.comparison import draw_comparison
from segserve.rendering.display import printable
from segserve.results.images import ImageLike, to_dtype
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.comparator.sheet import Sheet, SheetPair, SheetTensor
from segserve_builder.scoring.agreement import OTHER_CLASSES
from segserve_common.errors import SegserveError
from segserve_common.kserve import DTYPES, InferAnswer

PAGE: Final = "index.html"
_CLASSES: Final = 4
"""Classes that a pair's figures name: those of least agreement."""
_SIZES: Final = ("small", "medium", "large")
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:24px;color:#141414;background:#fff}"
    "img{max-width:100%;border:1px solid #ddd}section{margin:28px 0}h2{font-size:16px;margin:0 0 6px}"
)


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
    sections, lines = [], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, pair in enumerate(sheet.pairs, 1):
            figures = figures_of(pair, names)
            name = f"pair-{number}.png"
            try:
                _draw(sheet, pair, classes, figures, folder / name)
            except (SegserveError, ValueError) as error:
                name, figures = "", [*figures, f"not drawn: {printable(str(error), 200)}"]
            lines.append(f"{name or f'pair {number}'}: {figures[0]}")
            sections.append(_section(number, name, figures))
        (folder / PAGE).write_text(_page(sheet, sections), encoding="utf-8")
    except OSError as error:
        raise CommandError(f"{folder} cannot be written: {error.strerror}") from error
    return lines


def figures_of(pair: SheetPair, names: Mapping[int, str]) -> list[str]:
    """Return the figures of a pair as lines of text."""
    lines = [f"agreement {pair.agreement:.3f}, asked at {_time(pair.asked_at_s)}"]
    worst = sorted(pair.classes.items(), key=lambda item: item[1])[:_CLASSES]
    if worst:
        shown = ", ".join(f"{_name(number, names)} {value:.3f}" for number, value in worst)
        lines.append(f"least by class: {shown}")
    for side, counts in (("stable", pair.stable_only), ("candidate", pair.candidate_only)):
        if any(counts):
            by_size = ", ".join(f"{count} {size}" for count, size in zip(counts, _SIZES, strict=True) if count)
            lines.append(f"only {side} has: {by_size}")
    return lines


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _name(number: int, names: Mapping[int, str]) -> str:
    return "others" if number == OTHER_CLASSES else printable(names.get(number, str(number)))


def _draw(sheet: Sheet, pair: SheetPair, classes: tuple[SegmentClass, ...], figures: list[str], path: Path) -> None:
    info = ModelInfo(sheet.model, frozenset(each.name for each in pair.stable), classes=classes)
    stable, candidate = (read_result(_answer(sheet.model, side), info) for side in (pair.stable, pair.candidate))
    draw_comparison(_image(pair.image), stable, candidate, figures).save(path)


def _answer(model: str, tensors: Iterable[SheetTensor]) -> InferAnswer:
    return InferAnswer(model, {each.name: each.tensor() for each in tensors})


def _image(tensor: SheetTensor) -> ImageLike:
    if tensor.name == "PIXELS":
        pixels = to_dtype(tensor.tensor().to_array(), DTYPES["UINT8"])
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
    (image,) = tensor.tensor().to_items()
    return image


def _section(number: int, name: str, figures: Iterable[str]) -> str:
    first, *more = (escape(line) for line in figures)
    drawn = f'<a href="{name}"><img src="{name}" alt="pair {number}"></a>' if name else ""
    return f"<section><h2>{number}: {first}</h2><p>{'<br>'.join(more)}</p>{drawn}</section>"


def _page(sheet: Sheet, sections: Iterable[str]) -> str:
    model, candidate = (escape(printable(text, 200)) for text in (sheet.model, sheet.candidate))
    about = f"The {len(sheet.pairs)} pairs of {sheet.compared:,} on which {candidate} differs most from stable."
    if sheet.ended_at_s is not None:
        about += f" Comparing ended at {_time(sheet.ended_at_s)}."
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{model}: sheet</title><style>{_STYLE}</style>'
        f"<h1>{model}</h1><p>{about} Agreement is no quality: look which one is right.</p>{''.join(sections)}</html>\n"
    )
