"""Complete record of a rollout: its decisions, and windows of requests as rows, fewer and longer the older they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Final, TypeAlias

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import (
    DISAGREEMENTS,
    RATIOS,
    SHIFTS,
    EvidenceWindow,
    Floats,
    Pairs,
)
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import ENDED, Phase

LAST_WORDS_S: Final = 600.0
AGES_S: Final = ((3600.0, 60.0), (120.0, 15.0))
"""(age, length) in seconds: rows older than the age are merged to that length."""
_FINEST_S: Final = AGES_S[-1][1]

Bins: TypeAlias = tuple[tuple[int, int], ...]
"""(bin, count) of the bins that are not empty, in rising order."""


@dataclass(frozen=True, slots=True)
class RolloutState:
    """State of a rollout in its model's status, written together with the roles; traffic follows from it.

    `sequence` counts the decisions that changed something, which reveals a record that is behind. Times are Unix
    seconds; `resumed_s` is the last end of a pause (0: never). `weight` is the candidate's percentage of requests,
    `skipped` names the gates that a person has skipped.
    """

    rollout: str
    revision: str
    phase: Phase = Phase.PENDING
    step: int = -1
    sequence: int = 0
    paused: bool = False
    quarantines: int = 0
    started_s: float = 0.0
    since_s: float = 0.0
    step_since_s: float = 0.0
    resumed_s: float = 0.0
    weight: int = 0
    skipped: tuple[str, ...] = ()
    reason: str = ""
    message: str = ""

    @property
    def ended(self) -> bool:
        """Whether the rollout has ended."""
        return self.phase in ENDED

    @property
    def undecided_since_s(self) -> float:
        """The time from which the deadline counts: the start, or the last end of a pause."""
        return max(self.started_s, self.resumed_s)

    def matters(self, now_s: float) -> bool:
        """Return whether its record may still change: until some time after its end, as a last decision may come."""
        return not self.ended or now_s - self.since_s < LAST_WORDS_S


@dataclass(frozen=True, slots=True)
class PairRow:
    """A stored window's pairs: by whether stable and the candidate failed, as in `PairCounts`, and by bin."""

    failed: tuple[int, int, int, int]
    latencies: tuple[Bins, Bins] = ((), ())
    ratios: Bins = ()
    disagreements: Bins = ()
    baseline: Bins = ()
    shifts: Bins = ()


@dataclass(frozen=True, slots=True)
class Row:
    """A stored window: (stable, candidate) counts of callers' requests, and their latencies by bin.

    `pairs` are the requests sent to both beside callers' requests, in Shadow; they are in no other number.
    """

    at_s: float
    seconds: float
    weight: int
    requests: tuple[int, int]
    errors: tuple[int, int]
    latencies: tuple[Bins, Bins] = ((), ())
    pairs: PairRow | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One decision that changed something.

    `inputs` and `result` are canonical JSON, so that `replay` can repeat the decision and compare.
    """

    sequence: int
    at_s: float
    signal: str
    phase: Phase
    weight: int
    actor: str
    reason: str
    message: str
    verdicts: tuple[Verdict, ...] = ()
    inputs: str = ""
    result: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """Everything known about one rollout.

    `gates` are the measured gates' states by name, `seen` the gateways' counters at the end of the last window, and
    `hung` the requests that hung then. `rows` are oldest first, and coarser the older they are.
    """

    name: str
    model: str
    stable: str
    candidate: str
    policy: RolloutPolicy
    slo: Slo
    progress: Progress
    sequence: int = 0
    gates: Mapping[str, Any] = field(default_factory=dict)
    seen: Sample = field(default_factory=dict)
    hung: Any = None
    rows: tuple[Row, ...] = ()
    decisions: tuple[Decision, ...] = ()
    verdicts: tuple[Verdict, ...] = ()


def row_of(callers: EvidenceWindow, at_s: float, weight: int, shadow: EvidenceWindow | None = None) -> Row:
    """Return a window of callers' requests (no leading axes), and one of Shadow's pairs meanwhile, as a row."""
    requests, errors = callers.requests.astype(int).tolist(), callers.errors.astype(int).tolist()
    stable, candidate = (_sparse(latencies) for latencies in callers.latencies)
    seconds, pairs = float(callers.seconds), _pair_row(shadow) if shadow is not None else None
    return Row(at_s, seconds, weight, tuple(requests), tuple(errors), (stable, candidate), pairs)


def _pair_row(window: EvidenceWindow) -> PairRow | None:
    if window.pairs is None:
        return None
    stable, candidate = (_sparse(latencies) for latencies in window.latencies)
    return PairRow(
        _four(window.pairs.failed.astype(int).reshape(4).tolist()),
        (stable, candidate),
        _sparse(window.pairs.ratios),
        _sparse(window.pairs.disagreements),
        _sparse(window.pairs.baseline),
        _sparse(window.pairs.shifts),
    )


def window_of(row: Row, bins: int) -> EvidenceWindow:
    """Return a row's evidence as a window with `bins` latency bins: its pairs if it has some, as Shadow's gates saw."""
    seconds, requests, errors = np.array(row.seconds), np.array(row.requests, float), np.array(row.errors, float)
    if row.pairs is None:
        latencies = np.stack([_dense(each, bins) for each in row.latencies])
        return EvidenceWindow(seconds, requests, errors, latencies)
    failed = np.array(row.pairs.failed, float).reshape(2, 2)
    ratios, disagreements = (
        _dense(row.pairs.ratios, len(RATIOS) + 1),
        _dense(row.pairs.disagreements, len(DISAGREEMENTS) + 1),
    )
    latencies = np.stack([_dense(each, bins) for each in row.pairs.latencies])
    pairs = Pairs(
        failed,
        ratios,
        disagreements,
        requests.sum(-1),
        baseline=_dense(row.pairs.baseline, len(DISAGREEMENTS) + 1),
        shifts=_dense(row.pairs.shifts, len(SHIFTS) + 1),
    )
    return EvidenceWindow.of_pairs(seconds, latencies, pairs)


def kept(rows: tuple[Row, ...], new: Row) -> tuple[Row, ...]:
    """Return the rows with a new one; older ones are merged when due.

    Rows are merged if they lie in the same span of the clock, have the same weight, and all or none have pairs.
    """
    longer = (*rows, new)
    # Merging once per span instead of every second is cheaper.
    if rows and new.at_s // _FINEST_S == rows[-1].at_s // _FINEST_S:
        return longer
    due = any(_span_s(row, new.at_s) > row.seconds * 2 for row in longer)
    return tuple(_merged(longer, new.at_s)) if due else longer


def _merged(rows: Iterable[Row], now_s: float) -> Iterator[Row]:
    def place(row: Row) -> tuple[float, float, int, bool]:
        span_s = _span_s(row, now_s)
        return span_s, row.at_s // span_s if span_s else row.at_s, row.weight, row.pairs is None

    for _, group in groupby(rows, place):
        yield _sum(tuple(group))


def _span_s(row: Row, now_s: float) -> float:
    return next((span_s for age_s, span_s in AGES_S if now_s - row.at_s > age_s), 0.0)


def _sum(rows: tuple[Row, ...]) -> Row:
    if len(rows) == 1:
        return rows[0]
    stable, candidate = (_added([row.latencies[role] for row in rows]) for role in (0, 1))
    return Row(
        at_s=rows[-1].at_s,
        seconds=sum(row.seconds for row in rows),
        weight=rows[-1].weight,
        requests=(sum(row.requests[0] for row in rows), sum(row.requests[1] for row in rows)),
        errors=(sum(row.errors[0] for row in rows), sum(row.errors[1] for row in rows)),
        latencies=(stable, candidate),
        pairs=_sum_of_pairs(tuple(row.pairs for row in rows if row.pairs is not None)),
    )


def _sum_of_pairs(rows: tuple[PairRow, ...]) -> PairRow | None:
    if not rows:
        return None
    stable, candidate = (_added([row.latencies[role] for row in rows]) for role in (0, 1))
    return PairRow(
        _four([sum(counts) for counts in zip(*(row.failed for row in rows), strict=True)]),
        (stable, candidate),
        _added([row.ratios for row in rows]),
        _added([row.disagreements for row in rows]),
        _added([row.baseline for row in rows]),
        _added([row.shifts for row in rows]),
    )


def _four(counts: list[int]) -> tuple[int, int, int, int]:
    neither, candidate_alone, stable_alone, both = counts
    return neither, candidate_alone, stable_alone, both


def _added(latencies: Iterable[Bins]) -> Bins:
    total: dict[int, int] = {}
    for bins in latencies:
        for index, count in bins:
            total[index] = total.get(index, 0) + count
    return tuple(sorted(total.items()))


def _sparse(counts: Floats) -> Bins:
    bins = np.flatnonzero(counts)
    return tuple(zip(bins.tolist(), counts[bins].astype(int).tolist(), strict=True))


def _dense(bins: Bins, length: int) -> Floats:
    counts = np.zeros(length)
    for index, count in bins:
        counts[index] = count
    return counts
