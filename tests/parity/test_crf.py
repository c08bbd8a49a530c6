"""The CRF against pydensecrf2."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.densecrf import dense_crf, log_softmax, scene
from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.crf import Crf
from segserve_builder.values import Logits, ResizeTransform


def refined(image: np.ndarray, logits: np.ndarray, **options: object) -> np.ndarray:
    value = Logits(logits, ResizeTransform.of(*image.shape[:2]), guide=image)
    return Crf(**options)(value, RequestOptions()).values


@pytest.mark.needs("pydensecrf")
@pytest.mark.parametrize("labels", [2, 21, 150])
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_labels_are_those_of_pydensecrf(labels: int, seed: int) -> None:
    image, logits, _ = scene(240, 320, labels, seed)
    unary = -log_softmax(logits)

    expected = dense_crf(image, unary).argmax(0)
    found = refined(image, logits).argmax(0)

    assert (found == expected).mean() >= 0.9999
    assert (expected != logits.argmax(0)).mean() > 0.01  # there was something to refine


@pytest.mark.needs("pydensecrf")
@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea"])
def test_exact_labels_of_photographs_are_those_of_pydensecrf(name: str) -> None:
    import skimage.data

    image = np.ascontiguousarray(getattr(skimage.data, name)()[:300, :400])
    _, logits, _ = scene(*image.shape[:2], 6, 3)

    expected = dense_crf(image, -log_softmax(logits))
    found = np.exp(refined(image, logits))

    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.9999
    assert np.quantile(np.abs(found - expected), 0.999) < 1e-3


@pytest.mark.needs("pydensecrf")
def test_labels_that_all_matter_are_all_kept() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 70, 3)).astype(np.uint8)
    logits = rng.normal(size=(37, 60, 70)).astype(np.float32)

    expected = dense_crf(image, -log_softmax(logits))
    found = np.exp(refined(image, logits))

    assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.9999
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.needs("pydensecrf")
@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 50), st.integers(2, 12), st.integers(1, 8), st.floats(2, 200), st.floats(3, 100),
    st.floats(0, 60), st.floats(0.5, 20), st.floats(0, 60), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_nearly_all_clear_decisions_are_those_of_pydensecrf_whatever_the_options(
    height: int, width: int, labels: int, iterations: int, sxy: float, rgb: float, bilateral: float, near: float,
    gaussian: float, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3)).repeat(8, 0).repeat(8, 1)[:height, :width]
    image = np.clip(smooth + rng.integers(-9, 10, smooth.shape), 0, 255).astype(np.uint8)
    logits = rng.normal(size=(labels, height, width), scale=3).astype(np.float32)

    expected = dense_crf(
        image, -log_softmax(logits), iterations, sxy=sxy, rgb=rgb, bilateral=bilateral, near=near, gaussian=gaussian
    )
    found = refined(
        image, logits, iterations=iterations, bilateral_sxy=sxy, bilateral_rgb=rgb, bilateral_weight=bilateral,
        gaussian_sxy=near, gaussian_weight=gaussian,
    )  # fmt: skip

    apart = np.sort(expected, axis=0)[-2:]
    # Where features lie on a boundary of the lattice, a rounding decides which of its vertices exist, and with that how
    # far its blur reaches; strong weights over several iterations then carry one pixel to the other side.
    clear = apart[1] - apart[0] > 0.2
    assert (found.argmax(0) != expected.argmax(0))[clear].sum() <= 1 + 0.01 * clear.sum()
