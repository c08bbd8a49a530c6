from __future__ import annotations

import numpy as np
from scenes import draw_pool, draw_scene


def test_the_same_seed_draws_the_same_scene() -> None:
    first = draw_scene(np.random.default_rng(7), 128)
    second = draw_scene(np.random.default_rng(7), 128)

    np.testing.assert_array_equal(first, second)


def test_a_pool_does_not_depend_on_its_processes() -> None:
    images, labels = draw_pool(27, 64, seed=3, processes=1)
    again = draw_pool(27, 64, seed=3, processes=2)

    assert images.shape == labels.shape == (27, 64, 64)
    np.testing.assert_array_equal((images, labels), again)


def test_coins_are_labelled_where_they_are_drawn() -> None:
    rng = np.random.default_rng(0)
    scenes = [draw_scene(rng, 256) for _ in range(12)]
    jumps = []
    for image, labels in scenes:
        coin = labels > 0
        if coin.mean() > 0.02 and not coin.all():
            jumps.append(abs(float(image[coin].mean()) - float(image[~coin].mean())))

    assert len(jumps) >= 8
    assert np.median(jumps) > 15
