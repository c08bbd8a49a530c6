"""The masks of queries at the image's pixels against torch's interpolate, with pycocotools for the encoding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pycocotools import mask as coco

from segserve_builder.imaging.query_masks import nearest_first
from segserve_builder.kernels.blocks import nearest_rles
from segserve_builder.kernels.queries import rename, resample, winners
from segserve_builder.sampling import Axis, axes
from segserve_builder.values import ResizeTransform

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2

Floats = NDArray[np.float32]


def stretched(height: int, width: int, h: int, w: int) -> tuple[Axis, Axis]:
    return axes(ResizeTransform(height, width, 0, 0, h, w, h, w), h, w)


def interpolated(values: Floats, height: int, width: int) -> Floats:
    from oracles.one_thread import functional, torch

    up = functional.interpolate(torch.from_numpy(values)[None], (height, width), mode="bilinear")
    return np.asarray(up[0].numpy())


def probabilities(k: int, h: int, w: int, seed: int, detail: int = 3) -> Floats:
    from oracles.one_thread import torch

    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(k, max(h // detail, 1), max(w // detail, 1))).astype(np.float32) * 6
    return np.asarray(torch.from_numpy(interpolated(coarse, h, w)).sigmoid().numpy())


def reference(values: Floats, scores: Floats, threshold: float) -> tuple[NDArray[np.int64], ...]:
    """The winners of values at every pixel, as transformers' `compute_segments` finds them."""
    weighted = values * scores[:, None, None]
    labels = weighted.argmax(axis=0)
    return labels, np.bincount(labels.ravel(), minlength=len(scores)), (weighted >= threshold).sum(axis=(1, 2))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.integers(1, 30), st.integers(1, 30), st.integers(1, 70), st.integers(1, 70),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_resampled_values_are_those_of_torch(k: int, h: int, w: int, height: int, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(k, h, w)).astype(np.float32)

    sampled = resample(values, *stretched(height, width, h, w))

    assert np.abs(sampled - interpolated(values, height, width)).max(initial=0) <= 1e-6


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 30), st.integers(1, 30), st.integers(1, 70), st.integers(1, 70),
    st.sampled_from([0.0, 0.3, 0.5, 1.0]), st.integers(1, 6), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_winners_and_areas_are_those_of_the_resampled_values(
    k: int, h: int, w: int, height: int, width: int, threshold: float, detail: int, seed: int
) -> None:
    masks, scores = probabilities(k, h, w, seed, detail), np.random.default_rng(seed).random(k, dtype=np.float32)
    where = stretched(height, width, h, w)

    found = winners(masks, scores, *where, threshold)

    for ours, theirs in zip(found, reference(resample(masks, *where), scores, threshold), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(("net", "size"), [((40, 40), (256, 256)), ((96, 96), (200, 333)), ((96, 96), (61, 40))])
def test_winners_are_those_of_torch_but_for_one_pixel_in_a_million(net: tuple[int, int], size: tuple[int, int]) -> None:
    masks = probabilities(30, *net, seed=1, detail=8)
    scores = np.random.default_rng(2).uniform(0.5, 1, 30).astype(np.float32)

    labels, areas, above = winners(masks, scores, *stretched(*size, *net), 0.5)

    expected, _, expected_above = reference(interpolated(masks, *size), scores, 0.5)
    assert np.count_nonzero(labels != expected) <= 1e-6 * expected.size
    assert areas.sum() == expected.size
    assert np.abs(above - expected_above).max() <= 1


def test_padding_has_no_say() -> None:
    masks = probabilities(5, 24, 24, seed=3)
    scores = np.ones(5, np.float32)
    transform = ResizeTransform(90, 60, 4, 8, 12, 8, 24, 24)

    found = winners(masks, scores, *axes(transform, 24, 24), 0.5)

    alone = winners(masks[:, 4:16, 8:16], scores, *stretched(90, 60, 12, 8), 0.5)
    for ours, theirs in zip(found, alone, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_equal_queries_leave_every_pixel_to_the_first() -> None:
    masks = np.repeat(probabilities(1, 9, 7, seed=4), 3, axis=0)

    labels, areas, _ = winners(masks, np.full(3, 0.7, np.float32), *stretched(50, 30, 9, 7), 0.5)

    assert not labels.any()
    assert areas.tolist() == [1500, 0, 0]


def test_masks_that_are_nowhere_leave_every_pixel_to_the_first() -> None:
    labels, _, above = winners(
        np.zeros((2, 4, 4), np.float32), np.array([0.5, 0.9], np.float32), *stretched(9, 9, 4, 4), 0.5
    )

    assert not labels.any()
    assert not above.any()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 30), st.integers(1, 30), st.integers(1, 70), st.integers(1, 70),
    st.floats(0, 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_masks_of_blocks_are_those_of_nearest_interpolation(
    n: int, h: int, w: int, height: int, width: int, density: float, seed: int
) -> None:
    from oracles.one_thread import functional, torch

    masks = (np.random.default_rng(seed).random((n, h, w)) < density).astype(np.uint8)
    rows, columns = stretched(height, width, h, w)

    counts = nearest_rles(masks, nearest_first(rows), nearest_first(columns))

    near = functional.interpolate(torch.from_numpy(masks)[None].float(), (height, width), mode="nearest")[0]
    expected = [coco.encode(np.asfortranarray(mask))["counts"] for mask in near.numpy().astype(np.uint8)]
    assert list(counts) == expected


def test_of_no_masks_there_is_nothing() -> None:
    where = stretched(9, 7, 4, 4)

    assert resample(np.zeros((0, 4, 4), np.float32), *where).shape == (0, 9, 7)
    assert nearest_rles(np.zeros((0, 4, 4), np.uint8), *(nearest_first(axis) for axis in where)) == ()


def test_labels_are_renamed_in_place() -> None:
    labels = np.array([[0, 1], [2, 1]], np.uint16)

    rename(labels, np.array([7, 0, 65_535], np.uint16))

    assert labels.tolist() == [[7, 0], [65_535, 0]]


def test_what_does_not_fit_is_refused() -> None:
    masks, where = probabilities(2, 8, 8, seed=0), stretched(32, 32, 8, 8)

    with pytest.raises(ValueError, match="2 masks and 3 scores"):
        winners(masks, np.ones(3, np.float32), *where, 0.5)
    with pytest.raises(ValueError, match="allowed are 1 to"):
        winners(masks[:0], np.ones(0, np.float32), *where, 0.5)
    with pytest.raises(ValueError, match="do not cover"):
        winners(masks[:, :7], np.ones(2, np.float32), *where, 0.5)
    with pytest.raises(ValueError, match="do not cover"):
        resample(masks[:, :, :7], *where)
    with pytest.raises(ValueError, match="have 8 rows"):
        nearest_rles(np.zeros((1, 7, 8), np.uint8), *(nearest_first(axis) for axis in where))
    with pytest.raises(ValueError, match="there are 2 names"):
        rename(np.full((1, 1), 2, np.uint16), np.zeros(2, np.uint16))
