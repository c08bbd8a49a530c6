"""Scores in lanes against torch's bilinear interpolation, written out in numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.crf_scores import DROPPED_LOG, LEAST_LOG, label_planes, label_scores
from segserve_builder.kernels.crf_softmax import EMPTY
from segserve_builder.sampling import Axis


def upsampled(logits: np.ndarray, rows: Axis, columns: Axis) -> np.ndarray:
    """The logits (C, rows.size, columns.size) at the pixels of both axes."""

    def sampled(values: np.ndarray, axis: Axis) -> np.ndarray:
        position = np.clip((np.arange(axis.size) + 0.5) * axis.scale + axis.bias, 0, axis.cells - 1)
        near = np.floor(position).astype(int)
        far = np.minimum(near + 1, axis.cells - 1)
        inside = values[..., axis.first : axis.first + axis.cells]
        return inside[..., near] * (1 - (position - near)) + inside[..., far] * (position - near)

    return sampled(sampled(logits.astype(float), columns).swapaxes(1, 2), rows).swapaxes(1, 2)


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20),
    st.integers(0, 3), st.sampled_from([0.5, 1.0, 3.0]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_scores_are_the_logits_at_the_pixels_below_their_best(
    labels: int, h: int, w: int, height: int, width: int, pad: int, temperature: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(labels, h, w), scale=4).astype(np.float32)
    logits.setflags(write=False)
    rows = Axis.of(height, height, pad, height + 2 * pad, h)
    columns = Axis.of(width, width, pad, width + pad, w)

    scores, kept = label_scores(logits, rows, columns, temperature, 1e-2)

    expected = upsampled(logits, rows, columns) / temperature
    expected -= expected.max(0)
    lanes = scores.transpose(0, 3, 1, 2).reshape(-1, height, width)
    np.testing.assert_allclose(lanes[: len(kept)], expected[kept], atol=1e-4)
    assert (lanes[len(kept) :] <= EMPTY / 10).all()
    nearest = np.exp(expected.max((1, 2)))
    assert set(np.flatnonzero(nearest > 1.001e-2)) <= set(kept) <= set(np.flatnonzero(nearest > 0.999e-2))


def test_a_label_that_was_left_out_wins_nowhere_between_pixels() -> None:
    scores = np.full((1, 1, 4, 8), -1000, np.float32)
    scores[0, 0, range(4), range(4)] = 0

    planes = label_planes(scores, np.array([0, 1, 3, 4]), 6)

    assert planes[[2, 5]].max() == DROPPED_LOG
    assert planes[[0, 1, 3, 4]].min() == LEAST_LOG
    assert planes.mean((1, 2)).argmax() in (0, 1, 3, 4)


def test_logits_that_do_not_cover_the_axes_are_refused() -> None:
    with pytest.raises(ValueError, match="do not cover"):
        label_scores(np.zeros((2, 3, 3), np.float32), Axis.of(4, 4, 0, 4, 4), Axis.of(3, 3, 0, 3, 3), 1, 0.1)
