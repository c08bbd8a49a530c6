from __future__ import annotations

import numpy as np

SIZE = 128


def disc(labels: np.ndarray, number: int, x: int, y: int, radius: int) -> None:
    rows, columns = np.ogrid[: labels.shape[0], : labels.shape[1]]
    labels[(columns - x) ** 2 + (rows - y) ** 2 <= radius**2] = number


def test_only_the_line_between_touching_coins_is_cut() -> None:
    from train_semantic import target_of

    labels = np.zeros((1, SIZE, SIZE), np.uint8)
    labels[0, 20:60, 20:60] = 1
    labels[0, 20:60, 60:90] = 2

    target, weight = target_of(labels)

    cut = (labels > 0) & (target == 0)
    assert sorted(set(np.nonzero(cut)[2])) == [59, 60]
    assert (weight[cut] == 5).all()
    assert (weight[~cut] == 1).all()


def test_every_coin_has_a_point_near_its_centre_that_answers_for_it() -> None:
    import torch
    from targets import BACKGROUND, IGNORED, assign, coins_of
    from yolo import points_of

    labels = np.zeros((SIZE, SIZE), np.uint8)
    for number, coin in enumerate(((20, 20, 9), (90, 30, 20), (50, 90, 34)), 1):
        disc(labels, number, *coin)
    coins, points = coins_of(labels), points_of(SIZE)

    owner = assign(coins, points)

    assert set(owner.tolist()) == {BACKGROUND, IGNORED, 0, 1, 2}
    for index, (left, top, right, bottom) in enumerate(coins.boxes.tolist()):
        mine = owner == index
        assert torch.all((points.x[mine] > left) & (points.x[mine] < right))
        assert torch.all((points.y[mine] > top) & (points.y[mine] < bottom))
