"""Copies are asked at most at their rate, and fewer where stable suffers."""

from __future__ import annotations

import pytest

from segserve_builder.comparator.service import FEW, FIRST_PER_S, SMALLEST_SHARE, Pacing


def admitted(pacing: Pacing, seconds: float, *, start_s: float = 0.0, per_s: int = 100) -> int:
    return sum(pacing.admits(start_s + number / per_s) for number in range(int(seconds * per_s)))


def learn(pacing: Pacing, times_s: float, count: int = FEW) -> None:
    for _ in range(count):
        pacing.learn(times_s)


def grown(requests_per_s: float) -> Pacing:
    """Return a pacing that admits its whole rate, of a stable that takes 100 ms."""
    pacing = Pacing(requests_per_s)
    while pacing.share < 1.0:
        learn(pacing, 0.1)
    return pacing


def test_the_rate_holds_over_time_whatever_comes() -> None:
    assert admitted(grown(5.0), 60) == 5 * 60
    assert admitted(grown(0.5), 60) == 0.5 * 60


def test_it_begins_with_few_until_it_knows_how_long_stable_takes() -> None:
    assert admitted(Pacing(64.0), 60) == FIRST_PER_S * 60
    assert admitted(Pacing(0.5), 60) == 0.5 * 60


def test_more_are_asked_as_long_as_stable_is_no_slower() -> None:
    pacing = Pacing(8.0)
    shares = []
    for _ in range(5):
        learn(pacing, 0.1)
        shares.append(pacing.share)

    assert shares == [1 / 4, 1 / 2, 1.0, 1.0, 1.0]


def test_what_was_not_asked_for_a_long_time_is_no_burst_later() -> None:
    pacing = grown(5.0)
    pacing.admits(0.0)

    assert sum(pacing.admits(1000.0) for _ in range(100)) == 5


@pytest.mark.parametrize("rate", [float("nan"), 0.0])
def test_a_rate_that_is_none_asks_nothing(rate: float) -> None:
    assert admitted(Pacing(rate), 10) <= 1


def test_fewer_are_asked_when_stable_becomes_slow() -> None:
    pacing = grown(10.0)
    learn(pacing, 0.2)

    assert pacing.share == 0.5
    assert admitted(pacing, 10, start_s=10) <= 52


def test_each_few_slow_pairs_halve_the_rate_down_to_a_trickle() -> None:
    pacing = grown(10.0)
    shares = []
    for _ in range(3):
        learn(pacing, 0.3)
        shares.append(pacing.share)
    for _ in range(20):
        pacing.slow_down()

    assert shares == [0.5, 0.25, 0.125]
    assert pacing.share == SMALLEST_SHARE


def test_a_stable_that_is_slow_without_copies_is_asked_as_often_again() -> None:
    pacing = grown(10.0)
    for _ in range(20):
        learn(pacing, 3.0)

    assert pacing.share == 1.0


def test_times_of_a_millisecond_are_no_cause() -> None:
    pacing = Pacing(10.0)
    for _ in range(5):
        learn(pacing, 0.001)
    learn(pacing, 0.004)

    assert pacing.share == 1.0


def test_the_rate_comes_back_as_stable_recovers() -> None:
    pacing = grown(10.0)
    pacing.slow_down()
    pacing.slow_down()
    shares = [(learn(pacing, 0.1), pacing.share)[1] for _ in range(3)]

    assert shares == [0.5, 1.0, 1.0]
