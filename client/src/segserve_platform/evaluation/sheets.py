"""The pairs of answers that differ most in Shadow: read from a platform, in figures and drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import ValidationError

from segserve.calls.answers import read_model_info, read_result
from segserve.rendering.comparison import draw_comparison
from segserve.results.images import ImageLike, to_dtype
from segserve.results.values import ModelInfo, SegmentClass
from segserve_builder.comparator.sheet import Sheet, SheetPair, SheetTensor
from segserve_common.kserve import DTYPES, InferAnswer
from segserve_platform.evaluation.pairs import agreement_lines
from segserve_platform.platforms.errors import ControlError, NotFoundError
from segserve_platform.platforms.port import Platform

if TYPE_CHECKING:
    from PIL import Image


def fetch_sheet(platform: Platform, model: str) -> tuple[Sheet, tuple[SegmentClass, ...]]:
    """Return a model's sheet and its classes.

    Raises `NotFoundError` if no pair of answers differs, and `ControlError` if the sheet cannot be read.
    """
    resource = platform.model(model)
    content = platform.sheet(model)
    if content is None:
        raise NotFoundError(
            f"no sheet of {model}: pairs are compared while a rollout with spec.rollout.shadow is in Shadow, and "
            "forgotten an hour after, at an abort, and when the next rollout begins"
        )
    try:
        sheet = Sheet.model_validate_json(content)
    except ValidationError as error:
        raise ControlError(f"the sheet of {model} cannot be read: {error.errors()[0]['msg']}") from error
    if not sheet.pairs:
        compared = f"{sheet.compared:,} pairs were compared" if sheet.compared else "no pair has been compared yet"
        raise NotFoundError(f"no sheet of {model}: {compared}, and none differs")
    classes = json.dumps(resource.get("spec", {}).get("classes", []))
    return sheet, read_model_info(model, (), {"classes": classes}).classes


def figures_of(pair: SheetPair, names: Mapping[int, str]) -> list[str]:
    """Return the figures of a pair as lines of text."""
    only = {"stable": pair.stable_only, "candidate": pair.candidate_only}
    return agreement_lines(f"{pair.agreement:.3f}, asked at {time_words(pair.asked_at_s)}", pair.classes, only, names)


def time_words(at_s: float) -> str:
    """Return a Unix time in words."""
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def draw_pair(sheet: Sheet, pair: SheetPair, classes: tuple[SegmentClass, ...]) -> Image.Image:
    """Return the panels of a pair: image, stable, candidate and their difference, with the figures.

    Raises `SegserveError` or `ValueError` for a pair that cannot be drawn.
    """
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
