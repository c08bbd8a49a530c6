"""The gate `resource`: memory, restarts and queueing time of the candidate's servers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Final

from segserve_operator.api.rollout_policy import ResourceGate, RolloutPolicy
from segserve_operator.core.gates.base import CheckedGateType, Outcome, Verdict, no_answer
from segserve_operator.core.gates.checks import CheckResult, ResourceSample, ResourceSamples

NAME: Final = "resource"
SAMPLES_IN_A_ROW: Final = 3
"""Consecutive samples that must exceed a limit: memory and queues have peaks."""

_REASONS: Final = {"restarts": "Restarts", "memoryGrowthPercent": "MemoryGrows", "queueSeconds": "LongQueue"}


def judge(spec: ResourceGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    """Judge the latest samples of the servers against the first.

    Quantities that are not measured are not judged, and the message says so; without any the verdict is Undecided.
    """
    if not isinstance(result, ResourceSamples) or len(result.samples) < 2:
        return no_answer(NAME, result)
    samples = result.samples
    measured = {
        "restarts": _restarts(samples),
        "memoryGrowthPercent": _least(
            _growth_percent(samples[0], sample) for sample in samples[1:][-SAMPLES_IN_A_ROW:]
        ),
        "queueSeconds": _least(_queue_s(*pair) for pair in list(pairwise(samples))[-SAMPLES_IN_A_ROW:]),
    }
    limits = {
        "restarts": float(spec.max_restarts),
        "memoryGrowthPercent": spec.max_memory_growth_percent,
        "queueSeconds": spec.max_queue_seconds,
    }
    numbers = {name: number for name, number in measured.items() if number is not None}
    missing = [name for name, limit in limits.items() if limit is not None and name not in numbers]
    judged = {name: limit for name, limit in limits.items() if limit is not None and name in numbers}
    return _verdict(numbers, judged, missing, long_enough=len(samples) > SAMPLES_IN_A_ROW)


def _verdict(
    numbers: Mapping[str, float], limits: Mapping[str, float], missing: Sequence[str], *, long_enough: bool
) -> Verdict:
    if not limits:
        message = "none of the servers' resources can be measured"
        return Verdict(NAME, Outcome.UNDECIDED, "NotMeasured", message, numbers=numbers)
    message = ", ".join(f"{name} {numbers[name]:.3g} (at most {limit:.3g})" for name, limit in limits.items())
    if missing:
        message = f"{message}; not measured: {', '.join(missing)}"
    progress = max(
        min(numbers[name] / limit, 1.0) if limit else float(numbers[name] > 0) for name, limit in limits.items()
    )
    over = [name for name, limit in limits.items() if numbers[name] > limit]
    if not over:
        return Verdict(NAME, Outcome.PASS, "WithinLimits", message, progress, numbers)
    # A peak may be over at the next sample, whereas a restart has happened.
    proved = long_enough or over[0] == "restarts"
    return Verdict(NAME, Outcome.BREACH if proved else Outcome.UNDECIDED, _REASONS[over[0]], message, progress, numbers)


def _least(numbers: Iterable[float | None]) -> float | None:
    return min((number for number in numbers if number is not None), default=None)


def _growth_percent(first: ResourceSample, now: ResourceSample) -> float | None:
    """Return the largest growth of a server's memory; None if no server is in both samples."""
    both = [name for name, used in first.memory_bytes.items() if used > 0 and name in now.memory_bytes]
    return max((100.0 * (now.memory_bytes[name] / first.memory_bytes[name] - 1.0) for name in both), default=None)


def _restarts(samples: Sequence[ResourceSample]) -> float | None:
    """Return the most restarts of one server since the first sample; None if none are counted."""
    first = samples[0].restarts
    counts = [count - first.get(name, 0) for name, count in samples[-1].restarts.items()]
    return float(max(counts)) if counts else None


def _queue_s(before: ResourceSample, after: ResourceSample) -> float | None:
    """Return the mean queueing time between two samples; None if no request came or a counter was reset."""
    if before.requests is None or after.requests is None or before.queued_s is None or after.queued_s is None:
        return None
    requests, queued_s = after.requests - before.requests, after.queued_s - before.queued_s
    return queued_s / requests if requests > 0 and queued_s >= 0 else None


GATE: Final = CheckedGateType(ResourceGate, judge)
