"""The threshold of a cascade: what conformal risk control promises, and when a set of images is too small."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segserve_builder.golden.risk_control import (
    ALWAYS_HEAVY,
    ALWAYS_LIGHT,
    TooFewImagesError,
    cascade_threshold,
    images_needed,
    risk_at,
)

PARTS = st.integers(0, 20).map(lambda number: number / 20)
"""Scores and losses, of which many are equal."""


@given(st.lists(st.tuples(PARTS, PARTS), min_size=2, max_size=40), st.sampled_from([0.05, 0.1, 0.2, 0.3, 0.5]))
def test_the_expected_loss_of_an_image_left_out_is_at_most_the_declared_one(
    images: list[tuple[float, float]], max_loss: float
) -> None:
    """Averaged over which image is left out, the theorem holds for any images, not only on average."""
    if len(images) - 1 < images_needed(max_loss):
        return

    lost = []
    for index, (score, loss) in enumerate(images):
        others = images[:index] + images[index + 1 :]
        threshold = cascade_threshold(*zip(*others, strict=True), max_loss).threshold
        lost.append(loss if score < threshold else 0.0)

    assert np.mean(lost) <= max_loss + 1e-12


@given(st.lists(st.tuples(PARTS, PARTS), min_size=9, max_size=40))
def test_no_higher_threshold_that_moves_an_image_keeps_the_bound(images: list[tuple[float, float]]) -> None:
    scores, losses = zip(*images, strict=True)

    found = cascade_threshold(scores, losses, 0.1)

    assert found.loss_bound <= 0.1
    higher = [score for score in scores if found.threshold <= score < ALWAYS_LIGHT]
    assert not higher or risk_at(float(np.nextafter(min(higher), 2)), scores, losses).loss_bound > 0.1


def test_simulated_sets_lose_what_was_declared_at_most_and_not_much_less() -> None:
    """Light answers of unsure images lose more; 400 sets of 400 images, each judged on 2,000 further ones."""
    rng = np.random.default_rng(0)

    def draw(number: int) -> tuple[np.ndarray, np.ndarray]:
        scores = rng.beta(1, 4, number)
        return scores, np.where(rng.random(number) < scores, rng.random(number), 0.0)

    lost, shares = [], []
    for _ in range(400):
        scores, losses = draw(400)
        found = cascade_threshold(scores.tolist(), losses.tolist(), 0.02)
        further, worse = draw(2000)
        lost.append(worse[further < found.threshold].sum() / len(worse))
        shares.append(found.heavy_share)

    assert 0.015 < np.mean(lost) < 0.0203  # the standard error of the mean is 0.0001
    assert 0.1 < np.mean(shares) < 0.9


@pytest.mark.parametrize(("max_loss", "needed"), [(0.005, 199), (0.01, 99), (0.05, 19), (0.3, 3), (0.5, 1)])
def test_a_set_that_is_too_small_says_how_many_images_are_needed(max_loss: float, needed: int) -> None:
    assert cascade_threshold([0.1] * needed, [0.0] * needed, max_loss).threshold == ALWAYS_LIGHT
    if needed > 1:
        with pytest.raises(TooFewImagesError, match=f"needs at least {needed} images, got {needed - 1}"):
            cascade_threshold([0.1] * (needed - 1), [0.0] * (needed - 1), max_loss)


def test_a_light_network_that_never_loses_is_always_enough() -> None:
    found = cascade_threshold([0.2, 0.4, 0.9] * 10, [0.0] * 30, 0.05)

    assert (found.threshold, found.heavy_share, found.loss) == (ALWAYS_LIGHT, 0.0, 0.0)
    assert found.loss_bound == pytest.approx(1 / 31)


def test_a_light_network_that_always_loses_is_never_enough() -> None:
    found = cascade_threshold([0.5] * 30, [1.0] * 30, 0.05)

    assert (found.threshold, found.heavy_share, found.loss) == (ALWAYS_HEAVY, 1.0, 0.0)


def test_the_threshold_is_halfway_between_two_scores() -> None:
    found = cascade_threshold([0.1, 0.2, 0.4] * 10, [0.0, 0.0, 1.0] * 10, 0.05)

    assert found.threshold == pytest.approx(0.3)
    assert found.heavy_share == pytest.approx(1 / 3)


def test_an_answer_with_nothing_to_tell_always_goes_to_the_heavy_network() -> None:
    found = cascade_threshold([1.0] * 10 + [0.1] * 10, [1.0] * 10 + [0.0] * 10, 0.1)

    assert (found.threshold, found.heavy_share) == (pytest.approx(0.55), 0.5)


@pytest.mark.parametrize(
    ("scores", "losses", "max_loss", "says"),
    [
        ([], [], 0.1, "expected one of each"),
        ([0.1], [0.1, 0.2], 0.1, "expected one of each"),
        ([float("nan")], [0.1], 0.5, "scores reach from nan"),
        ([0.1], [1.5], 0.5, "losses reach from 1.5 to 1.5; expected 0 to 1"),
        ([0.1], [0.1], 0.0, "the largest loss is 0; expected above 0 and below 1"),
        ([0.1], [0.1], 1.0, "the largest loss is 1; expected above 0 and below 1"),
    ],
)
def test_what_is_no_measurement_is_refused(
    scores: list[float], losses: list[float], max_loss: float, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        cascade_threshold(scores, losses, max_loss)
