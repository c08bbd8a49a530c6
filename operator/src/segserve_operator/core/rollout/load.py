"""The load test of Shadow: how often the candidate is asked before its first step, and what gateways found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from segserve_operator.core.evidence import LoadEvidence
from segserve_operator.core.rollout.counters import LoadCounts
from segserve_operator.core.rollout.engine import RATE_MEMORY_S, Policy, Progress, step_after_shadow

MIN_PER_S: Final = 1.0
TEST_S: Final = 41.0
"""Longest time that a gateway's comparator asks and waits for answers; it begins once Shadow has its pairs."""
_DIGITS: Final = (1.0, 1.2, 1.5, 1.8, 2.2, 2.7, 3.3, 3.9, 4.7, 5.6, 6.8, 8.2, 10.0)
"""Of the rates, the E12 series: gateways are told of a new one only if callers' rate has changed notably."""


def load_per_s(policy: Policy, progress: Progress, gateways: int, now_s: float) -> float:
    """Return a gateway's part of the requests a second that the first step brings at callers' present rate, rounded up.

    That is the step after Shadow, for which the candidate's servers are made ready.
    """
    # A mean that began at zero: as long as it is young, it is too small.
    known = -np.expm1(-max(now_s - float(progress.started_s), 1.0) / RATE_MEMORY_S)
    callers = np.asarray(progress.rate / known)
    step = int(step_after_shadow(policy, replace(progress, rate=callers), now_s))
    weight = policy.steps[step].weight if policy.steps else 100.0
    rate = max(float(callers) * weight / 100.0 / gateways, MIN_PER_S)
    decade = 10.0 ** np.floor(np.log10(rate))
    return float(decade * next(digits for digits in _DIGITS if digits >= rate / decade * (1 - 1e-9)))


def load_of(counts: Sequence[LoadCounts], edges: Sequence[float]) -> LoadEvidence:
    """Return what the comparators of all gateways have found by now."""
    able = [each for each in counts if each.can]
    ended = [each for each in able if each.ended]
    latencies = np.zeros(len(edges) + 1)
    for each in ended:
        for lower_ms, count in each.latencies:
            latencies[np.searchsorted(edges, lower_ms, side="right")] += count
    return LoadEvidence(
        able=np.array(float(len(able))),
        ended=np.array(float(len(ended))),
        stopped=np.array(float(sum(each.stopped for each in ended))),
        wanted_per_s=np.array(sum(each.wanted_per_s for each in ended), float),
        asked_per_s=np.array(sum(each.asked_per_s for each in ended), float),
        answered_per_s=np.array(sum(each.answered_per_s for each in ended), float),
        asked=np.array(float(sum(each.asked for each in ended))),
        failed=np.array(float(sum(each.failed for each in ended))),
        latencies=latencies,
    )
