"""The window of evidence of Shadow: pairs of answers counted between two readings of the gateways' counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from segserve_operator.core.evidence import (
    CANDIDATE,
    EDGES_MS,
    EvidenceWindow,
    Floats,
    Pairs,
)
from segserve_operator.core.rollout.counters import Counters, PairCounts, Sample
from segserve_operator.core.rollout.windows import first_reference


def pairs_between(
    before: Sample,
    after: Sample,
    stable_group: str,
    candidate_group: str,
    callers: EvidenceWindow,
    *,
    edges: Sequence[float] = EDGES_MS,
) -> EvidenceWindow:
    """Return the pairs that were counted after `before` and up to `after`, instead of `callers`' requests meanwhile.

    Pairs of other groups are not part of it. As with callers' requests, what a gateway had counted before its first
    sample is not, unless it has started since `before`; a gateway that does not answer is missing in `after`, and what
    it counts meanwhile is in the window after its return; counts of a new epoch, or that have fallen, began at zero.
    """
    compared: list[tuple[PairCounts, PairCounts]] = []
    newest_s = max((count.at_s for count in before.values()), default=None)
    for name, now in after.items():
        counted = now.pairs
        if counted is not None and (counted.stable, counted.candidate) == (stable_group, candidate_group):
            compared.append((_since(before.get(name, first_reference(now, newest_s)), counted), counted))
    none, failed, latencies = Pairs.nothing(), np.zeros((2, 2)), np.zeros((2, len(edges) + 1))
    for was, at in compared:
        failed += np.subtract(at.failed, was.failed).reshape(2, 2)
        latencies += [_latencies(was, at, role, edges) for role in range(CANDIDATE + 1)]

    def more(bins: Callable[[PairCounts], Sequence[int]], no: Floats) -> Floats:
        return sum((_bins(bins(was), bins(at), len(no)) for was, at in compared), no)

    pairs = Pairs(
        failed,
        more(lambda counts: counts.ratios, none.ratios),
        more(lambda counts: counts.disagreements, none.disagreements),
        callers.requests.sum(-1),
        baseline=more(lambda counts: counts.baseline, none.baseline),
        shifts=more(lambda counts: counts.shifts, none.shifts),
    )
    return EvidenceWindow.of_pairs(callers.seconds, latencies, pairs)


def _since(then: Counters, now: PairCounts) -> PairCounts:
    """Return what a gateway's comparator had counted before; nothing if it began anew."""
    former = then.pairs
    anew = PairCounts(now.epoch, now.stable, now.candidate)
    if former is None or (former.epoch, former.stable, former.candidate) != (now.epoch, now.stable, now.candidate):
        return anew
    fallen = any(count < was for was, count in zip(former.failed, now.failed, strict=True))
    return anew if fallen else former


def _latencies(then: PairCounts, now: PairCounts, role: int, edges: Sequence[float]) -> Floats:
    former, binned = dict(then.latencies[role]), np.zeros(len(edges) + 1)
    for lower_ms, count in now.latencies[role]:
        binned[np.searchsorted(edges, lower_ms, side="right")] += max(count - former.get(lower_ms, 0), 0)
    return binned


def _bins(then: Sequence[int], now: Sequence[int], length: int) -> Floats:
    """Return the increase per bin; none of a comparator that counts in other bins."""
    if len(now) != length:
        return np.zeros(length)
    former = np.array(then if len(then) == length else [0] * length)
    more: Floats = np.maximum(np.array(now) - former, 0).astype(float)
    return more
