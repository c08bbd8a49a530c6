"""Compares the answers of a pair, and puts a pair that differs into the form of a sheet. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from segserve_builder.comparator.sheet import MOST_PAIR_BYTES, SheetPair
from segserve_builder.copies.bodies import MALFORMED, WireBody, answer_arrays, read_answer, read_image
from segserve_builder.copies.copies import CopyProtocol
from segserve_builder.scoring.agreement import Agreement, Answer, agreement
from segserve_common.kserve import Tensor


@dataclass(frozen=True, slots=True)
class ExchangedPair:
    """A request and both answers to it; `asked_at_s` is Unix time."""

    protocol: CopyProtocol
    asked_at_s: float
    request: WireBody
    stable: WireBody
    candidate: WireBody


@dataclass(frozen=True, slots=True)
class ComparedAnswers:
    """How much two answers agree, None if they cannot be compared; a pair of a sheet as JSON if it is to be kept.

    `shift` is how much higher the candidate's mean score is, -1 to 1; None if one of them has no scores.
    """

    agreement: float | None
    sheet_pair: bytes = b""
    shift: float | None = None


def compare_answers(pair: ExchangedPair, *, keep_below: float) -> ComparedAnswers:
    """Compare two answers; a pair that agrees less than `keep_below` comes back for a sheet.

    A candidate's answer that cannot be read, although stable's can, agrees in nothing.
    """
    try:
        stable = read_answer(pair.protocol, pair.stable)
        expected = answer_arrays(stable)
    except MALFORMED:
        return ComparedAnswers(None)
    try:
        candidate = read_answer(pair.protocol, pair.candidate)
        answered = answer_arrays(candidate)
        found = agreement(expected, answered)
    except MALFORMED:
        candidate, answered, found = {}, {}, Agreement(0.0)
    if found is None:
        return ComparedAnswers(None)
    if found.value >= keep_below:
        return ComparedAnswers(found.value, shift=confidence_shift(expected, answered))
    return ComparedAnswers(
        found.value, _sheet_pair(pair, stable, candidate, found), confidence_shift(expected, answered)
    )


def confidence_shift(stable: Answer, candidate: Answer) -> float | None:
    """Return how much higher the candidate's mean score is than stable's; None if one of them shows none."""
    try:
        scores = _mean_score(stable), _mean_score(candidate)
    except MALFORMED:
        return None
    return None if scores[0] is None or scores[1] is None else scores[1] - scores[0]


def _mean_score(answer: Answer) -> float | None:
    """Return the mean score of objects, or the mean confidence of classes weighed by their pixels; 0 to 1."""
    name = next((each for each in ("SCORES", "CONFIDENCE") if each in answer), None)
    if name is None:
        return None
    scores = answer[name].astype(np.float64).ravel()
    areas = answer["AREAS"].astype(np.float64).ravel() if "AREAS" in answer else np.ones(len(scores))
    counts = np.isfinite(scores) & (areas[: len(scores)] > 0) if len(areas) == len(scores) else np.zeros(0, bool)
    if not counts.any():
        return None
    return float(np.clip(np.average(scores[counts], weights=areas[counts]), 0.0, 1.0))


def _sheet_pair(
    pair: ExchangedPair, stable: Mapping[str, Tensor], candidate: Mapping[str, Tensor], found: Agreement
) -> bytes:
    """Return a pair as JSON; nothing if it is too large for a sheet, or has no image to be shown."""
    try:
        image = read_image(pair.protocol, pair.request)
    except MALFORMED:
        return b""
    tensors = [*stable.values(), *candidate.values()]
    if image is None or len(image.raw) + sum(len(tensor.raw) for tensor in tensors) > MOST_PAIR_BYTES:
        return b""
    shown = SheetPair.of(pair.asked_at_s, image, stable.values(), candidate.values(), found)
    return shown.model_dump_json().encode()
