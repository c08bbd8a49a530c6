"""Pixels to numbers, in the order that a network wants, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from segserve_builder.kernels.planes import affine_planes, looked_up

RNG = np.random.default_rng(2)
SHAPES = [(1, 1), (7, 5), (33, 130)]


def pixels(height: int, width: int, channels: int, dtype: Any) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max, (height, width, channels), endpoint=True).astype(dtype)


def strided(array: np.ndarray) -> np.ndarray:
    """The same pixels, read-only and not contiguous."""
    wide = array.repeat(2, axis=1)[:, ::2]
    wide.setflags(write=False)
    return wide


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("value", [np.float32, np.float16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_looked_up_in_its_channel(
    channels: int, dtype: Any, value: Any, channels_first: bool, shape: tuple[int, int]
) -> None:
    given = pixels(*shape, channels, dtype)
    table = RNG.normal(size=(channels, 256**given.itemsize)).astype(value)
    expected = np.stack([table[k][given[..., k]] for k in range(channels)], axis=0 if channels_first else 2)

    for made in (looked_up(given, table, channels_first), looked_up(strided(given), table, channels_first)):
        assert made.dtype == value
        assert made.flags.c_contiguous
        np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_whole_numbers_come_through_factor_and_offset_exactly(channels: int, shape: tuple[int, int]) -> None:
    given = pixels(*shape, channels, np.uint8)
    factor, offset = np.arange(1.0, channels + 1), -7.0 * np.arange(channels)

    for made in (affine_planes(given, factor, offset), affine_planes(strided(given), factor, offset)):
        assert made.dtype == np.float32
        np.testing.assert_array_equal(made, (given * factor + offset).transpose(2, 0, 1))


def test_no_pixels_give_no_numbers() -> None:
    assert looked_up(np.zeros((0, 4, 3), np.uint8), np.zeros((3, 256), np.float32), True).shape == (3, 0, 4)
    assert affine_planes(np.zeros((4, 0, 1), np.uint8), np.ones(1), np.ones(1)).shape == (1, 4, 0)


def test_arrays_that_do_not_fit_are_refused_with_what_was_seen() -> None:
    grey = np.zeros((2, 2, 1), np.uint8)
    with pytest.raises(ValueError, match="pixels are int16"):
        looked_up(grey.astype(np.int16), np.zeros((1, 256), np.float32), True)
    with pytest.raises(ValueError, match="the table float64"):
        looked_up(grey, np.zeros((1, 256)), True)
    with pytest.raises(ValueError, match=r"shape \(3, 256\) for uint8 and 1 channels"):
        looked_up(grey, np.zeros((3, 256), np.float32), True)
    with pytest.raises(ValueError, match="for 2 channels, 1 or 3"):
        affine_planes(np.zeros((2, 2, 2), np.uint8), np.ones(2), np.ones(2))
