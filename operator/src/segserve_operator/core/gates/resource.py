"""The gate `resource`: memory, restarts and the queue of the candidate's servers."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Final

from segserve_operator.core.gates.answers import no_answer
from segserve_operator.core.gates.base import Outcome, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from segserve_operator.api.rollout_policy import ResourceGate, RolloutPolicy
    from segserve_operator.core.gates.checks import CheckResult, ResourceSample

GATE: Final = "resource"
LOOKS: Final = 3
"""So many looks in a row must see too much: memory and queues have peaks."""

_REASONS: Final = {"restarts": "Restarts", "memoryGrowthPercent": "MemoryGrows", "queueSeconds": "LongQueue"}


def judge(spec: ResourceGate, finding: CheckResult, policy: RolloutPolicy, level: float) -> Verdict:
    """Judge the latest looks at the servers, each against the first.

    What is not measured is not judged, and the message says so; where nothing is, the verdict is Undecided.
    """
    del policy, level  # plain rules have neither
    samples = finding.samples
    if finding.problem or len(samples) < 2:
        return no_answer(GATE, finding)
    found = {
        "restarts": _restarts(samples),
        "memoryGrowthPercent": _least(_growth_percent(samples[0], sample) for sample in samples[1:][-LOOKS:]),
        "queueSeconds": _least(_queue_s(*pair) for pair in list(pairwise(samples))[-LOOKS:]),
    }
    limits = {
        "restarts": float(spec.max_restarts),
        "memoryGrowthPercent": spec.max_memory_growth_percent,
        "queueSeconds": spec.max_queue_seconds,
    }
    seen = {name: number for name, number in found.items() if number is not None}
    missing = [name for name, limit in limits.items() if limit is not None and name not in seen]
    judged = {name: limit for name, limit in limits.items() if limit is not None and name in seen}
    return _verdict(seen, judged, missing, long_enough=len(samples) > LOOKS)


def _verdict(
    seen: Mapping[str, float], limits: Mapping[str, float], missing: Sequence[str], *, long_enough: bool
) -> Verdict:
    if not limits:
        return Verdict(GATE, Outcome.UNDECIDED, "NotMeasured", "nothing of the servers can be measured", numbers=seen)
    told = ", ".join(f"{name} {seen[name]:.3g} (at most {limit:.3g})" for name, limit in limits.items())
    if missing:
        told = f"{told}; not measured: {', '.join(missing)}"
    progress = max(min(seen[name] / limit, 1.0) if limit else float(seen[name] > 0) for name, limit in limits.items())
    over = [name for name, limit in limits.items() if seen[name] > limit]
    if not over:
        return Verdict(GATE, Outcome.PASS, "WithinLimits", told, progress, seen)
    # A peak may be over at the next look; a restart has happened.
    proved = long_enough or over[0] == "restarts"
    return Verdict(GATE, Outcome.BREACH if proved else Outcome.UNDECIDED, _REASONS[over[0]], told, progress, seen)


def _least(numbers: Iterable[float | None]) -> float | None:
    return min((number for number in numbers if number is not None), default=None)


def _growth_percent(first: ResourceSample, now: ResourceSample) -> float | None:
    """Return by how much the server that grew most has grown; None where no server is in both samples."""
    both = [name for name, used in first.memory_bytes.items() if used > 0 and name in now.memory_bytes]
    return max((100.0 * (now.memory_bytes[name] / first.memory_bytes[name] - 1.0) for name in both), default=None)


def _restarts(samples: Sequence[ResourceSample]) -> float | None:
    """Return the restarts of the server with most of them since the first sample; None where none are counted."""
    known = samples[0].restarts
    counts = [count - known.get(name, 0) for name, count in samples[-1].restarts.items()]
    return float(max(counts)) if counts else None


def _queue_s(before: ResourceSample, after: ResourceSample) -> float | None:
    """Return how long a request waited on average between two samples; None where none came, or a counter fell."""
    if before.requests is None or after.requests is None or before.queued_s is None or after.queued_s is None:
        return None
    requests, queued_s = after.requests - before.requests, after.queued_s - before.queued_s
    return queued_s / requests if requests > 0 and queued_s >= 0 else None
