"""Counts of pairs, as the gateway's side reads them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from segserve_builder.copies.groups import Answer, AnswerKind

RATIOS: Final = (0.25, 1 / 3, 0.5, 2 / 3, 0.8, 1 / 1.1, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Edges of bins of a pair's latencies, the candidate's divided by stable's."""
DISAGREEMENTS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75, 0.95)
"""Edges of bins of how much the two answers of a pair differ: 1 - agreement, from 0 to 1."""
SHIFTS: Final = (-0.5, -0.3, -0.2, -0.15, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Edges of bins of a pair's shift of confidence, the mean score of the candidate's objects minus stable's."""
HUNG_MS: Final = 100_000
"""Lower edge of the last bin, in milliseconds: of answers that never came."""


@dataclass(slots=True)
class PairTally:
    """Counts since `epoch`: the fields of `core.rollout.counters.PairCounts`, which says what they mean.

    A pair of which a side was not reached, or whose caller was at fault by both answers, is in none of them; nor is one
    that a side answered and the other flagged.
    """

    epoch: str
    stable: str
    candidate: str
    failed: list[int] = field(default_factory=lambda: [0, 0, 0, 0])
    latencies: tuple[Counter[int], Counter[int]] = field(default_factory=lambda: (Counter(), Counter()))
    ratios: list[int] = field(default_factory=lambda: [0] * (len(RATIOS) + 1))
    disagreements: list[int] = field(default_factory=lambda: [0] * (len(DISAGREEMENTS) + 1))
    dropped: int = 0
    baseline: list[int] = field(default_factory=lambda: [0] * (len(DISAGREEMENTS) + 1))
    shifts: list[int] = field(default_factory=lambda: [0] * (len(SHIFTS) + 1))

    def count(self, stable: Answer, candidate: Answer) -> None:
        """Count a pair of answers."""
        kinds = (stable.kind, candidate.kind)
        cell = _cell(stable, candidate)
        if cell is None:
            return
        self.failed[cell] += 1
        for answer, latencies in zip((stable, candidate), self.latencies, strict=True):
            if answer.kind is AnswerKind.HUNG:
                latencies[HUNG_MS] += 1
            elif answer.has_latency:
                # The lower edge of its bin, of two significant digits, as Envoy's bins.
                whole_ms = min(int(answer.seconds * 1000), HUNG_MS)
                power = int(10 ** max(len(str(whole_ms)) - 2, 0))
                latencies[whole_ms // power * power] += 1
        if kinds == (AnswerKind.ANSWERED, AnswerKind.ANSWERED):
            ratio = candidate.seconds / max(stable.seconds, 1e-9)
            self.ratios[bisect_right(RATIOS, ratio)] += 1

    def count_disagreement(self, disagreement: float) -> None:
        """Count how much two answers differ, from 0 to 1."""
        self.disagreements[bisect_right(DISAGREEMENTS, disagreement)] += 1

    def count_baseline(self, disagreement: float) -> None:
        """Count how much two answers of stable differ, from 0 to 1."""
        self.baseline[bisect_right(DISAGREEMENTS, disagreement)] += 1

    def count_shift(self, shift: float) -> None:
        """Count how much more confident the candidate is, from -1 to 1."""
        self.shifts[bisect_right(SHIFTS, shift)] += 1

    def to_json(self) -> dict[str, Any]:
        """Return the counts as the JSON of `PairCounts`."""
        return {
            "epoch": self.epoch,
            "stable": self.stable,
            "candidate": self.candidate,
            "failed": self.failed,
            "latencies": [sorted(latencies.items()) for latencies in self.latencies],
            "ratios": self.ratios,
            "disagreements": self.disagreements,
            "dropped": self.dropped,
            "baseline": self.baseline,
            "shifts": self.shifts,
        }


def _cell(stable: Answer, candidate: Answer) -> int | None:
    """Return which of the four numbers of `failed` a pair belongs to, None if it is in none of them."""
    kinds = (stable.kind, candidate.kind)
    if AnswerKind.UNREACHED in kinds or kinds == (AnswerKind.REFUSED, AnswerKind.REFUSED):
        return None
    if (stable.is_flagged or candidate.is_flagged) and AnswerKind.ANSWERED in kinds:
        return None
    return 2 * _failed(stable.kind, candidate.kind) + _failed(candidate.kind, stable.kind)


def _failed(own: AnswerKind, other: AnswerKind) -> bool:
    if own is AnswerKind.REFUSED:
        # A revision that alone refuses what the other answers is wrong; beside a failure it may well be the caller's
        # error.
        return other is AnswerKind.ANSWERED
    return own in (AnswerKind.FAILED, AnswerKind.HUNG)
