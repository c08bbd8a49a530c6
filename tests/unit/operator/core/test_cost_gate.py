"""The gate `cost`: an interval of the ratio of costs, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest

from segserve_builder.agent.cost import Owner, RevisionCost, ServedRevision, ServerLook, costs_between
from segserve_builder.agent.processes import ProcessUse
from segserve_builder.agent.server import StepCounts
from segserve_operator.api.rollout_policy import CostGate, RolloutPolicy
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import CheckResult, CostCounts
from segserve_operator.core.gates.cost import LEAST_BLOCKS, LEAST_REQUESTS, CostBlocks, judge

LEVEL = 0.0025


def blocks_of(ratios: Iterator[float] | list[float], requests: float = 50.0) -> CostBlocks:
    blocks, stable_s, candidate_s, answered = CostBlocks(), 0.0, 0.0, 0.0
    blocks.add((CostCounts(0.0, 0.0), CostCounts(0.0, 0.0)))
    for ratio in ratios:
        stable_s, candidate_s, answered = stable_s + 1.0, candidate_s + ratio, answered + requests
        blocks.add((CostCounts(stable_s, answered), CostCounts(candidate_s, answered)))
    return blocks


def verdict(blocks: CostBlocks, *, weight: int = 25) -> Verdict:
    return judge(CostGate(), CheckResult("key", 0.0, cost=blocks.evidence(weight)), RolloutPolicy(), LEVEL)


def noisy(ratio: float, count: int, seed: int = 1, spread: float = 0.1) -> list[float]:
    draws = np.random.default_rng(seed).normal(math.log(ratio), spread, count)
    return [float(each) for each in np.exp(draws)]


def test_a_candidate_that_is_clearly_dearer_breaches_and_the_message_has_the_interval() -> None:
    found = verdict(blocks_of(noisy(1.5, 30)))

    assert (found.outcome, found.reason) == (Outcome.BREACH, "Dearer")
    assert found.numbers["ratio_low"] > 1.1
    assert "times as much" in found.message


def test_an_equal_candidate_passes_once_the_interval_says_so() -> None:
    assert verdict(blocks_of(noisy(1.0, 200))).outcome is Outcome.PASS
    assert verdict(blocks_of(noisy(1.0, 11, spread=0.5))).reason == "Uncertain"


def test_a_few_blocks_prove_nothing_however_much_they_differ() -> None:
    found = verdict(blocks_of([3.0] * (LEAST_BLOCKS - 1)))

    assert (found.outcome, found.reason) == (Outcome.UNDECIDED, "TooFewRequests")


def test_a_few_requests_prove_nothing_either() -> None:
    few = verdict(blocks_of(noisy(3.0, 20), requests=LEAST_REQUESTS / 20 - 1))

    assert (few.outcome, few.reason) == (Outcome.UNDECIDED, "TooFewRequests")
    assert f"480 of {LEAST_REQUESTS}" in few.message
    assert verdict(blocks_of(noisy(3.0, 20), requests=LEAST_REQUESTS / 20)).outcome is Outcome.BREACH


def test_before_the_first_step_nothing_is_known_and_the_rollout_may_begin() -> None:
    assert verdict(CostBlocks(), weight=0).outcome is Outcome.PASS
    assert verdict(CostBlocks(), weight=5).outcome is Outcome.UNDECIDED
    assert verdict(blocks_of(noisy(2.0, 40)), weight=0).outcome is Outcome.BREACH


def test_a_block_lasts_until_both_revisions_had_ten_requests_of_callers() -> None:
    blocks = CostBlocks()
    for stable, candidate in ((0.0, 0.0), (100.0, 4.0), (200.0, 12.0), (300.0, 16.0)):
        blocks.add((CostCounts(stable / 100, stable), CostCounts(candidate / 50, candidate, candidate / 4)))

    assert blocks.blocks == [(CostCounts(0.32, 16.0, 4.0), CostCounts(3.0, 300.0))]


def test_servers_that_started_again_begin_a_new_block() -> None:
    blocks = CostBlocks()
    blocks.add((CostCounts(10.0, 100.0), CostCounts(10.0, 100.0)))
    blocks.add((CostCounts(11.0, 120.0), CostCounts(0.5, 20.0)))

    assert blocks.blocks == []

    blocks.add((CostCounts(12.0, 140.0), CostCounts(1.5, 40.0)))

    assert blocks.blocks == [(CostCounts(1.0, 20.0), CostCounts(1.0, 20.0))]


@pytest.mark.parametrize(("of_candidate", "of_stable"), [(190, 10), (10, 190), (60, 30)])
def test_a_few_large_images_make_no_candidate_dearer_and_a_dearer_one_does_not_pass(
    of_candidate: int, of_stable: int
) -> None:
    """One of twenty images costs 25 times as much as others. Revisions are looked at until they are judged.

    At this level one of 400 rollouts may end wrongly: none of these 50, of a fixed seed, does.
    """
    rng = np.random.default_rng(5)
    found: dict[float, list[str]] = {1.0: [], 1.25: [], 2.0: []}
    for dearer, reasons in found.items():
        for _ in range(50):
            candidate, stable = (
                np.where(rng.random((360, each)) < 0.05, 0.5, 0.02).sum(1) for each in (of_candidate, of_stable)
            )
            pairs = [
                (CostCounts(float(one), of_candidate), CostCounts(float(two), of_stable))
                for one, two in zip(dearer * candidate, stable, strict=True)
            ]
            reasons.append(ended(pairs))

    assert "Dearer" not in found[1.0]
    assert "NoDearer" not in found[1.25]
    assert found[2.0].count("Dearer") >= 45


def ended(pairs: list[tuple[CostCounts, CostCounts]]) -> str:
    """Return the reason that ends a rollout with such blocks, or the last one."""
    reason = ""
    for count in range(20, len(pairs) + 1, 20):
        reason = verdict(CostBlocks(blocks=pairs[:count])).reason
        if reason in {"Dearer", "NoDearer"}:
            break
    return reason


CPU_S = 0.02
"""CPU time of a caller's request: a quarter in a step's process, the rest in a network."""


def counted(rates: tuple[float, float], seed: int, *, golden: float, native: bool, dearer: float = 1.0) -> CostBlocks:
    """Return an hour of two servers, as their agents count it; the first is stable's.

    Each gets callers' requests at its rate, and every 5 s a probe with a golden image that costs `golden` requests. All
    the while a server uses 3 % of a core by itself.
    """
    rng, blocks = np.random.default_rng(seed), CostBlocks()
    served = ServedRevision(Owner("coins", "coins-1"), ("net", "post"), frozenset({"net"} if native else ()))
    looks, costs = [ServerLook(0.0, {}, {})] * 2, [RevisionCost()] * 2
    used_s, requests, tests = np.zeros(2), np.zeros(2), 0.0
    for at_s in range(10, 3601, 10):
        tests += 2
        for side, rate in enumerate(rates):
            calls = int(rng.poisson(10 * rate))
            each_s = CPU_S * (dearer if side else 1.0)
            used_s[side] += each_s * (rng.gamma(25.0, 1 / 25, calls).sum() + 2 * golden)
            requests[side] += calls + 2
            network_s, idle_s = 0.75 * used_s[side], 0.03 * at_s
            cpu_s = {"post": used_s[side] / 4, "net": 0.0 if native else network_s}
            cpu_s[""] = idle_s + (network_s if native else 0.0)
            # CPU times come in hundredths of a second.
            uses = {name: ProcessUse(name, math.floor(100 * amount) / 100, 0.0) for name, amount in cpu_s.items()}
            counts = {"net": StepCounts(requests[side], network_s), "post": StepCounts(requests[side], 0.0)}
            look = ServerLook(float(at_s), uses, counts, tests={"coins-1": tests})
            costs[side] += costs_between(looks[side], look, [served])[served.owner]
            looks[side] = look
        blocks.add(tuple(CostCounts(each.step_cpu_s, each.requests, each.tests) for each in costs))
    return blocks


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("golden", [0.2, 5.0])
@pytest.mark.parametrize("rates", [(95.0, 5.0), (99.0, 1.0)])
def test_neither_probes_nor_what_an_idle_server_uses_make_an_equal_candidate_dearer(
    rates: tuple[float, float], golden: float, native: bool
) -> None:
    reasons = [ended(counted(rates, seed, golden=golden, native=native).blocks) for seed in range(3)]

    assert set(reasons) <= {"NoDearer", "TooFewRequests", "Uncertain"}


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("golden", [0.2, 5.0])
def test_a_dearer_candidate_at_5_percent_is_found_in_spite_of_probes(golden: float, native: bool) -> None:
    blocks = counted((190.0, 10.0), 1, golden=golden, native=native, dearer=1.6)

    assert ended(blocks.blocks) == "Dearer"


def test_an_equal_candidate_passes_if_it_has_many_more_requests_than_probes() -> None:
    assert ended(counted((95.0, 5.0), 1, golden=1.0, native=True).blocks) == "NoDearer"


def test_probes_alone_are_no_requests() -> None:
    assert verdict(counted((0.0, 0.0), 1, golden=1.0, native=False)).reason == "TooFewRequests"


def test_a_verdict_that_tests_may_have_decided_says_so() -> None:
    found = verdict(counted((19.0, 1.0), 1, golden=1.0, native=False, dearer=1.5))

    assert (found.outcome, found.reason) == (Outcome.UNDECIDED, "TooFewRequests")
    assert "agents' tests" in found.message
