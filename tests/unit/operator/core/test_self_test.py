"""Stable against itself: when the halves are compared, and when a breach counts as a false alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.observed_models import FAILURE, FIRST, NOW_S, SECOND, candidate, group, holder, model, state, world
from segserve_operator.api.rollout_policy import ErrorRateGate, LatencyGate, RolloutPolicy, Slo
from segserve_operator.core.advance import self_test
from segserve_operator.core.advance.self_test import ROUND_S, self_tests
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.traffic import shadow_of
from segserve_operator.core.world.observed import ModelObserved, Roles, SelfTest
from segserve_operator.core.world.slo import INTERVAL_S

POLICY = RolloutPolicy(self_test=True, gates=(ErrorRateGate(),))
SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
CHANGED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
COINS = model(FIRST, SERVED, policy=POLICY, slo=Slo())


def sample(at_s: float, halves: tuple[SeriesCounts, SeriesCounts], name: str = "main") -> Sample:
    """Return what one gateway has counted of both halves of a group."""
    return {
        "gateway": Counters("1", at_s, {Series(name, "http"): halves[0], Series(shadow_of(name), "http"): halves[1]})
    }


def answered(requests: int, failed: int = 0) -> SeriesCounts:
    return SeriesCounts(requests, failed, latencies=((20.0, requests - failed),))


def after(
    windows: list[tuple[SeriesCounts, SeriesCounts]], known: SelfTest | None = None, coins: ModelObserved = COINS
) -> SelfTest:
    """Return the test after one look each at these counts, as often as the gateways are asked."""
    found = known or SelfTest("main", NOW_S)
    for number, halves in enumerate(windows, start=1):
        now_s = NOW_S + number * INTERVAL_S
        seen = world(coins, now_s=now_s, samples={"coins": sample(now_s, halves)}, self_tests={"coins": found})
        found = self_tests(seen.models, seen)["coins"]
    return found


@pytest.mark.parametrize(
    ("coins", "expected"),
    [
        pytest.param(COINS, True, id="a stable revision is compared where its policy asks for it"),
        pytest.param(
            model(FIRST, SERVED, policy=RolloutPolicy()),
            False,
            id="a policy that does not ask for it has none compared",
        ),
        pytest.param(model(FIRST, SERVED), False, id="a model without a policy is not compared"),
        pytest.param(model(None, SERVED), False, id="a model whose spec cannot be read is not compared"),
        pytest.param(model(SECOND, CHANGING, policy=POLICY), False, id="a model with a candidate is not compared"),
        pytest.param(
            model(SECOND, Roles(holder(FIRST, "main"), candidate(SECOND, failure=FAILURE)), policy=POLICY),
            False,
            id="a model whose candidate has failed is not compared",
        ),
        *(
            pytest.param(
                model(SECOND, CHANGED, policy=POLICY, rollout=state(SECOND, phase)),
                phase in ENDED,
                id=f"a model whose rollout is {phase.label} is {'compared' if phase in ENDED else 'not compared'}",
            )
            for phase in Phase
        ),
    ],
)
def test_a_model_is_compared_with_itself_where_no_rollout_needs_its_requests(
    coins: ModelObserved, *, expected: bool
) -> None:
    assert self_test.tests_itself(coins) is expected


KNOWN = SelfTest("main", NOW_S - 100, NOW_S - INTERVAL_S, sample(NOW_S - INTERVAL_S, (answered(10), answered(10))))
NEWS = {"coins": sample(NOW_S, (answered(30), answered(30)))}


@pytest.mark.parametrize(
    ("coins", "known", "samples", "measured_s"),
    [
        pytest.param(COINS, KNOWN, NEWS, NOW_S, id="what is due is looked at"),
        pytest.param(COINS, None, NEWS, NOW_S, id="what was never looked at is looked at"),
        pytest.param(
            model(FIRST, SERVED, policy=POLICY), KNOWN, NEWS, NOW_S, id="a model without an SLO is looked at too"
        ),
        pytest.param(COINS, KNOWN, {}, KNOWN.measured_s, id="gateways that do not answer change nothing"),
        pytest.param(
            COINS,
            replace(KNOWN, measured_s=NOW_S - 1),
            NEWS,
            NOW_S - 1,
            id="what was looked at just now stays as it is",
        ),
        pytest.param(model(FIRST, SERVED), KNOWN, NEWS, None, id="what is not asked for is not looked at"),
        pytest.param(
            model(FIRST, Roles(), policy=POLICY),
            KNOWN,
            NEWS,
            None,
            id="a model without a stable revision is not looked at",
        ),
    ],
)
def test_halves_are_looked_at_now_and_then(
    coins: ModelObserved, known: SelfTest | None, samples: dict[str, Sample], measured_s: float | None
) -> None:
    seen = world(
        coins,
        groups=[group("main", FIRST)],
        samples=samples,
        self_tests={"coins": known} if known is not None else {},
    )
    found = self_tests(seen.models, seen)

    assert {name: each.measured_s for name, each in found.items()} == (
        {"coins": measured_s} if measured_s is not None else {}
    )


def test_what_gateways_had_counted_before_the_first_look_is_no_evidence() -> None:
    found = after([(answered(1000), answered(1000, failed=1000))])

    assert (found.rounds, found.false_alarms) == (0, 0)
    assert found.seen


def test_halves_that_are_alike_raise_no_alarm() -> None:
    found = after(
        [(answered(100 * window, failed=window), answered(100 * window, failed=window)) for window in range(1, 60)]
    )

    assert (found.rounds, found.false_alarms) == (0, 0)
    assert found.gates


def test_a_half_that_is_proved_worse_than_the_other_is_a_false_alarm_and_the_next_round_begins() -> None:
    windows = [(answered(100 * window), answered(100 * window, failed=50 * window)) for window in range(1, 60)]
    found = SelfTest("main", NOW_S)
    for upto in range(1, len(windows) + 1):
        found = after(windows[:upto])
        if found.rounds:
            break

    assert (found.rounds, found.false_alarms) == (1, 1)
    assert found.gates == {}
    assert found.began_s == found.measured_s


@pytest.mark.parametrize(
    ("began_s", "rounds"),
    [
        pytest.param(NOW_S - ROUND_S + INTERVAL_S, 0, id="a round goes on until its time is over"),
        pytest.param(NOW_S - ROUND_S, 1, id="a round ends when its time is over"),
        pytest.param(NOW_S + ROUND_S, 1, id="a round ends where the clock was put back"),
    ],
)
def test_a_round_without_an_alarm(began_s: float, rounds: int) -> None:
    seen = world(COINS, samples=NEWS, self_tests={"coins": replace(KNOWN, began_s=began_s)})
    found = self_tests(seen.models, seen)["coins"]

    assert (found.rounds, found.false_alarms) == (rounds, 0)
    assert bool(found.gates) is not bool(rounds)
    assert found.began_s == (NOW_S if rounds else began_s)


def test_another_group_begins_a_round_anew_and_former_rounds_still_count() -> None:
    known = replace(KNOWN, group="former", rounds=7, false_alarms=1)
    seen = world(COINS, samples=NEWS, self_tests={"coins": known})
    found = self_tests(seen.models, seen)["coins"]

    assert (found.group, found.began_s) == ("main", NOW_S)
    assert (found.rounds, found.false_alarms) == (7, 1)


def test_failures_that_come_in_bursts_are_told_by_their_dispersion() -> None:
    """The same failures, evenly or in bursts; both halves alike."""
    even = [answered(100 * window, failed=2 * window) for window in range(1, 41)]
    bursts = [answered(100 * window, failed=20 * (window // 10)) for window in range(1, 41)]

    assert after([(each, each) for each in even]).dispersion < after([(each, each) for each in bursts]).dispersion


@pytest.mark.parametrize(
    "gates",
    [pytest.param((), id="no gate judges"), pytest.param((LatencyGate(),), id="the gate judges latencies alone")],
)
def test_dispersion_is_one_where_errors_are_not_judged(gates: tuple[LatencyGate, ...]) -> None:
    coins = model(FIRST, SERVED, policy=RolloutPolicy(self_test=True, gates=gates))
    windows = [(answered(100 * window, failed=50 * (window // 5)),) * 2 for window in range(1, 20)]

    assert after(windows, coins=coins).dispersion == 1.0


@pytest.mark.parametrize(
    ("rounds", "alarms", "text"),
    [
        pytest.param(0, 0, "", id="nothing is told before a round has ended"),
        pytest.param(24, 0, "0 of 24 (0 %, at most 14 %)", id="a day without an alarm leaves much possible"),
        pytest.param(1000, 10, "10 of 1000 (1 %, at most 1.8 %)", id="six weeks at one in a hundred"),
    ],
)
def test_the_empirical_rate_of_false_alarms_is_told_with_what_it_may_be(rounds: int, alarms: int, text: str) -> None:
    assert self_test.false_alarm_text(SelfTest("main", rounds=rounds, false_alarms=alarms)) == text


def test_a_status_tells_the_false_alarms_of_a_model_that_is_compared_with_itself() -> None:
    known = replace(KNOWN, rounds=24)
    for coins, told in ((COINS, "0 of 24 (0 %, at most 14 %)"), (model(FIRST, SERVED, slo=Slo()), "")):
        seen = world(coins, groups=[group("main", FIRST)], samples=NEWS, self_tests={"coins": known})
        assert desired_state(seen).statuses["coins"].false_alarms == told
