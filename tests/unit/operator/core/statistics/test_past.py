"""Stable's past: what it says of how requests depend on each other, and what bets make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_operator.core.evidence import STABLE, EvidenceWindow, Floats, Pairs
from segserve_operator.core.gates.error_rate import ErrorRate
from segserve_operator.core.gates.latency import SETTLING_S, Latency
from segserve_operator.core.rollout.plain import canonical, from_plain
from segserve_operator.core.statistics.concurrent import one_sample, two_sample
from segserve_operator.core.statistics.exceedance import UNKNOWN, ExceedanceState
from segserve_operator.core.statistics.past import SCALES_S, Past, StablePast

EDGES = (50.0, 75.0, 100.0, 110.0, 120.0, 150.0, 200.0, 300.0, 500.0)
ERRORS = ErrorRate(slo_rate=0.01, tolerance=0.005)
LATENCY = Latency(tolerance=0.03, slo_ms=((0.95, 300.0),), edges=EDGES)
LEVEL = np.log(200.0)
RUNS = 40


def watched(share: Callable[[float, np.random.Generator], Floats], windows: int = 120, requests: float = 150.0) -> Past:
    """Return the past of some runs in which the share [RUNS] of failures at a time (s) is that."""
    rng, past = np.random.default_rng(8), Past.none(2, (RUNS,))
    for number in range(windows):
        counts = rng.poisson(requests, RUNS)
        bad = rng.binomial(counts, share(number * SCALES_S[0], rng))
        past = past.added(np.stack([counts - bad, bad], -1).astype(float), np.full(RUNS, SCALES_S[0]))
    return past


def steady(_: float, __: np.random.Generator) -> Floats:
    return np.full(RUNS, 0.05)


def clustered_s(past: Past) -> Floats:
    return past.clustered_s(np.ones((RUNS, 1), np.intp))[..., 0]


def window(requests: tuple[float, float], slow: tuple[float, float], seconds: float = 1.0) -> EvidenceWindow:
    """Return a look in which the others take 60 ms, and slow requests 400."""
    latencies = np.zeros((2, len(EDGES) + 1))
    latencies[:, 1], latencies[:, 8] = np.array(requests) - slow, slow
    return EvidenceWindow(np.array(seconds), np.array(requests), np.zeros(2), latencies)


def known() -> StablePast:
    """Return a past without clusters: of each 15 s 200 requests, 2 failed and 10 slow."""
    past = StablePast.none(len(EDGES))
    for number in range(200):
        look = window((200.0, 0.0), (9.0 + number % 3, 0.0), 15.0)
        past = past.added(replace(look, errors=np.array([1.0 + number % 3, 0.0])))
    return past


def test_independent_requests_cluster_for_no_longer_than_chance_explains() -> None:
    # Ten requests a second: a bound of 0.1 s doubles what a candidate of all of them needs, 5 % of them feel nothing.
    assert np.median(clustered_s(watched(steady))) < 0.1


@pytest.mark.parametrize("lasts_s", [15.0, 30.0, 60.0])
def test_pauses_cluster_for_about_as_long_as_they_last(lasts_s: float) -> None:
    """In a pause all fail, and it comes by chance."""
    phases = np.random.default_rng(3).uniform(0, 300, RUNS)

    def share(now_s: float, _: np.random.Generator) -> Floats:
        return np.where((now_s + phases) % 300 < lasts_s, 0.9, 0.001)

    assert lasts_s / 2 < np.median(clustered_s(watched(share))) < 2.5 * lasts_s


def test_the_bound_is_above_the_truth_in_most_pasts() -> None:
    """Bursts of 15 s with a correlation of 0.02: 0.3 s."""

    def share(_: float, rng: np.random.Generator) -> Floats:
        return rng.beta(0.05 * 49, 0.95 * 49, RUNS)

    assert (clustered_s(watched(share)) >= 0.3).mean() > 0.8


def test_a_short_past_is_none_and_leaves_decisions_as_they_were() -> None:
    short = StablePast.none(len(EDGES))
    for _ in range(30):
        short = short.added(window((200.0, 0.0), (10.0, 0.0), 15.0))
    for gate, past in ((ERRORS, short), (LATENCY, short)):
        with_it, without = gate.start(past=past), gate.start()
        assert (with_it.clustered_s == UNKNOWN).all()
        for look in (window((100.0, 10.0), (5.0, 9.0), 5.0),) * 20:
            with_it, without = gate.update(with_it, look), gate.update(without, look)
        assert gate.judge(with_it) == gate.judge(without)


def test_a_long_past_is_known_and_takes_13_kilobytes_at_most() -> None:
    assert (ERRORS.start(past=known()).clustered_s >= 0).all()
    assert sum(getattr(StablePast.none().latencies, each.name).nbytes for each in fields(Past)) < 13_000


GATES = (ERRORS, LATENCY)


def of_stable(looks: list[tuple[int, int]], edges: int = len(EDGES)) -> StablePast:
    """Return the past of these failures and slow answers of 200 requests in each 15 s."""
    past = StablePast.none(edges)
    for failed, slow in looks:
        look = window((200.0, 0.0), (float(slow), 0.0), 15.0)
        past = past.added(replace(look, errors=np.array([float(failed), 0.0])))
    return past


def test_a_gate_that_is_told_later_knows_what_one_knows_that_was_told_at_the_start() -> None:
    for gate in GATES:
        start = gate.start(past=known())
        assert same(gate.informed(gate.start(past=StablePast.none(len(EDGES))), known()), start)
        assert same(gate.informed(start, of_stable([(90, 90), (0, 0)] * 100)), start)


def test_a_past_that_is_too_short_tells_nothing() -> None:
    for gate in GATES:
        start = gate.start(past=StablePast.none(len(EDGES)))
        assert same(gate.informed(start, of_stable([(2, 9)] * 30)), start)


def test_while_the_past_is_short_verdicts_allow_for_longer_clusters_and_less_so_as_it_grows() -> None:
    state, allowed = ERRORS.start(past=StablePast.none(len(EDGES))), []
    for windows in (40, 60, 80, 100, 120):
        state = ERRORS.informed(state, of_stable([(2, 9), (1, 9)] * (windows // 2)))
        allowed.append(float(state.least_s))
    assert allowed == sorted(allowed, reverse=True)
    assert allowed[0] > 1.0
    assert allowed[-1] == 0.0


def test_a_past_that_is_shorter_than_the_one_that_is_known_changes_nothing() -> None:
    """As after the operator's restart, which forgets what it watched."""
    state = ERRORS.start(past=of_stable([(2, 9), (1, 9)] * 40))

    assert 0.0 < state.least_s < ERRORS.start(past=of_stable([(9, 9), (0, 9)] * 20)).least_s
    assert same(ERRORS.informed(state, of_stable([(9, 9), (0, 9)] * 20)), state)


def test_requests_of_the_steps_count_once_where_a_past_is_learned_in_them() -> None:
    state, past = ERRORS.start(past=StablePast.none(len(EDGES))), StablePast.none(len(EDGES))
    for _ in range(40):
        look = replace(window((200.0, 20.0), (0.0, 0.0), 15.0), errors=np.array([2.0, 0.0]))
        state, past = ERRORS.update(state, look), past.added(look)
    told = ERRORS.informed(state, past)

    assert (told.clustered_s >= 0).all()
    assert told.past.sum() < 0.05 * state.total[STABLE].sum()


def test_in_shadow_a_judgement_waits_until_stables_past_is_known() -> None:
    failed = np.array([[50.0, 0.0], [0.0, 0.0]])
    pairs = replace(Pairs.nothing(), failed=failed)
    shadow = EvidenceWindow.of_pairs(np.array(60.0), np.zeros((2, len(EDGES) + 1)), pairs)
    state = ERRORS.start(past=StablePast.none(len(EDGES)))
    for _ in range(40):
        state = ERRORS.update(state, shadow)
    told = ERRORS.informed(state, known())

    assert (bool(ERRORS.judge(state).enough), bool(ERRORS.judge(told).enough)) == (False, True)
    assert ERRORS.judge(state).harm <= ERRORS.tolerance
    # Without a past a certificate would lead to larger steps, in which clusters are taken for faults.
    assert ERRORS.judge(ERRORS.after_shadow(state)).harm == 1.0
    assert ERRORS.judge(ERRORS.after_shadow(told)).harm <= ERRORS.tolerance


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(0, 200)), min_size=30, max_size=130),
    st.lists(st.tuples(*[st.integers(0, 30)] * 4), max_size=8),
)
def test_a_state_that_was_told_of_a_past_reads_back_bit_for_bit(
    looks: list[tuple[int, int]], pairs: list[tuple[int, int, int, int]]
) -> None:
    past = of_stable(looks)
    for gate in GATES:
        state = gate.start(past=StablePast.none(len(EDGES)))
        for failed in pairs:
            each = replace(Pairs.nothing(), failed=np.array(failed, float).reshape(2, 2))
            state = gate.update(state, EvidenceWindow.of_pairs(np.array(5.0), np.zeros((2, len(EDGES) + 1)), each))
            state = gate.informed(state, past)
        assert same(from_plain(gate.start(), json.loads(canonical(state))), state)


def same(left: object, right: object) -> bool:
    return canonical(left) == canonical(right)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.floats(0.001, 0.9),
    st.floats(0.001, 0.9),
    st.sampled_from([0.0, 0.005, 0.03]),
)
def test_no_bet_on_independent_requests_wins_on_average(
    stable: int, candidate: int, share: float, expected: float, tolerance: float
) -> None:
    """Exactly, for any share of stable and any expectation of it: the sum over all outcomes."""
    worst = min(share + tolerance, 1.0)
    k_s, k_c = np.meshgrid(np.arange(stable + 1.0), np.arange(candidate + 1.0), indexing="ij")
    log_chances = log_binomial(stable, share)[:, None] + log_binomial(candidate, worst)[None, :]
    level = np.full(k_s.shape, expected)
    factors = two_sample(
        (k_s, k_c),
        (np.full(k_s.shape, stable), np.full(k_s.shape, candidate)),
        level,
        np.minimum(level + tolerance, 0.99),
        np.full(k_s.shape, tolerance),
    )
    assert (np.sum(np.exp(log_chances[..., None] + factors), (0, 1)) <= 1.001).all()
    alone = one_sample(np.arange(candidate + 1.0), np.full(candidate + 1, candidate), np.full(candidate + 1, share))
    assert (np.sum(np.exp(log_binomial(candidate, share)[:, None] + alone), 0) <= 1.001).all()


def log_binomial(number: int, share: float) -> Floats:
    ways = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, number + 1)))])
    at = np.arange(number + 1)
    chances: Floats = ways[-1] - ways[at] - ways[number - at] + at * np.log(share) + (number - at) * np.log1p(-share)
    return chances


def test_a_candidate_that_is_only_cold_is_stopped_and_not_judged_by_it() -> None:
    state = LATENCY.start(past=known())
    for _ in range(60):
        state = LATENCY.update(state, window((190.0, 10.0), (9.0, 9.0)))
    cold = LATENCY.judge(state)
    assert cold.breach >= LEVEL
    assert cold.settling
    assert LATENCY.explain(state, 0.005).reason == "Settling"

    for _ in range(round(SETTLING_S) - 60):
        state = LATENCY.update(state, window((200.0, 0.0), (10.0, 0.0)))
    warm = LATENCY.judge(state)
    assert not warm.settling
    assert warm.breach < 1


def test_a_candidate_that_stays_slow_is_judged_once_it_had_its_time() -> None:
    state = LATENCY.start(past=known())
    for _ in range(round(SETTLING_S) + 30):
        state = LATENCY.update(state, window((190.0, 10.0), (9.0, 9.0)))
    assert not LATENCY.judge(state).settling
    assert LATENCY.judge(state).breach >= LEVEL


def test_a_replay_begins_with_the_same_past() -> None:
    start = LATENCY.start(past=known())
    later = LATENCY.update(start, window((190.0, 10.0), (9.0, 9.0), 30.0))
    again = LATENCY.again(later)
    assert all(np.array_equal(getattr(start, each.name), getattr(again, each.name)) for each in fields(ExceedanceState))
    assert later.total[STABLE].sum() > 0


def test_pauses_that_stable_has_too_do_not_accuse_a_candidate_that_pauses_by_itself() -> None:
    """20 s in three minutes, nine of ten slow: known from the past that is no proof, and unknown it is."""
    begun = np.arange(0.0, 180.0, 12.0)
    shape, rng, requests = begun.shape, np.random.default_rng(1), np.array([225, 25])

    def looks(now_s: float, counts: np.ndarray) -> EvidenceWindow:
        shares = np.stack([slow(now_s + begun), slow(np.full(shape, now_s + 90.0))], -1)
        slows = rng.binomial(np.broadcast_to(counts, (*shape, 2)), shares).astype(float)
        latencies = np.zeros((*shape, 2, len(EDGES) + 1))
        latencies[..., 1], latencies[..., 8] = counts - slows, slows
        return EvidenceWindow(np.full(shape, 5.0), latencies.sum(-1), np.zeros((*shape, 2)), latencies)

    past = StablePast.none(len(EDGES), shape)
    for at_s in range(0, 1800, 5):
        past = past.added(looks(float(at_s), np.array([250, 0])))
    accused = {}
    for has_past in (True, False):
        state, most = LATENCY.start(shape, past if has_past else None), np.zeros(shape)
        for now_s in range(0, 540, 5):
            state = LATENCY.update(state, looks(float(now_s), requests))
            judged = LATENCY.judge(state)
            most = np.maximum(most, np.where(judged.settling, 0.0, judged.breach))
        accused[has_past] = int((most >= LEVEL).sum())
    assert accused[True] == 0
    assert accused[False] > 0


def slow(now_s: np.ndarray) -> np.ndarray:
    """Return the shares of slow requests in the pauses and between them."""
    return np.where(now_s % 180 < 20, 0.9, 0.01)
