"""The sheet of a rollout in Shadow: the images on which both revisions differ most, as pictures and a page."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from segserve.calls.answers import read_model_info, read_result
from segserve.rendering.comparison import draw_comparison
from segserve.rendering.display import printable
from segserve.results.images import ImageLike, to_dtype
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.comparator.sheet import Sheet, SheetPair, SheetTensor
from segserve_common.kserve import DTYPES, InferAnswer
from segserve_platform.cli.errors import CommandError
from segserve_platform.cli.picture_pages import agreement_lines, write_pictures
from segserve_platform.platforms.port import Platform

if TYPE_CHECKING:
    from PIL import Image


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
