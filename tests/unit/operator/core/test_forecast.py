"""The outlook of a rollout: what it waits for, and when it is likely to be past it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from functools import cache
from itertools import count, islice
from typing import Any

import numpy as np
import pytest

from fakes.cases import cases
from segserve_operator.api.rollout_policy import RolloutPolicy, RolloutStep, Slo, WebhookGate
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.decisions import DecisionInput, decide
from segserve_operator.core.rollout.engine import Progress, Signals, Wait
from segserve_operator.core.rollout.forecast import Forecast, forecast, present, recent, requests_per_second
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, Row

POLICY = RolloutPolicy()


def course(rate: float, policy: RolloutPolicy = POLICY, *, seed: int = 1) -> Iterator[Record]:
    """Yield the record of a rollout after each second of `rate` requests per second."""
    random, record = np.random.default_rng(seed), Record("coins-1", "coins", "old", "new", policy, Slo(), begun())
    for now_s in count(1):
        weight = record.decisions[-1].weight if record.decisions else 0
        requests = random.poisson([rate * (1 - weight / 100), rate * weight / 100])
        latencies = np.zeros((2, len(EDGES_MS) + 1))
        for role, answered in enumerate(requests):
            taken_ms = np.exp(random.normal(np.log(100.0), 0.5, answered))
            np.add.at(latencies[role], np.searchsorted(EDGES_MS, taken_ms, side="right"), 1)
        errors = random.binomial(requests, 0.001)
        window = EvidenceWindow(np.array(1.0), requests.astype(float), errors.astype(float), latencies)
        record = decide(record, DecisionInput(float(now_s), Signals(ready=now_s > 30), window)).record
        yield record


@cache
def followed(seconds: int, rate: float, policy: RolloutPolicy = POLICY) -> Record:
    """Return the record after that many seconds."""
    return next(islice(course(rate, policy), seconds - 1, None))


def begun() -> Progress:
    return Progress.begun(0.0)


def of(record: Record, **changes: Any) -> Forecast:
    return forecast(replace(record, **changes), (), record.rows[-1].at_s if record.rows else 0.0)


@pytest.mark.parametrize("rate", [3.0, 60.0])
def test_a_healthy_rollout_gets_there_about_when_it_was_forecast(rate: float) -> None:
    forecasts, waits = [], []
    for seed in range(4):
        records = islice(course(rate, seed=seed), 69, None)
        forecasts.append(of(next(records)).next_s)
        waits.append(next(record.rows[-1].at_s for record in records if int(record.progress.step) == 1) - 70.0)

    assert np.median(waits) / 2.5 < np.median(forecasts) < np.median(waits) * 2.5


def test_the_same_record_has_the_same_forecast() -> None:
    record = followed(90, 12.0)

    assert of(record) == of(record)


def test_the_requests_that_are_missing_come_at_the_candidates_share_of_the_rate() -> None:
    found = of(followed(90, 12.0))

    assert found.requests_per_second == pytest.approx(12.0, rel=0.3)
    assert found.next_requests == pytest.approx(found.next_s * 12.0 * 0.05, rel=0.5)
    assert found.end_s == found.promoted_s + POLICY.bake_time.total_seconds()
    assert found.measuring == ("errorRate", "latency")


def test_nothing_is_forecast_where_no_requests_come() -> None:
    record = followed(60, 12.0)
    quiet = tuple(Row(60.0 + second, 1.0, 5, (0, 0), (0, 0)) for second in range(1, 40))

    found = of(record, rows=(*record.rows, *quiet))

    assert found.requests_per_second == 0.0
    assert found.last_request_s == 60.0
    assert math.isinf(found.next_s)
    assert math.isinf(found.end_s)


def test_a_shortest_duration_is_waited_for_however_many_requests_come() -> None:
    steps = (RolloutStep(weight=5, min_duration=timedelta(minutes=20)), RolloutStep(weight=50))

    found = of(followed(120, 200.0, POLICY.model_copy(update={"steps": steps})))

    assert found.wait in (Wait.TIME, Wait.HARM)
    assert 20 * 60 - 90 <= found.next_s <= 20 * 60


def test_the_rest_of_a_bake_is_exact() -> None:
    record = followed(400, 60.0)
    assert Phase(int(record.progress.phase)) is Phase.BAKING

    found = of(record)

    assert found.end_s == float(record.progress.since_s) + 600.0 - 400.0
    assert found.promoted_s == 0.0


@pytest.mark.parametrize(
    ("changes", "wait"),
    [
        ({"paused": np.array(True)}, Wait.PAUSED),
        ({"phase": np.array(Phase.QUARANTINED, np.int8)}, None),
        ({"phase": np.array(Phase.GOLDEN, np.int8)}, None),
    ],
)
def test_no_time_is_given_while_it_waits_for_other_than_time_and_requests(
    changes: dict[str, Any], wait: Wait | None
) -> None:
    record = followed(90, 12.0)

    found = of(record, progress=replace(record.progress, **changes))

    assert math.isinf(found.next_s)
    assert wait in (None, found.wait)


def test_a_check_without_a_pass_is_named_and_holds() -> None:
    webhook = WebhookGate(name="webhook", url="https://example.org/check")
    record = followed(90, 12.0, POLICY.model_copy(update={"gates": (*POLICY.gates, webhook)}))
    others = tuple(Verdict(name, Outcome.PASS, "NoWorse", "") for name in ("goldenQuality", "resource"))

    waiting = of(record, verdicts=others)
    passed = of(record, verdicts=(*others, Verdict("webhook", Outcome.PASS, "Passes", "")))

    assert (waiting.wait, waiting.undecided) == (Wait.GATE, ("webhook",))
    assert passed.undecided == ()
    assert passed.wait is not Wait.GATE


def rows_of(*requests: int) -> tuple[Row, ...]:
    return tuple(Row(float(at_s), 1.0, 5, (count, 0), (0, 0)) for at_s, count in enumerate(requests, 1))


@cases(
    ("rows", "rate", "seconds"),
    {
        "of the last half minute": (rows_of(*[0] * 60, *[12] * 60), 12.0, 30),
        "of longer where requests are rare": (rows_of(*[1, 0, 0, 0, 0, 0, 0, 0, 0, 0] * 30), 0.1, 300),
        "a few seconds without one are no end": (rows_of(*[12] * 60, 0, 0, 0), 10.8, 30),
        "a quarter of a minute is": (rows_of(*[1] * 60, *[0] * 15), 0.0, 15),
        "nothing of nothing": ((), 0.0, 0),
    },
)
def test_the_present_rate_is_that_of_the_time_that_shows_it(rows: tuple[Row, ...], rate: float, seconds: int) -> None:
    shown = present(rows)

    assert requests_per_second(shown) == pytest.approx(rate, rel=0.15)
    assert sum(row.seconds for row in shown) == pytest.approx(seconds, abs=1)


def test_recent_rows_end_with_the_last_one() -> None:
    rows = tuple(Row(float(at_s), 1.0, 5, (1, 0), (0, 0)) for at_s in range(1, 101))

    assert [row.at_s for row in recent(rows, 10.0)][-1] == 100.0
    assert 10 <= len(recent(rows, 10.0)) <= 11
    assert recent((), 10.0) == ()
