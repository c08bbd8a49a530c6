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


def test_small_coins_are_for_fine_points_and_large_ones_for_coarse_points() -> None:
    from targets import assign, coins_of
    from yolo import STRIDES, points_of

    labels = np.zeros((SIZE, SIZE), np.uint8)
    disc(labels, 1, 30, 30, 8)
    disc(labels, 2, 80, 80, 40)
    points = points_of(SIZE)

    owner = assign(coins_of(labels), points)

    assert set(points.stride[owner == 0].tolist()) == {STRIDES[0]}
    assert set(points.stride[owner == 1].tolist()) == {STRIDES[2]}


def test_a_scene_without_coins_is_all_background() -> None:
    from targets import BACKGROUND, assign, coins_of
    from yolo import points_of

    coins = coins_of(np.zeros((SIZE, SIZE), np.uint8))

    assert coins.boxes.shape == (0, 4)
    assert (assign(coins, points_of(SIZE)) == BACKGROUND).all()
