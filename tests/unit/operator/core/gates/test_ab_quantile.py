"""The result of an A/B test by a percentile: what its interval holds, and how often it misses the true one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, STABLE, EvidenceWindow, Floats, Pairs
from segserve_operator.core.gates.ab_quantile import AbQuantileResult, AbQuantileState
from segserve_operator.core.gates.ab_test import BETTER, OPEN, WORSE
from segserve_operator.core.rollout.plain import from_plain, to_plain
from segserve_operator.core.statistics.bounded_mean import log_wealth, quantile_bins

RUNS = 40
COARSE_MS = (50.0, 70.0, 100.0, 150.0, 200.0, 300.0, 500.0)
SHARES = np.array([(2.0, 8.0, 30.0, 30.0, 15.0, 10.0, 4.0, 1.0), (1.0, 4.0, 15.0, 30.0, 25.0, 15.0, 7.0, 3.0)]) / 100


def window(latencies: Floats, seconds: float = 10.0) -> EvidenceWindow:
    requests = latencies.sum(-1)
    return EvidenceWindow(np.full(requests.shape[:-1], seconds), requests, np.zeros(requests.shape), latencies)


def blocks(random: np.random.Generator, shares: Floats, runs: int = RUNS) -> Floats:
    """Return a block's answers [runs, 2, K + 1]: those of a block depend on each other by a common disturbance."""
    tilt = random.choice([-0.9, 0.9], (runs, 1, 1))
    rank = np.linspace(-1.0, 1.0, shares.shape[-1])
    # The two disturbances are equally likely and cancel in the mean.
    disturbed = shares * (1.0 + tilt * (rank - (shares @ rank)[:, None]) / 2.0)
    disturbed = np.maximum(disturbed, 0.0)
    return random.multinomial(30, disturbed / disturbed.sum(-1, keepdims=True)).astype(float)


def bin_of(shares: Floats, quantile: float) -> Floats:
    return (shares.cumsum(-1) < quantile).sum(-1)


@pytest.mark.parametrize("quantile", [0.5, 0.95, 0.99])
def test_the_intervals_hold_both_quantiles_and_their_difference_at_all_looks(quantile: float) -> None:
    random, gate = np.random.default_rng(11), AbQuantileResult(quantile, 0.95, COARSE_MS)
    state, held = gate.start((RUNS,)), np.ones(RUNS, bool)
    lower, upper = np.array((0.0, *COARSE_MS)), np.array((*COARSE_MS, np.inf))
    true = bin_of(SHARES, quantile)
    least = lower[true[CANDIDATE]] - upper[true[STABLE]]
    most = upper[true[CANDIDATE]] - lower[true[STABLE]]
    for block in range(300):
        state = gate.update(state, window(blocks(random, SHARES)))
        if block % 10 == 9:
            (low_ms, high_ms), (low, high) = gate.quantiles(state), gate.difference(state)
            held &= ((low_ms <= lower[true]) & (high_ms >= upper[true])).all(-1)
            held &= (low <= least) & (high >= most)

    assert held.mean() >= 0.95
    assert quantile > 0.5 or np.isfinite(high).all()


def exactly(below_ms: float, above_ms: float, share: float, requests: int = 100) -> Floats:
    """Return answers of which a share took so long, and the others longer."""
    bins = np.zeros(len(EDGES_MS) + 1)
    bins[np.searchsorted(EDGES_MS, below_ms, side="right")] = round(share * requests)
    bins[np.searchsorted(EDGES_MS, above_ms, side="right")] = requests - round(share * requests)
    return bins


@pytest.mark.parametrize(
    ("stable_ms", "candidate_ms", "reason"), [(100.0, 200.0, WORSE), (200.0, 100.0, BETTER), (100.0, 100.0, OPEN)]
)
def test_a_result_says_both_percentiles_their_difference_and_its_interval(
    stable_ms: float, candidate_ms: float, reason: str
) -> None:
    gate = AbQuantileResult(0.95)
    state = gate.start()
    for _ in range(400):
        state = gate.update(
            state, window(np.stack([exactly(each, 1000.0, 0.98) for each in (stable_ms, candidate_ms)]))
        )
    verdict = gate.explain(state, 0.01)
    low, high = verdict.numbers["low"], verdict.numbers["high"]

    assert verdict.reason == reason
    assert low <= candidate_ms - stable_ms <= high
    assert "95 % interval" in verdict.message
    assert verdict.message.startswith("its p95 is about ")


def test_before_a_quantile_is_bounded_nothing_is_said_of_the_difference() -> None:
    gate = AbQuantileResult(0.99)
    state = gate.update(gate.start(), window(np.stack([exactly(100.0, 200.0, 0.5)] * 2)))

    assert [float(bound) for bound in gate.difference(state)] == [-np.inf, np.inf]
    assert "too few blocks" in gate.explain(state, 0.01).message
    assert gate.explain(gate.start(), 0.01).reason == OPEN


def test_time_without_answers_of_one_of_them_and_copies_are_left_out() -> None:
    gate, nothing = AbQuantileResult(0.5), np.zeros(len(EDGES_MS) + 1)
    state = gate.start()
    for _ in range(30):
        state = gate.update(state, window(np.stack([exactly(100.0, 200.0, 0.5), nothing])))
    pairs = EvidenceWindow.of_pairs(np.array(10.0), np.ones((2, len(EDGES_MS) + 1)), Pairs.nothing())

    assert state.counts.sum() == 0
    assert gate.update(state, pairs) is state


def test_many_tests_are_what_each_is_alone_and_a_stored_state_is_the_same() -> None:
    random, gate = np.random.default_rng(3), AbQuantileResult(0.5, 0.95, COARSE_MS)
    many, alone = gate.start((4,)), [gate.start() for _ in range(4)]
    for _ in range(30):
        latencies = blocks(random, SHARES, 4)
        many = gate.update(many, window(latencies, 5.0))
        alone = [gate.update(state, window(each, 5.0)) for state, each in zip(alone, latencies, strict=True)]

    for index, state in enumerate(alone):
        read = from_plain(gate.start(), to_plain(state))
        for name in AbQuantileState.__slots__:
            assert np.array_equal(getattr(many, name)[index], getattr(state, name))
            assert np.array_equal(getattr(read, name), getattr(state, name))


@given(
    blocks=st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 0.9, 1.0]), min_size=3, max_size=3).map(sorted), min_size=1, max_size=40
    ),
    quantile=st.sampled_from([0.5, 0.95]),
)
def test_refuted_bins_lie_on_both_sides_and_at_least_one_is_left(blocks: list[list[float]], quantile: float) -> None:
    values = np.array([0.0, 0.5, 0.9, 1.0])
    counts = (np.array(blocks)[:, :, None] == values).sum(0).astype(float)
    low, high = quantile_bins(counts, values, quantile, 0.05)
    below = log_wealth(counts, values, quantile)

    assert 0 <= low <= high <= 3
    assert (np.diff(below) >= -1e-9).all()
