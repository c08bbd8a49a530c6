"""The test of the written split."""

from __future__ import annotations

import numpy as np
import pytest

from segserve_operator.core.statistics.sample_ratio import SampleRatio

TEST = SampleRatio()
PROOF = np.log(1000.0)


def evidence(share: float, written: float = 25.0, windows: int = 300, runs: int = 300, begins: int = 0) -> np.ndarray:
    """The largest evidence of each run; from `begins` on the candidate's share is `share`."""
    random = np.random.default_rng(0)
    state, found = TEST.start((runs,)), np.zeros(runs)
    for window in range(windows):
        weight = np.full(runs, 5.0 if window < 50 else written)
        real = share if window >= begins else weight[0] / 100
        requests = random.poisson(20.0 * np.array([1 - real, real]), (runs, 2)).astype(float)
        state = TEST.update(state, weight, requests)
        found = np.maximum(found, TEST.evidence(state))
    return found


def test_a_split_as_written_is_never_accused_when_weights_change() -> None:
    random = np.random.default_rng(1)
    state = TEST.start((500,))
    for window in range(300):
        share = (0.05, 0.25, 0.5)[window // 100]
        requests = random.poisson(20.0 * np.array([1 - share, share]), (500, 2)).astype(float)
        state = TEST.update(state, np.full(500, 100 * share), requests)
        assert (TEST.evidence(state) < PROOF).all()


@pytest.mark.parametrize(("share", "begins"), [(0.0, 50), (0.5, 50), (0.5, 200)])
def test_another_split_is_noticed_also_late(share: float, begins: int) -> None:
    assert (evidence(share, begins=begins) > PROOF).all()


def test_a_candidate_without_weight_should_have_no_requests() -> None:
    state = TEST.start()
    for _ in range(20):
        state = TEST.update(state, np.array(0.0), np.array([9.0, 1.0]))
    assert TEST.evidence(state) > PROOF


def test_a_look_without_requests_is_no_evidence() -> None:
    state = TEST.update(TEST.start(), np.array(25.0), np.zeros(2))
    assert np.array_equal(state.wealth, TEST.start().wealth)
