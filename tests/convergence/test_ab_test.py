"""The strategy abTest in memory: both revisions get callers by id for a time; there is a result and no promotion."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from fakes.platform import InMemoryStore, World
from fakes.rollout_world import FIRST, POLICY, SECOND, Rollout
from segserve_operator.api.ab_test import AbTest, AbTestQuery
from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.replay import replay
from segserve_operator.core.world.observed import PoolObserved, PoolStatus
from segserve_operator.mapping.rollouts import manifest_of, record_of, status_of

AFFINE = PoolObserved("default", status=PoolStatus(), session_affinity=True)
# What is tested here differs more than a guard of callers tolerates.
TOLERANT = POLICY.tolerance.model_copy(update={"error_percent": 50.0})
TEST = POLICY.model_copy(
    update={
        "strategy": "abTest",
        "ab_test": AbTest(weight=30, duration=timedelta(minutes=4)),
        "gates": (),
        "tolerance": TOLERANT,
        "max_bad_requests": 100_000,
    }
)


def affine(**world: object) -> Rollout:
    return Rollout(world=World(store=InMemoryStore(pool=AFFINE)), **world)  # type: ignore[arg-type]


async def after_a_test(policy: RolloutPolicy = TEST, **world: object) -> Rollout:
    rollout = affine(**world)
    await rollout.begin(policy)
    await rollout.end()
    return rollout


def result(rollout: Rollout) -> Verdict:
    return next(verdict for verdict in rollout.record.verdicts if verdict.gate == "abTest")


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ({FIRST.revision: 0.8}, "TestedBetter"),
        ({SECOND.revision: 0.8}, "TestedWorse"),
        ({FIRST.revision: 0.1, SECOND.revision: 0.1}, "TestedUndecided"),
    ],
)
async def test_after_its_time_there_is_a_result_with_an_interval_and_stable_has_all_requests_again(
    errors: dict[str, float], reason: str
) -> None:
    rollout = affine(errors=errors)
    await rollout.begin(TEST)
    await rollout.until(lambda state: state.phase is Phase.PROGRESSING)
    assert rollout.world.traffic.groups_of("coins") == {"main": 70, SECOND.revision: 30}
    begun_s = rollout.world.now_s
    await rollout.until(lambda state: state.reason == "MinimumTime", 30)
    ended = await rollout.end()
    for _ in range(5):
        await rollout.second()
    low, high = result(rollout).numbers["low"], result(rollout).numbers["high"]

    assert (ended.phase, ended.reason, ended.weight) == (Phase.JUDGED, reason, 0)
    assert rollout.world.now_s - begun_s >= 240
    assert low <= errors.get(SECOND.revision, 0.0) - errors.get(FIRST.revision, 0.0) <= high
    assert "95 % interval" in ended.message
    assert rollout.world.traffic.groups_of("coins") == {"main": 100}
    assert rollout.world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


async def test_without_ids_a_test_is_refused_until_the_gateway_knows_them() -> None:
    rollout = Rollout()
    await rollout.begin(TEST)
    for _ in range(5):
        await rollout.second()

    assert rollout.world.condition("coins", "Degraded") == ("True", "ABTestNeedsAffinity")
    assert rollout.world.traffic.groups_of("coins") == {"main": 100}

    assert rollout.world.store.pool is not None
    rollout.world.store.pool = replace(rollout.world.store.pool, session_affinity=True)
    state = await rollout.until(lambda state: state.phase is Phase.PROGRESSING, 30)

    assert state.weight == 30


async def test_a_person_promotes_what_was_tested_and_nobody_else_does() -> None:
    rollout = await after_a_test(errors={FIRST.revision: 0.8})
    for _ in range(60):
        await rollout.second()
    assert rollout.state.phase is Phase.JUDGED
    rollout.ask("promote", SECOND.revision)
    await rollout.until(lambda state: state.phase not in ENDED, 20)

    assert (await rollout.end()).phase is Phase.SUCCEEDED


async def test_a_paused_test_ends_when_it_is_resumed() -> None:
    rollout = affine(requests_per_s=2)
    await rollout.begin(TEST)
    await rollout.until(lambda state: state.phase is Phase.PROGRESSING)
    rollout.ask("pause", SECOND.revision)
    for _ in range(250):
        await rollout.second()
    assert rollout.state.weight == 30
    rollout.ask("resume", SECOND.revision)

    assert (await rollout.end(5)).reason == "TestedUndecided"


BY_QUERY = AbTest(
    duration=timedelta(minutes=4),
    metric="promql",
    promql=AbTestQuery(
        address="http://prometheus",
        query='wrong{revision="{revision}"}',
        minimum=0,
        maximum=1,
        interval=timedelta(seconds=2),
    ),
)


def asked_by_query(candidate: float) -> Rollout:
    """Return a rollout in which Prometheus has 0.2 for stable, and this value for the candidate."""
    rollout = affine()
    rollout.world.found.answers["abTest"] = lambda check: CheckResult(
        check.key, rollout.world.now_s, values=(0.2, candidate), shown="values"
    )
    return rollout


async def test_a_test_by_a_query_compares_its_values_once_each_and_replays_to_the_same_result() -> None:
    rollout = asked_by_query(0.9)
    await rollout.begin(TEST.model_copy(update={"ab_test": BY_QUERY}))
    ended = await rollout.end()
    asked = [check for check in rollout.world.found.begun if check.purpose == "abTest"]
    numbers = result(rollout).numbers

    assert ended.reason == "TestedWorse"
    assert (numbers["stable"], numbers["candidate"]) == pytest.approx((0.2, 0.9))
    assert len(asked) - 2 <= numbers["values"] <= len(asked)
    about = {(check.stable, check.candidate, check.phase) for check in asked}
    assert about == {(FIRST.revision, SECOND.revision, "Progressing")}
    assert [each.sequence for each in replay(rollout.record) if not each.same] == []


async def test_a_test_by_a_percentile_finds_the_slower_revision_and_its_record_can_be_read_again() -> None:
    test = AbTest(duration=timedelta(minutes=4), metric="p50Latency")
    tolerant = TOLERANT.model_copy(update={"slow_percent": 50.0, "latency_percent": 1000.0})
    rollout = affine(slow_ms={SECOND.revision: 60.0})
    await rollout.begin(TEST.model_copy(update={"ab_test": test, "tolerance": tolerant}))
    ended = await rollout.end()
    record = rollout.record
    read = record_of({**manifest_of(record), "status": status_of(record, datetime.now(UTC))}, ())

    assert ended.reason == "TestedWorse"
    assert result(rollout).numbers["low"] <= 40.0 <= result(rollout).numbers["high"]
    assert read.policy == record.policy
    assert [each.sequence for each in replay(read) if not each.same] == []
