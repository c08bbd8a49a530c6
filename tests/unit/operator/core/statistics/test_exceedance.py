"""The test of shares above an edge: its promises as properties, and its error rates on invented rollouts."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.cases import cases
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates.error_rate import ErrorRate
from segserve_operator.core.gates.latency import Latency
from segserve_operator.core.statistics.exceedance import TOLERATED, ExceedanceState
from segserve_operator.core.statistics.past import StablePast

GATE = ErrorRate(slo_rate=0.01, tolerance=0.005)
EDGES = (50.0, 75.0, 100.0, 110.0, 120.0, 150.0, 200.0, 300.0, 500.0)
LATENCY = Latency(tolerance=0.03, slo_ms=((0.95, 300.0),), edges=EDGES)
LEVEL = np.log(300.0)

counts = st.tuples(st.integers(0, 200), st.integers(0, 200), st.floats(0, 1), st.floats(0, 1), st.integers(0, 70))


def measured(rows: list[tuple[int, int, float, float, int]]) -> list[EvidenceWindow]:
    """Looks of one rollout: (requests of both, shares of errors of both, seconds)."""
    found = []
    for stable, candidate, bad_stable, bad_candidate, seconds in rows:
        requests = np.array([stable, candidate], float)
        errors = np.floor(requests * [bad_stable, bad_candidate])
        latencies = np.zeros((2, len(EDGES) + 1))
        latencies[:, 2], latencies[:, 7] = requests - errors, errors
        found.append(EvidenceWindow(np.array(float(seconds)), requests, errors, latencies))
    return found


def same(left: ExceedanceState, right: ExceedanceState) -> bool:
    return all(np.array_equal(getattr(left, each.name), getattr(right, each.name)) for each in fields(left))


@settings(max_examples=25, deadline=None)
@given(st.lists(counts, min_size=1, max_size=10), st.sampled_from([GATE, LATENCY]))
def test_a_look_that_saw_nothing_changes_nothing(rows: list, gate: ErrorRate | Latency) -> None:
    state = gate.start()
    for window in measured(rows):
        state = gate.update(state, window)
    assert same(gate.update(state, EvidenceWindow.nothing(edges=len(EDGES))), state)


@settings(max_examples=50, deadline=None)
@given(st.lists(counts, min_size=1, max_size=20))
def test_numbers_stay_finite_and_harm_a_share(rows: list) -> None:
    for gate in (GATE, LATENCY):
        state = gate.start()
        for window in measured(rows):
            state = gate.update(state, window)
            judged = gate.judge(state)
            assert all(np.isfinite(getattr(state, each.name)).all() for each in fields(state))
            assert 0 < judged.harm <= 1
            assert judged.excess >= 0
            assert not np.isnan(judged.breach)


@settings(max_examples=50, deadline=None)
@given(st.lists(counts, min_size=3, max_size=12), st.integers(0, 11), st.floats(0, 1))
def test_more_errors_of_the_candidate_are_never_less_evidence(rows: list, which: int, share: float) -> None:
    worse = list(rows)
    stable, candidate, bad_stable, bad, seconds = worse[which % len(rows)]
    worse[which % len(rows)] = (stable, candidate, bad_stable, max(bad, share), seconds)
    states = [GATE.start(), GATE.start()]
    for windows in zip(measured(rows), measured(worse), strict=True):
        states = [GATE.update(state, window) for state, window in zip(states, windows, strict=True)]
    assert GATE.judge(states[1]).breach >= GATE.judge(states[0]).breach - 1e-9


def test_when_a_block_ends_does_not_depend_on_how_requests_end() -> None:
    fine, failing = GATE.start(), GATE.start()
    for count in (3, 17, 40, 2, 0, 25):
        fine = GATE.update(fine, measured([(count, 2, 0.0, 0.0, 2)])[0])
        failing = GATE.update(failing, measured([(count, 2, 1.0, 1.0, 2)])[0])
        assert fine.age_s == failing.age_s
        assert np.array_equal(fine.pending.sum(-1), failing.pending.sum(-1))


def test_no_data_is_no_pass() -> None:
    judged = GATE.judge(GATE.start())
    assert not judged.enough
    assert judged.harm == 1
    assert judged.breach == pytest.approx(0.0)


def test_a_state_is_flat_and_all_float64() -> None:
    for gate in (GATE, LATENCY):
        state = gate.start((2,))
        assert all(getattr(state, each.name).dtype == np.float64 for each in fields(state))
        assert all(getattr(state, each.name).shape[0] == 2 for each in fields(state))


def rollouts(
    runs: int = 300, seconds: int = 300, rps: float = 100.0, share: float = 0.5, base: float = 0.002, **world: float
) -> tuple[np.ndarray, ExceedanceState]:
    """When each of some invented rollouts breaches (infinity: never), and their last state. Looks of one second.

    world: more (the candidate's errors), both (errors of both, of the second minute), rho (bursts), begins (s).
    """
    random = np.random.default_rng(1)
    state, breached = GATE.start((runs,)), np.full(runs, np.inf)
    for now in range(-60, seconds):
        weight = share if now >= 0 else 0.0
        rates = np.full((runs, 2), base + world.get("both", 0.0) * (60 <= now < 120))
        rates[:, 1] += world.get("more", 0.0) * (now >= world.get("begins", 0))
        if rho := world.get("rho", 0.0):
            size = 1 / rho - 1
            rates = random.beta(rates * size, (1 - rates) * size)
        requests = random.poisson(rps * np.array([1 - weight, weight]), (runs, 2))
        window = EvidenceWindow(
            np.ones(runs), requests.astype(float), random.binomial(requests, rates).astype(float), np.zeros(0)
        )
        state = GATE.update(state, window)
        judged = GATE.judge(state)
        now_proved = judged.breach >= LEVEL
        breached = np.where(np.isinf(breached) & now_proved, now + 1.0, breached)
    return breached, state


@cases(
    "world",
    {
        "quiet traffic": {"rps": 1.0},
        "at the edge of the SLO": {"base": 0.009},
        "most requests at the candidate": {"share": 0.9, "rps": 10.0},
        "an incident of both": {"both": 0.05},
        "a large incident of both": {"both": 0.3, "rps": 10.0},
        "an incident during the bake": {"both": 0.2, "rps": 10.0, "share": 0.95},
        "bursts": {"rho": 0.05, "rps": 1000.0},
    },
)
def test_a_healthy_candidate_is_seldom_accused(world: dict[str, Any]) -> None:
    breached, _ = rollouts(**world)
    assert np.isfinite(breached).mean() <= 0.005


@cases(
    ("world", "within_s"),
    {
        "+5 pp at 10 requests/s": ({"more": 0.05, "rps": 10.0}, 90.0),
        "+5 pp at 100 requests/s, weight 5": ({"more": 0.05, "share": 0.05}, 60.0),
        "half of the requests fail": ({"more": 0.5, "share": 0.05, "rps": 10.0}, 30.0),
        "+5 pp after 200 s": ({"more": 0.05, "begins": 200.0, "rps": 10.0, "seconds": 400}, 360.0),
    },
)
def test_half_of_bad_candidates_are_found_within(world: dict[str, Any], within_s: float) -> None:
    breached, _ = rollouts(runs=100, **world)
    assert np.median(breached) <= within_s


def test_the_harm_of_a_healthy_candidate_is_soon_bounded_and_the_bound_holds() -> None:
    _, healthy = rollouts(runs=100)
    assert np.median(GATE.judge(healthy).harm) <= 0.005
    _, bad = rollouts(runs=100, more=0.03)
    assert (GATE.judge(bad).harm < 0.03).mean() <= 0.05


def test_a_candidate_that_turns_bad_loses_its_certificate() -> None:
    _, before = rollouts(runs=50, seconds=200)
    _, after = rollouts(runs=50, seconds=230, more=0.05, begins=200)
    assert (GATE.judge(after).harm > GATE.judge(before).harm).all()


def test_a_broken_stable_is_not_an_incident_of_both() -> None:
    _, fixed = rollouts(runs=50, base=0.05, more=-0.049, rps=10.0)
    judged = GATE.judge(fixed)
    assert judged.incident.all()
    assert not judged.shared.any()
    assert (judged.harm <= 0.005).all()
    breached, failing = rollouts(runs=50, base=0.2, rps=10.0)
    assert GATE.judge(failing).shared.all()
    assert np.isinf(breached).all()


def test_one_that_is_tolerable_at_the_very_edge_is_accused_a_few_times_as_often_as_one_as_good_as_stable() -> None:
    breached, _ = rollouts(more=0.005)
    assert np.isfinite(breached).mean() <= np.exp(TOLERATED - LEVEL)


@pytest.mark.parametrize("base", [0.05, 0.3, 1.0])
def test_what_mends_a_broken_stable_is_soon_known_to_do_no_harm(base: float) -> None:
    _, mended = rollouts(runs=30, seconds=120, base=base, more=0.001 - base)
    assert (GATE.judge(mended).harm <= 0.005).all()


def test_an_incident_of_both_is_over_once_one_serves_alone() -> None:
    _, failing = rollouts(runs=5, base=0.3, rps=10.0)
    alone = EvidenceWindow(np.full(5, 70.0), np.tile([0.0, 90.0], (5, 1)), np.zeros((5, 2)), np.zeros(0))
    assert GATE.judge(failing).shared.all()
    for _ in range(2):
        failing = GATE.update(failing, alone)
    assert not GATE.judge(failing).shared.any()


def test_a_candidate_far_worse_than_a_broken_stable_is_found() -> None:
    breached, _ = rollouts(runs=50, base=0.05, more=0.3, rps=10.0)
    assert np.median(breached) <= 120


def test_the_excess_counts_what_stable_would_have_answered() -> None:
    _, bad = rollouts(runs=50, seconds=100, more=0.1)
    assert GATE.judge(bad).excess == pytest.approx(np.full(50, 0.1 * 50 * 100), rel=0.5)
    _, fine = rollouts(runs=50, seconds=300, both=0.3)
    assert (GATE.judge(fine).excess < 20).all()


def surges(runs: int, looks: int, candidate: float, known: bool = True) -> np.ndarray:
    """After how many looks of a second each of some bakes surges (infinity: never): 95 and 5 requests a second."""
    random, share = np.random.default_rng(4), 0.01
    past = StablePast.none(shape=(runs,))
    for _ in range(120 if known else 0):
        failed = random.binomial(1500, share, runs).astype(float)
        asked = np.stack([np.full(runs, 1500.0), np.zeros(runs)], -1)
        errors = np.stack([failed, np.zeros(runs)], -1)
        past = past.added(EvidenceWindow(np.full(runs, 15.0), asked, errors, np.zeros((runs, 2, len(EDGES_MS) + 1))))
    state, surged = GATE.start((runs,), past), np.full(runs, np.inf)
    for look in range(1, looks + 1):
        requests = np.broadcast_to([5.0, 95.0], (runs, 2))
        errors = random.binomial(requests.astype(int), [share, candidate]).astype(float)
        state = GATE.update(state, EvidenceWindow(np.ones(runs), requests, errors, np.zeros(0)))
        surged = np.where(np.isinf(surged) & GATE.judge(state).surging, look, surged)
    return surged


def test_a_candidate_that_fails_suddenly_surges_within_seconds_however_few_requests_stable_has() -> None:
    assert np.median(surges(40, 10, candidate=0.2)) <= 3
    assert np.isinf(surges(40, 10, candidate=1.0, known=False)).all()


def test_a_candidate_at_the_edge_of_what_is_allowed_surges_once_in_a_thousand_looks_on_average_or_less() -> None:
    """Of n looks at most n / 1000 rollouts surge; the gate allows half a point beyond stable's one percent."""
    assert np.isfinite(surges(100, 100, candidate=0.015)).mean() <= 0.1
    assert np.isinf(surges(100, 100, candidate=0.01)).all()


def test_a_surge_is_over_when_the_candidate_has_had_no_requests_for_some_seconds() -> None:
    state = replace(GATE.start(), clustered_s=np.zeros(2), surge=np.zeros(6))
    fails = EvidenceWindow(np.array(1.0), np.array([5.0, 95.0]), np.array([0.0, 95.0]), np.zeros(0))
    quiet = replace(fails, requests=np.array([100.0, 0.0]), errors=np.zeros(2))
    for _ in range(30):
        state = GATE.update(state, fails)
    assert GATE.judge(state).surging
    for _ in range(5):
        state = GATE.update(state, quiet)
    assert not GATE.judge(state).surging


def test_states_of_before_and_the_test_of_latencies_know_no_surge() -> None:
    fails = EvidenceWindow(np.array(1.0), np.array([5.0, 95.0]), np.array([0.0, 95.0]), np.zeros((2, len(EDGES) + 1)))
    for gate in (GATE, LATENCY):
        state = replace(gate.start(), clustered_s=np.zeros_like(gate.start().clustered_s))
        for _ in range(10):
            state = gate.update(state, fails)
        assert not gate.judge(state).surging
        assert not gate.judge(gate.again(state)).surging
