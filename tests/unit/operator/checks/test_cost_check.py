"""Looks at what both revisions cost, and what the runner keeps of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from fakes.golden_pictures import context_of
from segserve_operator.adapters.checks import cost
from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.api.rollout_policy import CostGate
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult, CostCounts, ResourceSample

CHECK = Check(
    "rollout/cost", "coins", "check", "main", "coins-1", "own", "coins-2", gate="cost", spec=CostGate(), weight=25
)


@dataclass
class Servers:
    """Servers whose revisions answer twenty requests between two looks, at 10 ms of CPU and `dearer` times as much."""

    dearer: float = 1.0
    counts: bool = True
    looks: dict[str, int] = field(default_factory=dict)

    async def look(self, group: str) -> ResourceSample:
        """Return what a group's revisions have used by now."""
        at = self.looks[group] = self.looks.get(group, -1) + 1
        each_s = 0.01 * (self.dearer if group == "own" else 1.0)
        costs = {f"coins-{1 + (group == 'own')}": CostCounts(20 * at * each_s, 20.0 * at)}
        return ResourceSample(costs=costs if self.counts else {})


def context(servers: Servers) -> CheckContext:
    return replace(context_of(), resources=servers)


async def looked(found: CheckContext, times: int, check: Check = CHECK) -> CheckResult:
    results = [await cost.run(check, found, lambda _: None) for _ in range(times)]
    return results[-1]


async def test_each_look_with_enough_requests_is_a_block() -> None:
    evidence = (await looked(context(Servers(dearer=1.5)), 13)).cost

    assert len(evidence.blocks) == 12
    candidate, stable = evidence.blocks[0]
    assert (*candidate, *stable) == pytest.approx((0.3, 20.0, 0.0, 0.2, 20.0, 0.0))


async def test_agents_that_count_no_costs_are_no_result_once_the_candidate_has_traffic() -> None:
    found: Any = context(Servers(counts=False))

    with pytest.raises(CheckError, match="count no costs"):
        await looked(found, 1)
    assert (await looked(found, 1, replace(CHECK, weight=0))).cost is not None


async def test_what_was_counted_is_forgotten_with_its_check() -> None:
    found = context(Servers())
    await looked(found, 3)
    runner = BackgroundCheckRunner(found)

    runner.schedule(())

    assert found.costs == {}
