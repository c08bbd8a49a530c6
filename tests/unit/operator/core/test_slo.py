"""Whether a model keeps its SLO: what is counted in a minute, and what the last hour comes to in one word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.cases import cases
from fakes.observed_models import FIRST, NOW_S, SECOND, candidate, group, holder, model, world
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts
from segserve_operator.core.world.observed import Minute, ModelObserved, Roles, SloWatch
from segserve_operator.core.world.slo import (
    BREACHED,
    INTERVAL_S,
    MET,
    UNKNOWN,
    is_due,
    is_watched,
    measured,
    objectives,
    slo_of,
    slo_state,
    watches,
)

NOW = int(NOW_S // 60)
SLO = Slo(p95_milliseconds=200.0)
SERVED = Roles(holder(FIRST, "main"))


def minutes(*told: tuple[int, int, dict[str, int]]) -> tuple[Minute, ...]:
    """Return minutes, the oldest first, each by how long ago it was, its requests and those that broke a promise."""
    return tuple(Minute(NOW - ago, requests, broken) for ago, requests, broken in told)


def sample(at_s: float, tally: SeriesCounts, *, group_name: str = "main") -> Sample:
    return {"gateway": Counters("1", at_s, {Series(group_name, "http"): tally})}


def answered(*latencies: tuple[float, int], failed: int = 0, given_up: int = 0) -> SeriesCounts:
    """Return so many answers of each latency (ms), and those that failed or whose caller went away."""
    return SeriesCounts(sum(count for _, count in latencies) + failed + given_up, failed, given_up, latencies=latencies)


@cases(
    ("past", "expected"),
    {
        "nothing is known of a model that was never asked": ((), UNKNOWN),
        "nothing is known where no request came": (minutes((0, 0, {})), UNKNOWN),
        "what was an hour ago is forgotten": (minutes((60, 1000, {"error": 1000})), UNKNOWN),
        "what was within the hour, and not of late, is met": (minutes((59, 1000, {"error": 1000})), MET),
        "a promise that nobody saw broken is met": (minutes((0, 1000, {})), MET),
        "nine bad requests breach nothing, however few came": (minutes((0, 9, {"error": 9})), MET),
        "ten bad requests of ten are a breach": (minutes((0, 10, {"error": 10})), BREACHED),
        "as many errors as are allowed are no breach": (minutes((0, 1000, {"error": 10})), MET),
        "one more error than is allowed is a breach": (minutes((0, 1000, {"error": 11})), BREACHED),
        "as many slow requests as are allowed are no breach": (minutes((0, 1000, {"p95": 50})), MET),
        "one more slow request than is allowed is a breach": (minutes((0, 1000, {"p95": 51})), BREACHED),
        "promises are not added up": (minutes((0, 1000, {"error": 10, "p95": 50})), MET),
        "what is not promised is not broken": (minutes((0, 1000, {"p50": 900})), MET),
        "what is over is no breach any more": (minutes((30, 1000, {"error": 500}), (0, 100, {})), MET),
        "what began just now is no breach yet": (minutes((30, 100_000, {}), (0, 100, {"error": 50})), MET),
        "one promise is enough": (minutes((30, 1000, {"p95": 500}), (0, 1000, {"error": 500})), BREACHED),
        "a promise broken an hour long and kept of late is met": (
            minutes((30, 1000, {"p95": 500}), (0, 1000, {"error": 10, "p95": 50})),
            MET,
        ),
        "of late are the last five minutes": (minutes((4, 100, {"error": 50}), (0, 1, {})), BREACHED),
        "five minutes ago is not of late": (minutes((5, 100, {"error": 50}), (0, 1, {})), MET),
        "a few errors in each minute add up": (
            minutes(*((ago, 100, {"error": 2}) for ago in (4, 3, 2, 1, 0))),
            BREACHED,
        ),
    },
)
def test_a_promise_is_breached_where_it_is_broken_of_late_and_over_the_hour(
    past: tuple[Minute, ...], expected: str
) -> None:
    assert slo_state(SloWatch("main", minutes=past), SLO, NOW_S) == expected


@cases(
    ("slo", "expected"),
    {
        "unless told otherwise one request in a hundred may fail": (Slo(), {"error": 0.01}),
        "the share of errors is the SLO's": (Slo(error_percent=5.0), {"error": 0.05}),
        "each percentile lets the rest be slower": (
            Slo(p50_milliseconds=50.0, p95_milliseconds=200.0, p99_milliseconds=500.0),
            {"error": 0.01, "p50": 0.5, "p95": 0.05, "p99": 0.01},
        ),
    },
)
def test_an_slo_promises_shares_of_requests(slo: Slo, expected: dict[str, float]) -> None:
    assert objectives(slo) == pytest.approx(expected)


@cases(
    ("coins", "watched"),
    {
        "requests of a model with an SLO are counted": (model(FIRST, SERVED, slo=Slo()), True),
        "a policy alone has none counted": (model(FIRST, SERVED, policy=RolloutPolicy()), False),
        "nobody else's requests are counted": (model(FIRST, SERVED), False),
        "requests of a model whose spec cannot be read are not counted": (model(None, SERVED), False),
    },
)
def test_requests_are_counted_without_a_rollout(coins: ModelObserved, *, watched: bool) -> None:
    assert is_watched(coins) is watched


def test_the_slo_is_the_specs() -> None:
    assert slo_of(model(FIRST, slo=SLO)) == SLO
    assert slo_of(model(FIRST)) is None
    assert slo_of(model(None)) is None


@cases(
    ("measured_s", "due"),
    {
        "what was never looked at is due": (float("-inf"), True),
        "what was looked at long enough ago is due": (NOW_S - INTERVAL_S, True),
        "what was looked at just now is not due": (NOW_S - INTERVAL_S + 1, False),
        "what was looked at in the future is due: the clock was put back": (NOW_S + 3600, True),
    },
)
def test_gateways_are_asked_now_and_then(measured_s: float, *, due: bool) -> None:
    assert is_due(measured_s, NOW_S) is due


@cases(
    ("before", "after", "expected"),
    {
        "fast answers are good": (answered((20.0, 10)), answered((20.0, 30)), Minute(NOW, 20, {"error": 0, "p95": 0})),
        "failed requests are errors and not slow": (
            answered((20.0, 10)),
            answered((20.0, 30), failed=3),
            Minute(NOW, 23, {"error": 3, "p95": 0}),
        ),
        "answers that take as long as the promise, or longer, are slow": (
            answered((150.0, 10), (200.0, 10), (220.0, 10)),
            answered((150.0, 15), (200.0, 13), (220.0, 11)),
            Minute(NOW, 9, {"error": 0, "p95": 4}),
        ),
        "requests that their callers gave up are slow": (
            answered((20.0, 10)),
            answered((20.0, 10), given_up=2),
            Minute(NOW, 2, {"error": 0, "p95": 2}),
        ),
        "counts that have fallen began at zero": (
            answered((20.0, 10)),
            answered((20.0, 4)),
            Minute(NOW, 4, {"error": 0, "p95": 0}),
        ),
    },
)
def test_a_minute_counts_what_came_since_the_last_look(
    before: SeriesCounts, after: SeriesCounts, expected: Minute
) -> None:
    watch = SloWatch("main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, before))
    found = measured(watch, sample(NOW_S, after), "main", SLO, NOW_S)

    assert found.minutes == (expected,)
    assert found.measured_s == NOW_S


def test_a_minute_is_slow_from_a_limit_between_two_bins_on() -> None:
    """The bin of 200 to 220 ms is kept by a promise of 210 ms: only what is surely later breaks it."""
    watch = SloWatch("main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, answered()))
    after = sample(NOW_S, answered((200.0, 3), (220.0, 2)))

    assert measured(watch, after, "main", Slo(p95_milliseconds=210.0), NOW_S).minutes[0].broken["p95"] == 2


@cases(
    ("known", "expected"),
    {
        "a first minute is kept": ((), [(0, 5)]),
        "a new minute comes after the others": (minutes((1, 100, {})), [(1, 100), (0, 5)]),
        "looks of the same minute are added up": (minutes((0, 100, {})), [(0, 105)]),
        "a minute of an hour ago leaves": (minutes((60, 7, {}), (59, 8, {})), [(59, 8), (0, 5)]),
        "a minute to come leaves: the clock was put back": (minutes((1, 8, {}), (-30, 9, {})), [(1, 8), (0, 5)]),
    },
)
def test_a_watch_keeps_the_minutes_of_an_hour(known: tuple[Minute, ...], expected: list[tuple[int, int]]) -> None:
    watch = SloWatch("main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, answered((20.0, 10))), minutes=known)
    found = measured(watch, sample(NOW_S, answered((20.0, 15))), "main", SLO, NOW_S)

    assert [(NOW - minute.minute, minute.requests) for minute in found.minutes] == expected


def test_broken_promises_of_one_minute_are_added_up() -> None:
    known = minutes((0, 100, {"error": 4}))
    watch = SloWatch("main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, answered((20.0, 10))), minutes=known)
    found = measured(watch, sample(NOW_S, answered((20.0, 15), (300.0, 2), failed=3)), "main", SLO, NOW_S)

    assert found.minutes == (Minute(NOW, 110, {"error": 7, "p95": 2}),)


def test_what_gateways_had_counted_before_the_first_look_is_no_minute() -> None:
    found = measured(SloWatch(), sample(NOW_S, answered((20.0, 1000))), "main", SLO, NOW_S)

    assert (found.group, found.measured_s, found.minutes) == ("main", NOW_S, ())


def test_a_watch_begins_anew_with_another_group() -> None:
    watch = SloWatch(
        "main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, answered((20.0, 10))), minutes=minutes((1, 100, {}))
    )
    found = measured(watch, sample(NOW_S, answered((20.0, 15)), group_name="new"), "new", SLO, NOW_S)

    assert (found.group, found.minutes) == ("new", ())


KNOWN = SloWatch("main", NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, answered((20.0, 10))))
NEWS = {"coins": sample(NOW_S, answered((20.0, 15)))}


@cases(
    ("coins", "known", "samples", "expected"),
    {
        "what is due is looked at": (model(FIRST, SERVED, slo=SLO), KNOWN, NEWS, 5),
        "a first look is the beginning": (model(FIRST, SERVED, slo=SLO), None, NEWS, 0),
        "gateways that do not answer change nothing": (model(FIRST, SERVED, slo=SLO), KNOWN, {}, 0),
        "gateways that are gone change nothing": (model(FIRST, SERVED, slo=SLO), KNOWN, {"coins": {}}, 0),
        "what is not due stays as it is": (
            model(FIRST, SERVED, slo=SLO),
            replace(KNOWN, measured_s=NOW_S - 1),
            NEWS,
            0,
        ),
        "a model that promises nothing is not watched": (model(FIRST, SERVED), KNOWN, NEWS, None),
        "a model that nobody can call is not watched": (
            model(SECOND, Roles(candidate=candidate(SECOND, "main")), slo=SLO),
            KNOWN,
            NEWS,
            None,
        ),
    },
)
def test_models_with_an_slo_are_watched(
    coins: ModelObserved, known: SloWatch | None, samples: dict[str, Sample], expected: int | None
) -> None:
    seen = world(
        coins, groups=[group("main", FIRST)], samples=samples, watches={"coins": known} if known is not None else {}
    )
    found = watches(seen.models, seen)

    assert {name: sum(minute.requests for minute in watch.minutes) for name, watch in found.items()} == (
        {"coins": expected} if expected is not None else {}
    )


def test_what_is_counted_for_the_slo_is_the_past_that_bets_use_and_another_group_begins_it_anew() -> None:
    watch = SloWatch("main", NOW_S)
    for number in range(1, 81):
        at_s = NOW_S + number * INTERVAL_S
        watch = measured(watch, sample(at_s, answered((60.0, 100 * number))), "main", SLO, at_s)

    assert watch.past.errors.enough
    assert watch.past.latencies.enough
    moved = measured(watch, sample(NOW_S + 2000, answered((60.0, 1)), group_name="own"), "own", SLO, NOW_S + 2000)
    assert not moved.past.errors.enough
