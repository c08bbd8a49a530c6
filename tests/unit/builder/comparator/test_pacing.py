"""Copies are asked at most at their rate, and fewer where stable suffers."""

from __future__ import annotations

from segserve_builder.comparator.pacing import FEW, KNOWN, MANY, RECOVERY_S, SMALLEST_SHARE, Pacing


def admitted(pacing: Pacing, seconds: float, *, start_s: float = 0.0, per_s: int = 100) -> int:
    return sum(pacing.admits(start_s + number / per_s) for number in range(int(seconds * per_s)))


def test_the_rate_holds_over_time_whatever_comes() -> None:
    assert admitted(Pacing(5.0), 60) == 5 * 60
    assert admitted(Pacing(0.5), 60) == 0.5 * 60


def test_what_was_not_asked_for_a_long_time_is_no_burst_later() -> None:
    pacing = Pacing(5.0)
    pacing.admits(0.0)

    assert sum(pacing.admits(1000.0) for _ in range(100)) == 5


def test_a_rate_that_is_no_number_asks_nothing() -> None:
    assert admitted(Pacing(float("nan")), 10) <= 1


def learn(pacing: Pacing, times_s: float, count: int) -> None:
    for _ in range(count):
        pacing.learn(times_s)


def test_fewer_are_asked_when_stable_becomes_slow() -> None:
    pacing = Pacing(10.0)
    learn(pacing, 0.1, KNOWN)
    learn(pacing, 0.3, FEW)

    assert pacing.share < 1.0
    assert admitted(pacing, 1) < 10


def test_each_few_slow_pairs_halve_the_rate_down_to_a_trickle() -> None:
    pacing = Pacing(10.0)
    learn(pacing, 0.1, MANY)
    shares = []
    for _ in range(4):
        learn(pacing, 0.3, FEW)
        shares.append(pacing.share)
    for _ in range(20):
        pacing.slow_down()

    assert shares[:3] == [0.5, 0.25, 0.125]
    assert pacing.share == SMALLEST_SHARE


def test_a_stable_that_is_slow_as_ever_is_asked_as_often() -> None:
    pacing = Pacing(10.0)
    learn(pacing, 3.0, 300)

    assert pacing.share == 1.0


def test_times_of_a_millisecond_are_no_cause() -> None:
    pacing = Pacing(10.0)
    learn(pacing, 0.001, KNOWN)
    learn(pacing, 0.004, FEW)

    assert pacing.share == 1.0


def test_the_rate_comes_back_slowly() -> None:
    pacing = Pacing(10.0)
    pacing.admits(0.0)
    pacing.slow_down()
    pacing.slow_down()
    shares = [(pacing.admits(at_s), pacing.share)[1] for at_s in (0.0, RECOVERY_S, 2 * RECOVERY_S, 9 * RECOVERY_S)]

    assert shares == [0.25, 0.5, 1.0, 1.0]
