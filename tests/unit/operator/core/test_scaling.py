"""The number of servers follows from the requests in flight by Knative's rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from fakes.cases import cases
from segserve_operator.core.scaling import (
    STABLE_WINDOW_S,
    GatewayLoad,
    LoadHistory,
    LoadSample,
    PoolLoad,
    ScalingPolicy,
    ScalingTarget,
    decide,
    load_sample,
    observed,
)

POLICY = ScalingPolicy(minimum=1, maximum=20, target=ScalingTarget(concurrency=4.0), scale_down_delay_s=120.0)


def played(
    in_flight: Callable[[int], float],
    seconds: int,
    policy: ScalingPolicy = POLICY,
    *,
    history: LoadHistory | None = None,
    start: int = 1,
    hold: bool = False,
    first_s: int = 1000,
) -> tuple[LoadHistory, list[int]]:
    """Return the history and the numbers wanted each second, where servers start at once."""
    history, desired, wanted = history or LoadHistory(), start, []
    for second in range(seconds):
        history = observed(history, LoadSample(first_s + second, 0.0, in_flight(second), desired), policy.target)
        history, decision = decide(history, policy, desired, hold=hold)
        desired = decision.desired
        wanted.append(desired)
    return history, wanted


@pytest.mark.parametrize(("in_flight", "servers"), [(0.0, 1), (4.0, 1), (20.0, 5), (21.0, 6)])
def test_each_server_has_the_target_in_flight(in_flight: float, servers: int) -> None:
    assert played(lambda _: in_flight, 600)[1][-1] == servers


def test_a_burst_is_answered_within_the_panic_window_and_kept_for_the_delay() -> None:
    _, wanted = played(lambda second: 40.0 if 300 <= second < 310 else 2.0, 800)

    assert max(wanted[:300]) == 1
    assert wanted[306] == 10
    assert min(wanted[306:420]) == 10
    assert wanted[-1] == 1


def test_what_is_no_panic_is_answered_by_the_stable_window() -> None:
    _, wanted = played(lambda second: 20.0 if second < 300 else 36.0, 400)

    assert wanted[299] == 5
    assert wanted[310] < 8
    assert wanted[360] == 9


def test_at_most_half_of_the_servers_that_are_ready_are_given_up_at_once() -> None:
    _, wanted = played(lambda second: 64.0 * (300 <= second < 310), 800)

    assert list(dict.fromkeys(wanted[310:])) == [16, 8, 4, 2, 1]


def test_without_servers_the_number_stays() -> None:
    history, wanted = played(lambda _: 20.0, 600)
    for second in range(300):
        history = observed(history, LoadSample(1600.0 + second, 0.0, 0.0, 0), POLICY.target)
        history, decision = decide(history, POLICY, 5)
        assert decision.desired == wanted[-1] == 5


@cases(
    ("minimum", "maximum", "in_flight", "wanted"),
    {
        "never below the minimum": (3, 20, 0.0, 3),
        "never above the maximum": (1, 5, 40.0, 5),
        "both may be equal": (2, 2, 40.0, 2),
    },
)
def test_the_bounds_hold(minimum: int, maximum: int, in_flight: float, wanted: int) -> None:
    policy = ScalingPolicy(minimum, maximum, ScalingTarget(concurrency=4.0))

    assert played(lambda _: in_flight, 120, policy)[1][-1] == wanted


def test_a_lower_maximum_is_obeyed_at_once() -> None:
    _, wanted = played(lambda _: 40.0, 2, ScalingPolicy(1, 3, ScalingTarget(concurrency=4.0)), start=10)

    assert wanted[0] == 3


def test_while_something_holds_none_is_given_up_but_more_are_taken() -> None:
    _, fewer = played(lambda _: 2.0, 600, start=8, hold=True)
    _, more = played(lambda _: 40.0, 60, start=2, hold=True)

    assert set(fewer) == {8}
    assert more[-1] > 8


def test_a_lower_maximum_is_obeyed_while_something_holds() -> None:
    _, wanted = played(lambda _: 2.0, 2, ScalingPolicy(1, 5, ScalingTarget(concurrency=4.0)), start=22, hold=True)

    assert wanted == [5, 5]


def test_a_gap_in_the_samples_shortens_no_delay() -> None:
    policy = ScalingPolicy(1, 50, ScalingTarget(concurrency=4.0), 300.0)
    history, before = played(lambda _: 80.0, 600, policy)
    _, after = played(lambda _: 8.0, 400, policy, history=history, start=before[-1], first_s=1600 + 31)

    assert before[-1] == 20
    assert set(after[:300]) == {before[-1]}
    assert after[-1] < 5


def test_a_restarted_operator_keeps_what_there_is_until_it_has_counted() -> None:
    _, wanted = played(lambda _: 0.0, int(STABLE_WINDOW_S) - 1, start=6)

    assert set(wanted) == {6}


@pytest.mark.parametrize("jump_s", [-3600, 7200])
def test_a_clock_that_is_set_begins_the_history_anew_and_changes_no_number(jump_s: int) -> None:
    history, before = played(lambda _: 20.0, 300)
    _, after = played(lambda _: 20.0, 10, history=history, start=before[-1], first_s=1300 + jump_s)

    assert set(after) == {before[-1]}


def test_a_second_look_within_a_second_counts_nothing_twice() -> None:
    history, _ = played(lambda _: 10.0, 60)

    assert observed(history, LoadSample(history.at_s, 100.0, 10.0, 3), POLICY.target) == history


def test_with_a_target_of_queue_time_servers_grow_until_queues_are_short() -> None:
    policy = ScalingPolicy(1, 30, ScalingTarget(queue_ms=20.0), 60.0)
    history, desired = LoadHistory(), 1
    for second in range(3000):
        # Two at a time: what is beyond waits, as in a queue that is long where servers are nearly busy.
        load = 20.0 / (2 * desired)
        waiting = 40.0 if load >= 1 else min(load**3 / (1 - load), 40.0)
        history = observed(history, LoadSample(1000.0 + second, 200.0, 20.0 + waiting, desired), policy.target)
        history, decision = decide(history, policy, desired)
        desired = decision.desired

    assert 10 < desired <= 20


@pytest.mark.parametrize(("concurrency", "queue_ms"), [(None, None), (1.0, 1.0), (0.0, None), (None, -1.0)])
def test_a_target_is_one_positive_number(concurrency: float | None, queue_ms: float | None) -> None:
    with pytest.raises(ValueError, match="exactly one target, above 0"):
        ScalingTarget(concurrency, queue_ms)


def told(at_s: float, arrived: int, in_flight: int = 0, epoch: str = "first", began_s: float = 900.0) -> GatewayLoad:
    return GatewayLoad(epoch, at_s, began_s, arrived, in_flight)


def sampled(*passes: dict[str, GatewayLoad | None]) -> list[LoadSample | None]:
    """Return what each of consecutive readings adds."""
    load, samples = PoolLoad(), list[LoadSample | None]()
    for gateways in passes:
        found = load_sample(load, gateways, 1)
        samples.append(found[1] if found is not None else None)
        if found is not None:
            load = replace(found[0], history=observed(found[0].history, found[1], POLICY.target))
    return samples


def test_requests_of_all_gateways_are_those_since_they_were_read_last() -> None:
    first = {"a": told(1000.0, 500, 3), "b": told(1000.0, 90, 1)}
    _, sample = sampled(first, {"a": told(1002.0, 520, 2), "b": told(1002.0, 94, 4)})

    assert sample == LoadSample(1002.0, pytest.approx(24.0), 6.0, 1)


def test_two_readings_at_the_same_time_lose_no_request() -> None:
    _, none, sample = sampled({"a": told(1000.0, 500)}, {"a": told(1000.0, 510)}, {"a": told(1001.0, 520)})

    assert none is None
    assert sample.arrived == pytest.approx(20.0)


def test_a_gateway_that_does_not_answer_counts_as_the_others_and_its_requests_are_spread_once_it_answers() -> None:
    both = {"a": told(1000.0, 0), "b": told(1000.0, 0)}
    one: dict[str, GatewayLoad | None] = {"a": told(1001.0, 10, 2), "b": None}
    again = {"a": told(1002.0, 20), "b": told(1002.0, 20)}
    _, missing, whole = sampled(both, one, again)

    assert missing == LoadSample(1001.0, pytest.approx(20.0), 4.0, 1)
    assert whole.arrived == pytest.approx(20.0)


def test_a_gateway_that_started_again_counts_from_its_start() -> None:
    restarted = {"a": told(1002.0, 30, epoch="second", began_s=1000.5)}
    _, sample = sampled({"a": told(1000.0, 900)}, restarted)

    assert sample.arrived == pytest.approx(40.0)


def test_a_gateway_that_was_not_ready_for_a_moment_has_not_counted_all_its_requests_since_then() -> None:
    both = {"a": told(1000.0, 90_000), "b": told(1000.0, 90_000)}
    one = {"a": told(1001.0, 90_010)}
    again = {"a": told(1002.0, 90_020), "b": told(1002.0, 90_010)}
    later = {"a": told(1003.0, 90_030), "b": told(1003.0, 90_020)}
    *_, back, whole = sampled(both, one, again, later)

    assert back.arrived == pytest.approx(10.0)
    assert whole.arrived == pytest.approx(20.0)


def test_a_gateway_that_has_just_started_counts_from_its_start() -> None:
    first = {"a": told(1000.0, 500)}
    _, sample = sampled(first, {"a": told(1002.0, 520), "new": told(1002.0, 10, began_s=1001.0)})

    assert sample.arrived == pytest.approx(20.0 + 20.0)


def test_gateways_that_say_nothing_are_no_sample() -> None:
    assert sampled({}, {"a": None}) == [None, None]
