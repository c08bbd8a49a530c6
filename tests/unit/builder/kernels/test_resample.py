"""Antialiased resizing against torch and Pillow."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.resample import resample

# torch 2.13 takes an image of one column for one in channels-last order and resizes it wrongly: two at least.
SIDE = st.integers(2, 70)
METHODS: Any = st.sampled_from(["bilinear", "cubic"])


def picture(height: int, width: int, channels: int, dtype: Any, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True).astype(dtype)


def by_torch(pixels: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Unrounded, in float64."""
    import torch
    from torch.nn import functional

    tensor = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1).contiguous()[None]
    mode = "bicubic" if method == "cubic" else "bilinear"
    resized = functional.interpolate(tensor, (height, width), mode=mode, antialias=True)
    return np.clip(resized[0].permute(1, 2, 0).numpy(), 0, np.iinfo(pixels.dtype).max)


# float64 from torch; of 16 bits float32's own errors are visible
@pytest.mark.parametrize(("dtype", "within"), [(np.uint8, 0.5 + 1e-4), (np.uint16, 0.55)])
@settings(max_examples=125, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from([1, 3]), METHODS, st.integers(0, 2**32 - 1))
def test_values_are_the_nearest_to_what_torch_gives_in_float64(
    dtype: type, within: float, height: int, width: int, to_height: int, to_width: int, channels: int, method: Any,
    seed: int,
) -> None:  # fmt: skip
    pixels = picture(height, width, channels, dtype, seed)

    made = resample(pixels, to_height, to_width, method)

    assert made.dtype == dtype
    assert np.abs(made - by_torch(pixels, to_height, to_width, method)).max() <= within


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_bilinear_is_within_a_grey_level_of_pillow(
    height: int, width: int, to_height: int, to_width: int, seed: int
) -> None:
    # Pillow rounds between its two passes; with cubic it also clamps there, and may be many levels off.
    pixels = picture(height, width, 3, np.uint8, seed)
    theirs = PIL.Image.fromarray(pixels).resize((to_width, to_height), PIL.Image.Resampling.BILINEAR)

    made = resample(pixels, to_height, to_width, "bilinear")

    assert np.abs(made.astype(int) - np.asarray(theirs)).max() <= 1


@settings(max_examples=125, deadline=None)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from([1, 3]), METHODS, st.integers(0, 2**32 - 1))
def test_rounded_after_each_pass_bytes_are_what_torch_makes_of_them(
    height: int, width: int, to_height: int, to_width: int, channels: int, method: Any, seed: int
) -> None:
    import torch
    from torch.nn import functional

    pixels = picture(height, width, channels, np.uint8, seed)
    mode = "bicubic" if method == "cubic" else "bilinear"
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    theirs = functional.interpolate(tensor, (to_height, to_width), mode=mode, antialias=True)[0].permute(1, 2, 0)

    made = resample(pixels, to_height, to_width, method, "eachPass")

    # Sums of torch are integers, ours float32: wide filters of small weights may differ where sums end with a half.
    assert np.abs(made.astype(int) - theirs.numpy()).max() <= 1
    assert (made != theirs.numpy()).mean() <= 0.005


@pytest.mark.parametrize("method", ["bilinear", "cubic"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (40, 30)])
def test_one_colour_stays_that_colour(size: tuple[int, int], channels: int, method: Any) -> None:
    for pixels in (np.full((1, 1, channels), 201, np.uint8), np.full((57, 33, channels), 201, np.uint8)):
        assert (resample(pixels, *size, method) == 201).all()


def test_the_size_it_has_leaves_an_image_as_it_is() -> None:
    pixels = picture(31, 47, 3, np.uint16, 2)

    assert np.array_equal(resample(pixels, 31, 47, "cubic"), pixels)


def test_pixels_that_do_not_fit_are_refused_with_what_was_seen() -> None:
    with pytest.raises(ValueError, match="pixels are float32"):
        resample(np.zeros((2, 2, 3), np.float32), 4, 4, "bilinear")
    for shape in ((2, 2, 2), (0, 2, 3)):
        with pytest.raises(ValueError, match=rf"shape \({shape[0]}, 2, {shape[2]}\) to 4 x 4"):
            resample(np.zeros(shape, np.uint8), 4, 4, "bilinear")
