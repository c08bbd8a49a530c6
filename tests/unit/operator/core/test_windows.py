"""What lies between two samples: resets, gaps, gateways that come and go, and requests that hang."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.rollout.counters import Counters, HungRequests, Sample, Series, SeriesCounts
from segserve_operator.core.rollout.plain import from_plain, to_plain
from segserve_operator.core.rollout.windows import WindowResult, window_between

STABLE, CANDIDATE = Series("main", "http"), Series("coins-new", "http")
T = 1_000_000.0


def count(
    at_s: float, stable: SeriesCounts, candidate: SeriesCounts | None = None, *, epoch: str = "1", began_s: float = 0.0
) -> Counters:
    return Counters(epoch, T + at_s, {STABLE: stable, CANDIDATE: candidate or SeriesCounts()}, T + began_s)


def window(before: Sample, after: Sample, hung: HungRequests | None = None, slow_after_s: float = 5.0) -> WindowResult:
    return window_between(before, after, "main", "coins-new", hung=hung, slow_after_s=slow_after_s)


def answered(requests: int, active: int = 0, given_up: int = 0) -> SeriesCounts:
    """Requests of 100 ms each, but for those given up."""
    return SeriesCounts(requests + given_up, 0, given_up, active, ((100.0, requests),) if requests else ())


def bin_of(latency_ms: float) -> int:
    return int(np.searchsorted(EDGES_MS, latency_ms, side="right"))


def test_a_look_is_what_was_counted_between_two_samples() -> None:
    before = {"a": count(0, SeriesCounts(10, 1, 0, 0, ((100.0, 9),)))}
    after = {"a": count(2, SeriesCounts(15, 3, 0, 0, ((100.0, 11), (250.0, 1))), SeriesCounts(4, 0, 1, 2, ((0.0, 3),)))}

    found = window(before, after).window

    assert found.seconds == 2
    assert found.requests.tolist() == [5, 4]
    assert found.errors.tolist() == [2, 0]
    assert found.latencies[0, bin_of(100)] == 2
    assert found.latencies[0, bin_of(250)] == 1
    assert found.latencies[1, 0] == 3
    assert found.latencies[1, -1] == 1  # given up
    assert found.latencies.sum() == 7


def test_protocols_and_gateways_are_added_up() -> None:
    grpc = Series("main", "grpc")
    before = {"a": count(0, SeriesCounts(10)), "b": Counters("1", T, {grpc: SeriesCounts(5)})}
    after = {
        "a": count(1, SeriesCounts(11)),
        "b": Counters("1", T + 1, {grpc: SeriesCounts(7), STABLE: SeriesCounts(3)}),
    }

    assert window(before, after).window.requests.tolist() == [6, 0]


def test_a_first_sample_is_a_baseline_and_no_look() -> None:
    found = window({}, {"a": count(0, answered(1000))})

    assert found.window.requests.sum() == 0
    assert found.window.seconds == 0
    assert found.seen["a"].by_series[STABLE].attempts == 1000


def test_a_gateway_that_has_started_again_counts_from_zero() -> None:
    found = window({"a": count(0, answered(1000))}, {"a": count(5, answered(30), epoch="2", began_s=1)})

    assert found.window.requests.tolist() == [30, 0]


def test_counts_that_have_fallen_began_at_zero() -> None:
    """A cluster that was removed and added again."""
    found = window({"a": count(0, answered(5), answered(1000))}, {"a": count(5, answered(6), answered(30))})

    assert found.window.requests.tolist() == [1, 30]


def test_of_a_gateway_that_joins_all_is_new_where_it_has_started_since() -> None:
    before = {"a": count(0, answered(10))}
    young, old = count(1, answered(3), epoch="9", began_s=0.5), count(1, answered(500), epoch="9", began_s=-100)

    assert window(before, {"a": count(1, answered(10)), "b": young}).window.requests.tolist() == [3, 0]
    assert window(before, {"a": count(1, answered(10)), "b": old}).window.requests.tolist() == [0, 0]


def test_a_gateway_that_does_not_answer_for_a_while_loses_nothing() -> None:
    first = {"a": count(0, answered(10)), "b": count(0, answered(100))}
    gap = window(first, {"a": count(1, answered(12))})
    back = window(gap.seen, {"a": count(60, answered(13)), "b": count(60, answered(150))}, gap.hung)

    assert gap.window.requests.tolist() == [2, 0]
    assert back.window.requests.tolist() == [51, 0]
    assert back.window.seconds == 60


def test_a_gateway_that_never_comes_back_is_forgotten() -> None:
    first = {"a": count(0, answered(10)), "b": count(0, answered(100))}

    assert set(window(first, {"a": count(4000, answered(12))}).seen) == {"a"}


def test_a_clock_that_steps_back_makes_no_negative_time() -> None:
    assert window({"a": count(0, answered(10))}, {"a": count(-500, answered(12))}).window.seconds == 0


def watched(samples: list[Counters], slow_after_s: float = 5.0) -> list[WindowResult]:
    """Return the looks between samples of one gateway."""
    seen, hung, windows = {"a": samples[0]}, window({}, {"a": samples[0]}).hung, []
    for each in samples[1:]:
        windows.append(window(seen, {"a": each}, hung, slow_after_s))
        seen, hung = dict(windows[-1].seen), from_plain(HungRequests(), to_plain(windows[-1].hung))
    return windows


def slow(windows: list[WindowResult]) -> list[float]:
    """Return how many of the candidate's are in the last bin, by look."""
    return [float(each.window.latencies[1, -1]) for each in windows]


def test_requests_that_hang_are_slow_before_they_end_and_only_once() -> None:
    hanging = [count(at_s, SeriesCounts(), answered(10, active=4)) for at_s in range(8)]
    ended = count(8, SeriesCounts(), answered(10, given_up=4))

    windows = watched([*hanging, ended, replace(ended, at_s=T + 9)])

    assert slow(windows) == [0, 0, 0, 0, 4, 0, 0, 0, 0]
    assert [each.window.requests[1] for each in windows] == [0, 0, 0, 0, 0, 0, 0, 4, 0]


@pytest.mark.parametrize(("waited_ms", "expected"), [(80, 1), (400_000, 4)])
def test_callers_who_leave_are_as_slow_as_they_have_waited_and_no_slower(waited_ms: int, expected: int) -> None:
    """Nobody makes a revision slow by leaving at once; one that keeps callers waiting until they leave is slow."""
    left = SeriesCounts(14, 0, 4, 0, ((100.0, 10),), left=3, waited_ms=waited_ms)

    (look,) = watched([count(0, SeriesCounts(), SeriesCounts()), count(1, SeriesCounts(), left)])

    assert slow([look]) == [expected]  # one timed out
    assert look.window.latencies[1].sum() == 14


def test_a_request_that_hung_and_was_answered_after_all_is_not_slow_twice() -> None:
    """Its latency is known a second after its end."""
    hanging = [count(at_s, SeriesCounts(), answered(10, active=1)) for at_s in range(8)]
    ended = count(8, SeriesCounts(), SeriesCounts(11, 0, 0, 0, ((100.0, 10),)))
    known = count(9, SeriesCounts(), SeriesCounts(11, 0, 0, 0, ((100.0, 10), (7900.0, 1))))

    windows = watched([*hanging, ended, known])

    assert sum(each.window.latencies[1].sum() for each in windows) == 1
    assert slow(windows)[4] == 1


def test_requests_that_hang_and_end_without_a_latency_do_not_hide_later_ones() -> None:
    hanging = [count(at_s, SeriesCounts(), answered(0, active=3)) for at_s in range(8)]
    died = [count(at_s, SeriesCounts(), SeriesCounts(3, 3)) for at_s in range(8, 14)]
    again = [count(at_s, SeriesCounts(), SeriesCounts(3, 3, 0, 2)) for at_s in range(14, 22)]

    assert sum(slow(watched([*hanging, *died, *again]))) == 5


def test_a_busy_group_has_no_request_that_hangs() -> None:
    busy = [count(at_s, SeriesCounts(), answered(100 * at_s, active=50)) for at_s in range(30)]

    assert sum(slow(watched(busy))) == 0


def test_a_restart_forgets_what_was_under_way() -> None:
    hanging = [count(at_s, SeriesCounts(), answered(10, active=4)) for at_s in range(4)]
    new = [count(at_s, SeriesCounts(), answered(0, active=2), epoch="2", began_s=4) for at_s in range(4, 8)]

    assert sum(slow(watched([*hanging, *new]))) == 0


def test_what_is_kept_of_requests_under_way_is_bounded() -> None:
    windows = watched([count(at / 10, SeriesCounts(), answered(at, active=4)) for at in range(600)])

    assert max(len(waiting.moments) for each in windows for _, waiting in each.hung.gateways) <= 20


TALLIES = st.builds(
    lambda ok, failed, given_up, active, latency: SeriesCounts(
        ok + failed + given_up, failed, given_up, active, ((latency, ok),) if ok else ()
    ),
    *(st.integers(0, 50) for _ in range(4)),
    st.sampled_from([0.0, 1.1, 99.0, 5000.0, 60_000.0, 250_000.0]),
)
COUNTS = st.builds(count, st.floats(0, 1e4), TALLIES, TALLIES, epoch=st.sampled_from("12"), began_s=st.floats(0, 1e4))
SAMPLES = st.lists(st.dictionaries(st.sampled_from("abc"), COUNTS), max_size=8)


@given(SAMPLES)
def test_whatever_gateways_say_no_look_is_negative_and_none_has_more_errors_than_requests(
    samples: list[Sample],
) -> None:
    seen: Sample = {}
    hung = HungRequests()
    for sample in samples:
        found = window(seen, sample, hung)
        seen, hung = found.seen, found.hung
        assert found.window.seconds >= 0
        assert (found.window.requests >= found.window.errors).all()
        assert (found.window.errors >= 0).all()
        assert (found.window.latencies >= 0).all()


STEPS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 5), st.integers(0, 5), st.booleans(), st.booleans()), max_size=30
)


@given(STEPS)
def test_every_attempt_is_in_exactly_one_look_whatever_is_missed_or_started_again(
    steps: list[tuple[int, int, int, bool, bool]],
) -> None:
    """Counts of an epoch that was not asked before its end are lost with the gateway: here each is asked."""
    tally, epoch, told = SeriesCounts(), 0, 0
    seen, hung, total, errors, latencies = {"a": count(0, SeriesCounts())}, HungRequests(), 0.0, 0.0, 0.0
    for at, (ok, failed, given_up, restarts, answers) in enumerate(steps, 1):
        bins = ((120.0, dict(tally.latencies).get(120.0, 0) + ok),)
        tally = SeriesCounts(
            tally.attempts + ok + failed + given_up, tally.failed + failed, tally.given_up + given_up, 0, bins
        )
        told += ok + failed + given_up
        last = at == len(steps)
        if answers or restarts or last:
            found = window(seen, {"a": count(at, tally, epoch=str(epoch), began_s=at)}, hung)
            seen, hung = dict(found.seen), found.hung
            total += found.window.requests[0]
            errors += found.window.errors[0]
            latencies += found.window.latencies[0].sum()
        if restarts:
            tally, epoch = SeriesCounts(), epoch + 1

    assert total == told
    assert errors == sum(failed for _, failed, *_ in steps)
    assert latencies == sum(ok + given_up for ok, _, given_up, *_ in steps)
