from __future__ import annotations

import numpy as np
import pytest
from score import InstanceScore, SemanticScore, photograph, score_instances, score_semantic, truth

LABELS = truth()
COINS = [number == LABELS for number in range(1, 25)]


def test_the_truth_is_24_coins_in_one_piece_each() -> None:
    assert LABELS.shape == photograph().shape == (303, 384)
    assert sorted(np.unique(LABELS)) == list(range(25))
    assert [score_semantic(coin, LABELS).parts for coin in COINS] == [1] * 24


def test_the_committed_photograph_is_the_one_of_scikit_image() -> None:
    data = pytest.importorskip("skimage.data")

    np.testing.assert_array_equal(photograph(), data.coins())


def test_the_truth_itself_scores_best() -> None:
    assert score_semantic(LABELS > 0, LABELS) == SemanticScore(1.0, 24)
    assert score_instances(COINS, LABELS) == InstanceScore(24, 0, 1.0)
    assert score_semantic(LABELS > 0, LABELS).good
    assert score_instances(COINS, LABELS).good


@pytest.mark.parametrize(
    ("masks", "found", "false"),
    [
        pytest.param([], 0, 0, id="no mask finds no coin"),
        pytest.param([*COINS, COINS[0]], 24, 1, id="a coin found twice is false once"),
        pytest.param([*COINS[:22], COINS[22] | COINS[23]], 22, 1, id="two coins in one mask are not found"),
        pytest.param([np.zeros_like(COINS[0])], 0, 1, id="an empty mask is false"),
    ],
)
def test_instances_are_counted_one_to_one(masks: list[np.ndarray], found: int, false: int) -> None:
    score = score_instances(masks, LABELS)

    assert (score.found, score.false) == (found, false)
    assert score.good == (found == 24)
