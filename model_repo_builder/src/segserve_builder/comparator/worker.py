"""The process that compares answers: `python3 -m segserve_builder.comparator.worker`, pairs at stdin, values at stdout.

Answers are bytes of servers, which run whatever their users gave them. Here they can harm no count: memory is limited,
and the comparator ends a worker that takes too long.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_builder.comparator.sheet import MOST_PAIR_BYTES, SheetPair
from segserve_builder.copies.bodies import MALFORMED, WireBody, answer_arrays, read_answer, read_image, read_parameters
from segserve_builder.copies.copies import CopyProtocol, WorkerFrame, answer_frames
from segserve_builder.scoring.agreement import Agreement, Answer, agreement
from segserve_builder.spec.names import listed_outputs
from segserve_common.kserve import Tensor

MEMORY_BYTES: Final = 768 * 2**20
"""Limit of data, as RLIMIT_DATA counts it; a comparison that needs more is not made."""

_log = logging.getLogger(__name__)


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
        listed = read_parameters(pair.protocol, pair.request).get("outputs")
    except MALFORMED:
        return ComparedAnswers(None)
    outputs = None if listed is None else listed_outputs(listed)
    try:
        candidate = read_answer(pair.protocol, pair.candidate)
        answered = answer_arrays(candidate)
        found = agreement(expected, answered, outputs)
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


def main() -> None:
    """Compare pairs until stdin ends."""
    answer_frames(_compared, memory_bytes=MEMORY_BYTES)


def _compared(frame: WorkerFrame) -> WorkerFrame:
    lengths = frame.header["header_lengths"]
    bodies = (WireBody(blob, length) for blob, length in zip(frame.blobs, lengths, strict=True))
    pair = ExchangedPair(frame.header["protocol"], frame.header["asked_at_s"], *bodies)
    try:
        found = compare_answers(pair, keep_below=frame.header["keep_below"])
    except Exception as error:  # any error that the bytes cause in the readers, above all MemoryError
        _log.warning("a pair was not compared: %s", type(error).__name__)
        found = ComparedAnswers(None)
    return WorkerFrame({"agreement": found.agreement, "shift": found.shift}, [found.sheet_pair])


if __name__ == "__main__":
    main()
