"""Statistics of images: numbers against numpy and scipy, and what cameras that go wrong do to them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from segserve_builder.steps.image_statistics import LEVELS, measure

RNG = np.random.default_rng(5)


def scene(height: int = 400, width: int = 600) -> NDArray[np.uint8]:
    """Stripes under a bright sky, with a little noise of the camera."""
    rows = np.linspace(200, 60, height)[:, None] + 30 * np.sin(np.arange(height) / 6)[:, None]
    noise = RNG.normal(0, 2, (height, width, 3))
    pixels: NDArray[np.uint8] = np.clip(rows[:, :, None] + noise, 0, 255).astype(np.uint8)
    return pixels


def as_jpeg(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(64, 64), (33, 50), (1, 40), (40, 1), (1, 1)])
def test_of_a_small_image_every_pixel_counts(shape: tuple[int, int], channels: int, dtype: Any) -> None:
    from scipy import ndimage

    most = np.iinfo(dtype).max
    pixels = RNG.integers(0, most, (*shape, channels), endpoint=True).astype(dtype)
    grey = pixels.mean(axis=2)
    mean, half = grey.mean(), -(-shape[0] // 2)
    laplacian = np.abs(ndimage.laplace(grey, mode="nearest")) / 4 / mean
    down, right = (ndimage.correlate1d(grey, [-1, 0, 1], axis, mode="nearest") for axis in (0, 1))
    energy = (down**2).sum() + (right**2).sum()
    top, bottom = grey[:half].mean(), grey[half:].mean() if half < shape[0] else grey[:half].mean()

    found = measure(pixels)

    assert found.brightness == pytest.approx(mean / most)
    assert found.contrast == pytest.approx(grey.std() / mean, abs=1e-6)
    assert found.detail == pytest.approx(min(np.quantile(laplacian, 0.5, method="lower"), 1), abs=1.01 / LEVELS)
    assert found.vertical_gradients == pytest.approx((down**2).sum() / energy if energy else 0.5)
    assert found.top_brightness == pytest.approx(top / (top + bottom))


def test_a_black_image_has_neither_contrast_nor_detail_nor_direction() -> None:
    assert measure(np.zeros((50, 70, 3), np.uint8)) == (0.0, 0.0, 0.0, 0.5, 0.5)


def test_the_layout_in_memory_does_not_matter() -> None:
    pixels = scene()
    turned = np.ascontiguousarray(pixels.transpose(1, 0, 2)).transpose(1, 0, 2)
    turned.setflags(write=False)

    assert measure(turned) == measure(pixels)


def test_noise_adds_detail_and_blur_and_artefacts_of_jpeg_remove_it() -> None:
    pixels = scene()
    usual = measure(pixels)
    noisy = np.clip(pixels + RNG.normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
    blurred = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3)))

    assert measure(noisy).detail > 4 * usual.detail
    assert measure(blurred).detail < usual.detail / 2
    assert measure(as_jpeg(pixels, 8)).detail < usual.detail / 2
