"""Backoff as its delays, and `Retry-After` as servers write it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from segserve_common.backoff import Backoff, Repeats, RetryDelays, retry_after_s

NOON = datetime(2026, 11, 20, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        pytest.param("7", 7.0, id="seconds"),
        pytest.param("0.5", 0.5, id="half a second"),
        pytest.param("Fri, 20 Nov 2026 12:00:09 GMT", 9.0, id="a date"),
        pytest.param("Fri, 20 Nov 2026 14:00:09 +0200", 9.0, id="a date elsewhere"),
        pytest.param("Friday, 20-Nov-26 12:00:09 GMT", 9.0, id="a date of RFC 850"),
        pytest.param("Fri Nov 20 12:00:09 2026", 9.0, id="a date of C"),
        pytest.param("Fri, 20 Nov 2026 11:00:00 GMT", 0.0, id="a date that has passed"),
        pytest.param(None, None, id="nothing"),
        pytest.param("soon", None, id="a word"),
        pytest.param("-1", None, id="a negative number"),
        pytest.param("inf", None, id="for ever"),
        pytest.param("nan", None, id="no number"),
        pytest.param("Fri, 99 Nov 2026 12:00:00 GMT", None, id="no date"),
    ],
)
def test_both_forms_are_read_and_nothing_else(text: str | None, seconds: float | None) -> None:
    assert retry_after_s(text, NOON) == seconds


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_s=0.5, longest_s=3.0)

    assert [backoff.delay_s(failures) for failures in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(("drawn", "factor"), [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5)])
def test_jitter_multiplies_a_delay(drawn: float, factor: float) -> None:
    assert Backoff(first_s=2.0, jitter=(0.5, 1.5)).delay_s(1, lambda: drawn) == 2.0 * factor


def test_a_success_starts_with_the_shortest_delay_again() -> None:
    delays = RetryDelays(Backoff(first_s=1.0))

    assert [delays.next_s(), delays.next_s()] == [1.0, 2.0]
    delays.reset()
    assert delays.next_s() == 1.0


def repeated(seconds: float, wanted: Callable[[float], bool] = lambda _: True) -> list[float]:
    """Return when an action is done that is wanted at these times and has no effect."""
    repeats, times = Repeats[str](Backoff(first_s=1.0, longest_s=8.0)), []
    for now_s in (tenth / 10 for tenth in range(int(seconds * 10))):
        repeats.follow(("act",) if wanted(now_s) else (), now_s)
        if wanted(now_s) and repeats.is_due("act", now_s):
            times.append(now_s)
            repeats.record("act", now_s)
    return times


def test_an_action_without_effect_is_repeated_ever_more_seldom() -> None:
    assert repeated(40.0) == [0.0, 1.0, 3.0, 7.0, 15.0, 23.0, 31.0, 39.0]


def test_an_action_that_was_not_wanted_for_a_while_is_done_at_once() -> None:
    assert repeated(12.0, lambda now_s: now_s < 4.0 or now_s >= 9.0) == [0.0, 1.0, 3.0, 9.0, 10.0]


def test_an_action_that_is_wanted_now_and_then_is_done_as_seldom() -> None:
    assert len(repeated(60.0, lambda now_s: round(now_s * 10) % 2 == 0)) == len(repeated(60.0))


def test_an_action_with_another_content_is_another_one() -> None:
    repeats = Repeats[str](Backoff(first_s=1.0))
    repeats.record("act", 0.0, "one")

    assert not repeats.is_due("act", 0.5, "one")
    assert repeats.is_due("act", 0.5, "two")


def test_a_clock_that_is_set_back_does_not_stop_an_action() -> None:
    repeats = Repeats[str](Backoff(first_s=1.0))
    repeats.record("act", 1e9)

    assert not repeats.is_due("act", 10.0)
    assert repeats.is_due("act", 11.0)
