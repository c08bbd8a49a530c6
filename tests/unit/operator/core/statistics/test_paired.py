"""The paired test of quality."""

from __future__ import annotations

import math

import numpy as np
import pytest

from segserve_operator.core.statistics.paired import proved_worse, worse

TOLERANCE = 0.01
PROOF = math.log(300.0)


def proved(change: float, images: int = 100, runs: int = 300, spread: float = 0.05) -> float:
    """The share of runs that are proved worse."""
    random = np.random.default_rng(0)
    found = [
        proved_worse(random.normal(change, spread, images), random.beta(12, 3, images), TOLERANCE) for _ in range(runs)
    ]
    return float((np.array(found) >= PROOF).mean())


@pytest.mark.parametrize(("change", "images"), [(-0.05, 100), (-0.1, 50), (-0.2, 20)])
def test_a_worse_candidate_is_proved_so(change: float, images: int) -> None:
    assert proved(change, images) >= 0.95


@pytest.mark.parametrize("images", [3, 10, 100])
def test_a_candidate_that_is_just_tolerable_is_not(images: int) -> None:
    assert proved(-TOLERANCE, images, runs=2000) <= 1 / 300


def test_small_losses_that_a_rare_gain_makes_up_for_are_no_proof_though_the_gain_is_not_seen() -> None:
    assert proved_worse(np.full(100, -0.02), np.full(100, 0.5), TOLERANCE) < PROOF


def test_a_candidate_as_good_as_stable_is_hardly_suspected() -> None:
    random = np.random.default_rng(1)
    found = np.array([worse(random.normal(0.0, 0.05, 100), TOLERANCE) for _ in range(2000)])
    assert (found >= math.log(20.0)).mean() <= 0.002


def test_p_is_that_of_students_t() -> None:
    # t = 3 with 9 degrees of freedom: p = .00748
    differences = np.array([-1.0, 1.0] * 5)
    shifted = differences - 3.0 * differences.std(ddof=1) / math.sqrt(10)
    assert math.exp(-worse(shifted, 0.0)) == pytest.approx(0.00748, rel=0.03)


@pytest.mark.parametrize("images", [0, 1, 2])
def test_fewer_than_three_images_prove_nothing(images: int) -> None:
    assert worse(np.full(images, -1.0), TOLERANCE) == 0.0
    assert proved_worse(np.full(images, -1.0), np.ones(images), TOLERANCE) < PROOF


def test_equal_differences_are_judged_without_a_warning() -> None:
    assert worse(np.full(20, -0.3), TOLERANCE) > PROOF
    assert worse(np.zeros(20), TOLERANCE) == pytest.approx(0.0, abs=1e-6)
