"""What Prometheus sees of rollouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Decision, Record, RolloutState, Row
from segserve_operator.metrics.rollout_metrics import RolloutMetrics

NOW_S = 1000.0
STANDING = RolloutState("coins-7f", "coins-r2", Phase.PROGRESSING, step=0, weight=5)
VERDICTS = (
    Verdict("errorRate", Outcome.UNDECIDED, "Unproved", "", 0.25, {"excess": 7.0}),
    Verdict("latency", Outcome.UNDECIDED, "Unproved", "", 0.5),
)
RECORD = Record(
    "coins-7f",
    "coins",
    "coins-r1",
    "coins-r2",
    RolloutPolicy(),
    Slo(),
    Progress.begun(NOW_S),
    rows=(Row(NOW_S, 1.0, 5, (95, 5), (0, 0)),),
    verdicts=VERDICTS,
)


class Clock:
    now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def metrics(clock: Clock) -> RolloutMetrics:
    return RolloutMetrics(CollectorRegistry(), clock)


def decision(sequence: int, signal: str, phase: Phase, at_s: float = NOW_S) -> Decision:
    return Decision(sequence, at_s, signal, phase, 5, "segserve", "", "")


def seen(metrics: RolloutMetrics, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by its labels beside namespace, pool and model."""
    metrics.show()
    return {
        tuple(value for label, value in sample.labels.items() if label not in ("namespace", "pool", "model")): (
            sample.value
        )
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"segserve_rollout_{name}"
    }


def test_a_running_rollout_is_seen_with_its_phase_weight_and_evidence(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    assert seen(metrics, "phase") == {("Progressing",): 1}
    assert seen(metrics, "weight") == {(): 5}
    assert seen(metrics, "evidence") == {("errorRate",): 0.25, ("latency",): 0.5}
    assert seen(metrics, "bad_requests") == {(): 7}
    assert seen(metrics, "held") == {}


def test_a_phase_that_was_left_is_gone(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    metrics.observe(
        "lab", "default", {"coins": replace(STANDING, phase=Phase.BAKING, weight=100)}, {"coins-7f": RECORD}
    )
    assert seen(metrics, "phase") == {("Baking",): 1}
    assert seen(metrics, "weight") == {(): 100}


@pytest.mark.parametrize("end", [{}, {"coins": replace(STANDING, phase=Phase.ROLLED_BACK)}], ids=["gone", "ended"])
def test_of_a_rollout_that_has_ended_no_gauge_stays(end: dict[str, RolloutState], metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": replace(STANDING, paused=True)}, {"coins-7f": RECORD})
    metrics.observe("lab", "default", end, {"coins-7f": RECORD})
    for name in ("phase", "weight", "held", "evidence", "bad_requests", "look_seconds"):
        assert seen(metrics, name) == {}


def test_a_rollout_that_takes_the_place_of_another_starts_anew(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    assert seen(metrics, "bad_requests") == {(): 7}
    metrics.observe("lab", "default", {"coins": RolloutState("coins-80", "coins-r3")}, {"coins-7f": RECORD})
    assert seen(metrics, "phase") == {("Pending",): 1}
    assert seen(metrics, "bad_requests") == {}


def test_other_pools_are_left_alone(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    metrics.observe("lab", "other", {}, {})
    assert seen(metrics, "weight") == {(): 5}


def test_decisions_and_quarantines_are_counted_once(metrics: RolloutMetrics) -> None:
    record = replace(
        RECORD,
        sequence=2,
        decisions=(decision(1, "PROVED", Phase.GOLDEN), decision(2, "QUARANTINE", Phase.QUARANTINED)),
    )
    for _ in range(3):
        metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": record})
    assert seen(metrics, "decisions_total") == {("PROVED",): 1, ("QUARANTINE",): 1}
    assert seen(metrics, "quarantines_total") == {(): 1}


def test_what_an_earlier_process_decided_is_not_counted_again(metrics: RolloutMetrics) -> None:
    record = replace(RECORD, sequence=1, decisions=(decision(1, "PROVED", Phase.GOLDEN, at_s=NOW_S - 1),))
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": record})
    assert seen(metrics, "decisions_total") == {}


def test_an_end_is_an_increase_from_zero(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    ends = ("RolledBack", "Succeeded", "Cancelled", "Judged")
    assert seen(metrics, "ends_total") == {(end,): 0 for end in ends}
    for _ in range(2):
        metrics.observe("lab", "default", {"coins": replace(STANDING, phase=Phase.ROLLED_BACK)}, {"coins-7f": RECORD})
    assert seen(metrics, "ends_total")[("RolledBack",)] == 1


def test_an_end_that_an_earlier_process_saw_is_not_counted(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": replace(STANDING, phase=Phase.ROLLED_BACK)}, {"coins-7f": RECORD})
    assert seen(metrics, "ends_total") == {}


def test_the_age_of_a_look_grows_while_nobody_looks(metrics: RolloutMetrics, clock: Clock) -> None:
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": RECORD})
    assert seen(metrics, "look_seconds") == {(): 0}
    clock.now_s += 75
    assert seen(metrics, "look_seconds") == {(): 75}


def test_a_held_rollout_says_why(metrics: RolloutMetrics) -> None:
    metrics.observe("lab", "default", {"coins": replace(STANDING, reason="Incident")}, {})
    assert seen(metrics, "held") == {("Incident",): 1}
    metrics.observe("lab", "default", {"coins": STANDING}, {})
    assert seen(metrics, "held") == {}


def test_bad_requests_are_what_was_lost_before_a_quarantine_or_more(metrics: RolloutMetrics) -> None:
    record = replace(RECORD, progress=replace(RECORD.progress, bad=np.array(12.0)))
    metrics.observe("lab", "default", {"coins": STANDING}, {"coins-7f": record})
    assert seen(metrics, "bad_requests") == {(): 12}


def test_in_shadow_the_copies_that_were_compared_are_counted_and_no_bad_requests(metrics: RolloutMetrics) -> None:
    progress = replace(RECORD.progress, phase=np.array(Phase.SHADOW, np.int8), seen=np.array(120.0))
    states = {"coins": replace(STANDING, phase=Phase.SHADOW, step=-1, weight=0)}
    metrics.observe("prod", "default", states, {RECORD.name: replace(RECORD, progress=progress, verdicts=())})

    assert seen(metrics, "compared") == {(): 120.0}
    assert seen(metrics, "phase") == {("Shadow",): 1.0}
    assert seen(metrics, "bad_requests") == {(): 0.0}

    metrics.observe("prod", "default", {"coins": STANDING}, {RECORD.name: RECORD})

    assert seen(metrics, "compared") == {}
