"""The CRF's mean field against a permutohedral lattice in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.crf import Terms, refine
from segserve_builder.kernels.crf_lattice import LatticeTooLargeError
from segserve_builder.kernels.crf_softmax import EMPTY

TERMS = Terms(80, 13, 10, 3, 3)


class Lattice:
    """A Gaussian filter in the space of `features` (N, d), after Adams, Baek and Davis; normalised symmetrically."""

    def __init__(self, features: np.ndarray) -> None:
        n, d = features.shape
        self.d = d
        stretch = math.sqrt(2 / 3) * (d + 1) / np.sqrt(np.arange(1, d + 1) * np.arange(2, d + 2))
        scaled = features * stretch
        basis = np.zeros((d + 1, d))
        for i in range(d):
            basis[: i + 1, i] = 1
            basis[i + 1, i] = -(i + 1)
        self.index: dict[tuple[int, ...], int] = {}
        self.places = [self._place(point) for point in scaled @ basis.T]
        # Ones must stay ones, as far as a symmetric weight can do that.
        self.norm = np.ones((n, 1))
        self.norm = 1 / np.sqrt(self(np.ones((n, 1))) + 1e-20)

    def _place(self, point: np.ndarray) -> list[tuple[int, float]]:
        d = self.d
        base = np.rint(point / (d + 1)).astype(int) * (d + 1)
        rest = point - base
        rank = np.array(
            [sum(rest[j] > rest[i] or (rest[j] == rest[i] and j < i) for j in range(d + 1)) for i in range(d + 1)]
        )
        rank += base.sum() // (d + 1)
        turn = (d + 1) * ((rank < 0).astype(int) - (rank > d))
        rank, base, rest = rank + turn, base + turn, (point - base - turn) / (d + 1)
        ordered = rest[np.argsort(rank)]
        weights = [1 + ordered[d] - ordered[0], *(ordered[d - r] - ordered[d + 1 - r] for r in range(1, d + 1))]
        vertices = [tuple((base + r - (d + 1) * (rank > d - r)).tolist()) for r in range(d + 1)]
        return [(self.index.setdefault(v, len(self.index)), w) for v, w in zip(vertices, weights, strict=True)]

    def __call__(self, values: np.ndarray) -> np.ndarray:
        values = values * self.norm
        sums = np.zeros((len(self.index), values.shape[1]))
        for place, value in zip(self.places, values, strict=True):
            for vertex, weight in place:
                sums[vertex] += weight * value
        for j in range(self.d + 1):
            step = np.ones(self.d + 1, int)
            step[j] -= self.d + 1
            blurred = sums.copy()
            for key, sign in itertools.product(self.index, (-1, 1)):
                other = self.index.get(tuple((np.array(key) + sign * step).tolist()))
                if other is not None:
                    blurred[self.index[key]] += sums[other] / 2
            sums = blurred
        sliced = np.array([sum(weight * sums[vertex] for vertex, weight in place) for place in self.places])
        return sliced / (1 + 2.0**-self.d) * self.norm


def mean_field(logits: np.ndarray, image: np.ndarray, terms: Terms, iterations: int) -> np.ndarray:
    """Log probabilities (H, W, C) of `logits` (H, W, C)."""
    height, width, labels = logits.shape
    y, x = np.mgrid[:height, :width].reshape(2, -1)
    near = Lattice(np.stack([x, y], 1) / terms.gaussian_xy)
    at = np.stack([x, y], 1) / terms.bilateral_xy
    alike = Lattice(np.concatenate([at, image.reshape(-1, 3) / terms.bilateral_rgb], 1))
    unary = logits.reshape(-1, labels).astype(float)
    scores = unary
    for _ in range(iterations):
        q = np.exp(scores - scores.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
        scores = unary + terms.bilateral_weight * alike(q) + terms.gaussian_weight * near(q)
    scores = scores - scores.max(1, keepdims=True)
    return (scores - np.log(np.exp(scores).sum(1, keepdims=True))).reshape(logits.shape)


def lanes(logits: np.ndarray) -> np.ndarray:
    """Logits (H, W, C) as scores (G, H, W, 8)."""
    labels = logits.shape[2]
    groups = -(-labels // 8)
    scores = np.full((*logits.shape[:2], groups * 8), EMPTY, np.float32)
    scores[..., :labels] = logits - logits.max(2, keepdims=True)
    return np.ascontiguousarray(scores.reshape(*logits.shape[:2], groups, 8).transpose(2, 0, 1, 3))


def planes(scores: np.ndarray, labels: int) -> np.ndarray:
    return scores.transpose(1, 2, 0, 3).reshape(*scores.shape[1:3], -1)[..., :labels]


def an_image(height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (height // 3 + 1, width // 3 + 1, 3)).repeat(3, 0).repeat(3, 1)[:height, :width]
    return np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 7), st.integers(1, 8), st.integers(2, 19), st.integers(0, 4), st.floats(0, 99), st.floats(0, 99),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_the_mean_field_is_that_of_the_definition(
    height: int, width: int, labels: int, iterations: int, bilateral: float, gaussian: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    image = an_image(height, width, seed)
    logits = rng.normal(size=(height, width, labels), scale=2)
    # Round deviations put pixels between simplices, where a rounding decides which vertices are there to be blurred.
    xy, rgb, near = np.exp(rng.uniform(np.log([1.5, 2.3, 0.7]), np.log(99)))
    terms = Terms(xy, rgb, bilateral, near, gaussian)
    scores = lanes(logits)

    refine(scores, image, terms, iterations)

    expected, found = mean_field(logits, image, terms, iterations), planes(scores, labels)
    assert np.isfinite(found).all()
    if iterations * (bilateral + gaussian) < 30:  # more than that turns roundings into other labels
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("weight", [8.0, 40.0, 400.0])
def test_large_weights_do_not_overflow(weight: float) -> None:
    image, logits = an_image(12, 15, 1), np.random.default_rng(1).normal(size=(12, 15, 3), scale=3)
    terms = Terms(80, 13, weight, 3, weight)
    scores = lanes(logits)

    refine(scores, image, terms, 1)

    np.testing.assert_allclose(planes(scores, 3), mean_field(logits, image, terms, 1), rtol=1e-3, atol=1e-2)


def test_an_image_that_is_not_uint8_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32 \(4, 4, 3\); uint8 \(4, 4, 3\) is expected"):
        refine(np.zeros((1, 4, 4, 8), np.float32), np.zeros((4, 4, 3), np.float32), TERMS, 1)


def test_a_lattice_whose_keys_would_overflow_is_refused() -> None:
    image = np.zeros((2, 4000, 3), np.uint8)
    with pytest.raises(LatticeTooLargeError, match=r"3999 / 0.05, .* 62 are allowed"):
        refine(np.zeros((1, 2, 4000, 8), np.float32), image, Terms(0.05, 0.05, 1, 3, 1), 1)


def test_a_lattice_of_too_many_vertices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_builder.kernels.crf.LATTICE_BYTES", 10_000)
    with pytest.raises(LatticeTooLargeError, match="more than 56 vertices"):
        refine(np.zeros((1, 20, 20, 8), np.float32), an_image(20, 20, 0), TERMS, 1)


def test_tiny_deviations_leave_every_pixel_to_itself() -> None:
    image, logits = an_image(9, 9, 5), np.random.default_rng(5).normal(size=(9, 9, 4), scale=2)
    scores = lanes(logits)

    refine(scores, image, Terms(0.3, 0.5, 1, 0.1, 1), 5)

    assert np.array_equal(planes(scores, 4).argmax(2), logits.argmax(2))
