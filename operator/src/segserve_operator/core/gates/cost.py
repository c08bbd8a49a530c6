"""The gate `cost`: CPU time for each request of the candidate against stable's at the same time."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from segserve_operator.api.rollout_policy import CostGate, RolloutPolicy
from segserve_operator.core.gates.base import CheckedGateType, Outcome, Verdict, no_answer
from segserve_operator.core.gates.checks import CheckResult, CostCounts, CostEvidence, Pair
from segserve_operator.core.statistics import mean_ratio

NAME: Final = "cost"
LEAST_BLOCKS: Final = 10
"""Fewer stretches of time say too little of how much costs vary."""
LEAST_REQUESTS: Final = 500
"""Callers' requests of each revision, at least: rare large images have to be among them, or both would look alike."""
BLOCK_REQUESTS: Final = 10.0
"""Callers' requests of each revision in a block, at least: CPU times come in hundredths of a second."""
TEST_COSTS: Final = (0.0, 1.0, 10.0)
"""What an agent's test may cost, in callers' requests: nobody knows, as golden images may be larger than callers'."""


@dataclass(slots=True)
class CostBlocks:
    """The blocks so far, and the counts of (stable, candidate) at which the present one began."""

    began: tuple[CostCounts, ...] = ()
    blocks: list[tuple[CostCounts, CostCounts]] = field(default_factory=list)

    def add(self, now: tuple[CostCounts, ...]) -> None:
        """Add what both revisions did since; servers that started again begin a new block."""
        if not self.began:
            self.began = now
            return
        stable, candidate = (
            CostCounts(*(count - former for count, former in zip(after, before, strict=True)))
            for before, after in zip(self.began, now, strict=True)
        )
        if min(*stable, *candidate) < 0:
            self.began = now
        elif min(stable.calls, candidate.calls) >= BLOCK_REQUESTS and min(stable.cpu_s, candidate.cpu_s) > 0:
            self.began = now
            self.blocks.append((candidate, stable))

    def evidence(self, weight: int) -> CostEvidence:
        """Return what the blocks say; `weight` is the candidate's, in percent."""
        return CostEvidence(tuple(self.blocks), weight)


def judge(spec: CostGate, result: CheckResult, _policy: RolloutPolicy, level: float) -> Verdict:
    """Judge the ratio by its interval. Without traffic the gate lets the rollout begin, since only that shows costs."""
    evidence = result.cost
    if evidence is None:
        return no_answer(NAME, result)
    blocks, limit = len(evidence.blocks), 1 + spec.max_increase_percent / 100
    calls = min((sum(each.calls for each in side) for side in zip(*evidence.blocks, strict=True)), default=0.0)
    if blocks < LEAST_BLOCKS or calls < LEAST_REQUESTS:
        message = (
            f"{blocks} of {LEAST_BLOCKS} stretches of time in which both had requests, and in them "
            f"{calls:.0f} of {LEAST_REQUESTS} of each"
        )
        return _undecided(evidence, "TooFewRequests", message, {"blocks": float(blocks)})
    # Each block compares both at the same time, so that it does not matter when which weight met which images.
    costs = [_costs(evidence, of_test) for of_test in TEST_COSTS]
    intervals = [mean_ratio.interval(each, level) for each in costs]
    ratio, lower, upper = intervals[1]
    candidate_ms, stable_ms = (1000 * fmean(each) for each in zip(*costs[1], strict=True))
    # The ratio grows or falls with what tests cost: what holds at both ends holds between them.
    lowest, highest = min(low for _, low, _ in intervals), max(high for _, _, high in intervals)
    numbers = {"candidate_cpu_ms": candidate_ms, "stable_cpu_ms": stable_ms, "blocks": float(blocks)}
    numbers |= {"ratio": ratio, "ratio_low": lowest, "ratio_high": highest}
    message = (
        f"{candidate_ms:.3g} ms of CPU for each request, stable {stable_ms:.3g} ms: {ratio:.3g} times as much "
        f"({lowest:.3g} to {highest:.3g}), at most {limit:.3g} is allowed"
    )
    if lowest > limit:
        return Verdict(NAME, Outcome.BREACH, "Dearer", message, 1.0, numbers)
    if highest <= limit:
        return Verdict(NAME, Outcome.PASS, "NoDearer", message, numbers=numbers)
    if lower > limit or upper <= limit:
        message += "; agents' tests, whose costs are not known, may decide this: it takes more requests a second"
        return _undecided(evidence, "TooFewRequests", message, numbers)
    return _undecided(evidence, "Uncertain", message, numbers)


def _costs(evidence: CostEvidence, of_test: float) -> list[Pair]:
    """Return the CPU seconds of a caller's request to (candidate, stable) in each block, if a test costs `of_test`."""
    return [
        (
            candidate.cpu_s / (candidate.calls + of_test * candidate.tests),
            stable.cpu_s / (stable.calls + of_test * stable.tests),
        )
        for candidate, stable in evidence.blocks
    ]


def _undecided(evidence: CostEvidence, reason: str, message: str, numbers: dict[str, float]) -> Verdict:
    if evidence.weight == 0:
        return Verdict(NAME, Outcome.PASS, "NoTraffic", f"{message}; it is judged from the first step on", 0.0, numbers)
    return Verdict(NAME, Outcome.UNDECIDED, reason, message, numbers=numbers)


GATE: Final = CheckedGateType(CostGate, judge, is_rule=False)
