"""The stage that looks at the image: the CRF."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.errors import BadImageError
from segserve_builder.imaging import refinement
from segserve_builder.stages.argmax import Argmax
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.crf import Crf
from segserve_builder.values import Logits, ResizeTransform


def halves(height: int, width: int, labels: int = 3, seed: int = 0) -> Logits:
    """An image whose left half is dark, and logits that put the border between labels 0 and 1 elsewhere."""
    rng = np.random.default_rng(seed)
    image = np.where(np.arange(width) < width // 2, 60, 190)[None, :, None] + rng.integers(-5, 6, (height, width, 3))
    border = width // 2 + np.rint(np.sin(np.arange(height) / 3) * width / 12)
    right = np.arange(width)[None] >= border[:, None]
    logits = np.full((labels, height, width), -20, np.float32)
    logits[0], logits[1] = np.where(right, -1, 1), np.where(right, 1, -1)
    return Logits(logits, ResizeTransform.of(height, width), guide=image.astype(np.uint8))


def test_borders_move_to_the_edges_of_the_image() -> None:
    value = halves(60, 80)
    truth = np.broadcast_to(np.arange(80) >= 40, (60, 80))

    labels = Argmax()(Crf()(value, RequestOptions()), RequestOptions()).labels

    assert (labels != truth).sum() < 0.1 * (value.values.argmax(0) != truth).sum()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 12), st.integers(1, 12), st.integers(1, 20), st.integers(1, 20), st.integers(1, 11),
    st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_answer_is_log_probabilities_of_the_image_without_padding(
    h: int, w: int, height: int, width: int, labels: int, top: int, left: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(labels, h, w), scale=5).astype(np.float32)
    transform = ResizeTransform(2 * height, 3 * width, top, left, height, width, height + 2 * top, width + left)
    guide = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    value = Logits(logits, transform, 2.0, frozenset({1}), guide)

    given = Crf()(value, RequestOptions())

    assert given.values.shape == (labels, height, width)
    assert given.values.dtype == np.float32
    assert np.isfinite(given.values).all()
    assert given.transform == ResizeTransform(2 * height, 3 * width, 0, 0, height, width, height, width)
    assert (given.temperature, given.things) == (1.0, frozenset({1}))
    if labels > 1:
        np.testing.assert_allclose(np.exp(given.values).sum(0), 1, atol=2e-2)
    assert Argmax()(given, RequestOptions()).labels.shape == (2 * height, 3 * width)


def test_one_channel_is_the_logit_of_the_second_of_two() -> None:
    two = halves(30, 40, 2)
    one = replace(two, values=two.values[1:] - two.values[:1])

    given, expected = Crf()(one, RequestOptions()).values, Crf()(two, RequestOptions()).values

    np.testing.assert_allclose(given[0], expected[1] - expected[0], atol=1e-4)


def test_the_temperature_divides_the_logits() -> None:
    value = halves(30, 40)
    hot = replace(value, values=value.values * 3, temperature=3.0)

    np.testing.assert_allclose(Crf()(hot, RequestOptions()).values, Crf()(value, RequestOptions()).values, atol=1e-3)


def test_a_label_that_is_improbable_everywhere_changes_nothing() -> None:
    without = halves(30, 40, 2)
    with_it = replace(without, values=np.concatenate([without.values, np.full((1, 30, 40), -12, np.float32)]))

    few, many = Crf()(without, RequestOptions()).values, Crf()(with_it, RequestOptions()).values

    assert np.array_equal(few, many[:2])
    assert (many[2] < few.min()).all()


def test_an_image_that_is_too_large_is_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "MAX_PIXELS", 1199)
    with pytest.raises(BadImageError, match="is 40 x 30; up to 1199 pixels"):
        Crf()(halves(30, 40), RequestOptions())


def test_too_many_classes_for_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refinement, "MAX_BYTES", 150_000)
    with pytest.raises(BadImageError, match="with 3 classes"):
        Crf()(halves(30, 40), RequestOptions())


def test_a_lattice_that_is_too_large_is_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_builder.kernels.crf.LATTICE_BYTES", 10_000)
    with pytest.raises(BadImageError, match="more than 56 vertices"):
        Crf()(halves(30, 40), RequestOptions())


def test_a_missing_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the guide is None; uint8 \(30, 40, 3\) is expected"):
        Crf()(replace(halves(30, 40), guide=None), RequestOptions())
