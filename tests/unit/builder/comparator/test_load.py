"""The load test of a candidate: how often it is asked, what is counted, and when the test ends early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import fields, replace
from typing import Any

import pytest

from fakes.compared_groups import COMPARISON, World, comparing
from fakes.waiting import eventually
from segserve_builder.comparator import compared_model, load, tally
from segserve_builder.comparator.comparing import AnswerComparison
from segserve_builder.comparator.copies import RequestCopy
from segserve_builder.comparator.groups import Answer, AnswerKind
from segserve_builder.comparator.load import LoadTest, LoadTiming
from segserve_builder.comparator.tally import HUNG_MS, LoadTally
from segserve_operator.core import evidence
from segserve_operator.core.rollout.counters import LoadCounts

BRIEF = LoadTiming(ramp_s=0.01, full_s=0.3, late_s=0.05)
COPY = RequestCopy("coins", "http", "/v2/models/coins/infer", b"an image")
GRPC = RequestCopy("coins", "grpc", "/inference.GRPCInferenceService/ModelInfer", b"an image")
LOAD = {**COMPARISON, "load_per_s": 100.0}


def load_test(ask: Any, wanted_per_s: float = 200.0, calm_s: float | None = None) -> LoadTest:
    test = LoadTest(wanted_per_s, ask, calm_s=calm_s, timing=BRIEF)
    test.copies.append(COPY)
    return test


async def answer(_: RequestCopy) -> Answer:
    return Answer(AnswerKind.ANSWERED, 0.012)


async def test_a_candidate_that_bears_the_rate_has_an_answer_to_each_request() -> None:
    found = await load_test(answer).run()

    assert (found.ended, found.stopped, found.failed) == (True, False, 0)
    assert found.asked == sum(found.latencies.values()) > 0
    assert set(found.latencies) == {12}
    assert found.asked_per_s == pytest.approx(found.asked / BRIEF.full_s)
    assert found.answered_per_s == pytest.approx(found.asked_per_s, rel=0.5)


async def test_what_is_not_answered_in_time_hangs_and_no_more_are_under_way_than_may_be() -> None:
    under_way, most = 0, 0

    async def never(_: RequestCopy) -> Answer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.Event().wait()
        raise AssertionError

    test = load_test(never, wanted_per_s=1000.0)
    test.copies[:] = [GRPC]
    found = await test.run()

    assert most == load.FEW_IN_FLIGHT, "as long as nobody knows how large answers are"
    assert found.failed == found.asked == found.latencies[HUNG_MS] == most
    assert found.answered_per_s == 0


@pytest.mark.parametrize(
    ("size", "most"), [(1_000, load.MAX_IN_FLIGHT), (2**20, load.MAX_IN_FLIGHT), (16 * 2**20, load.FEW_IN_FLIGHT)]
)
async def test_answers_under_way_are_bounded_in_number_and_bytes(size: int, most: int) -> None:
    test = load_test(answer)
    test.copies[:], test._largest_answer = [GRPC], size

    assert test._most_in_flight() == most


def test_the_rate_and_its_bytes_are_bounded() -> None:
    small, large = load_test(answer, wanted_per_s=5000.0), load_test(answer, wanted_per_s=5000.0)
    large.copies[:] = [RequestCopy("coins", "http", "/", bytes(16 * 2**20))]

    assert small._rate() == load.MAX_PER_S
    assert large._rate() == pytest.approx(load.MAX_BYTES_PER_S / (16 * 2**20))
    assert not large.has_room(COPY)


async def test_a_test_that_slows_stable_down_ends_at_once_and_counts_nothing() -> None:
    test = load_test(answer, calm_s=0.02)
    for _ in range(load.FEW):
        test.learn(0.2)
    found = await test.run()

    assert (found.ended, found.stopped, found.asked) == (True, True, 0)


async def test_refused_requests_and_a_gateway_that_is_gone_are_no_evidence() -> None:
    kinds = iter([AnswerKind.REFUSED, AnswerKind.UNREACHED] * 1000)

    async def refuse(_: RequestCopy) -> Answer:
        return Answer(next(kinds), 0.01, has_latency=False)

    assert (await load_test(refuse).run()).asked == 0


def test_the_counts_on_the_wire_are_those_that_the_operator_reads() -> None:
    assert LoadTally().to_json().keys() == {field.name for field in fields(LoadCounts)}
    assert tally.SHIFTS == evidence.SHIFTS


@pytest.fixture(params=["http", "grpc"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    async with comparing(request.param) as compared:
        compared.comparator._load_timing = replace(BRIEF, late_s=60.0)
        yield compared


async def load_of(world: World) -> dict[str, Any]:
    return dict((await world.pairs())["coins"]["load"])


async def has_ended(world: World) -> bool:
    return bool((await load_of(world))["ended"])


async def test_the_candidate_alone_is_asked_kept_copies_and_pairs_go_on_afterwards(world: World) -> None:
    world.compare(coins=COMPARISON)
    await world.warm_up()
    world.compare(coins=LOAD)
    await world.send(b"first")
    await world.send(b"second")
    await eventually(lambda: has_ended(world), "the load test has ended")
    await world.idle()
    found, asked = await load_of(world), len(world.servers.bodies["green"])
    world.compare(coins=COMPARISON)
    await world.send_all(1)

    assert found["asked"] > 0
    assert found["failed"] == 0
    assert asked > found["asked"]
    assert len(world.servers.bodies["blue"]) <= 4, "stable is asked for its time alone"
    assert (await world.pairs())["coins"]["failed"] == [1, 0, 0, 0]
    assert await load_of(world) == found


async def test_a_load_test_ends_with_its_comparison_and_holds_nothing(world: World) -> None:
    world.servers.answers["green"] = None
    world.compare(coins=LOAD)
    await world.send()
    world.compare()
    await world.pairs()
    await world.idle()

    assert world.comparator._pairs == set()


async def test_one_that_is_no_longer_wanted_ends_and_may_begin_again(world: World) -> None:
    world.servers.answers["green"] = None
    world.compare(coins=LOAD)
    await world.send()
    world.compare(coins=COMPARISON)
    await world.pairs()
    await world.idle()
    world.servers.answers["green"] = b""
    world.compare(coins=LOAD)
    await world.send()
    await eventually(lambda: has_ended(world), "the load test has ended")

    assert (await load_of(world))["asked"] > 0


async def test_stable_is_compared_with_itself_while_the_candidate_warms_up_and_now_and_then() -> None:
    differs = iter([0.999, *[0.9] * 1000])

    async def compare(*_: Any, keep_below: float) -> AnswerComparison:
        return AnswerComparison(next(differs))

    async with comparing("http", compare=compare) as world:
        world.compare(coins={**COMPARISON, "has_baseline": True})
        await world.send_all(compared_model.WARM_UP_PAIRS)
        warm = (await world.pairs())["coins"]
        await world.send_all(9)
        after = (await world.pairs())["coins"]

    assert sum(warm["baseline"]) == compared_model.WARM_UP_PAIRS
    assert (sum(warm["disagreements"]), warm["failed"]) == (0, [0, 0, 0, 0])
    assert sum(after["baseline"]) == compared_model.WARM_UP_PAIRS + 3
    assert (sum(after["disagreements"]), after["failed"]) == (6, [6, 0, 0, 0])


async def test_without_a_wish_stable_is_never_asked_twice() -> None:
    async with comparing("http") as world:
        world.compare(coins=COMPARISON)
        await world.send_all(30)

        assert len(world.servers.bodies["blue"]) == len(world.servers.bodies["green"]) == 30
