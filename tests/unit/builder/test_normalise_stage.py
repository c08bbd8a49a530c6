from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from segserve_builder.stages.base import RequestOptions
from segserve_builder.stages.normalise import Normalise
from segserve_builder.values import Image, ResizeTransform

RNG = np.random.default_rng(5)
SCALE = st.one_of(st.none(), st.floats(1e-4, 2))
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def normalise(pixels: np.ndarray, **options: Any) -> np.ndarray:
    value = Normalise(**options)(Image(pixels, ResizeTransform.of(*pixels.shape[:2])), RequestOptions())
    assert value.transform == ResizeTransform.of(*pixels.shape[:2])
    return value.pixels


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"scale": 1.0}, {"scale": 0.01, "mean": (3.5,), "std": (7.0,)}, IMAGENET, {"mean": (0.5,), "std": (0.25,)}],
    ids=str,
)
def test_every_pixel_is_the_formula_in_float64_rounded_once(options: dict[str, Any], channels: int, dtype: Any) -> None:
    options = {name: value if name == "scale" else value[:channels] for name, value in options.items()}
    pixels = RNG.integers(0, np.iinfo(dtype).max, (19, 31, channels), endpoint=True).astype(dtype)
    largest = float(np.iinfo(dtype).max)
    scaled = pixels * options["scale"] if "scale" in options else pixels / largest
    expected = ((scaled - np.array(options.get("mean", 0.0))) / np.array(options.get("std", 1.0))).astype(np.float32)
    given = normalise(pixels, **options)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("options", [{}, IMAGENET, {"scale": 0.017, "mean": (1 / 3,), "std": (0.7,)}], ids=str)
def test_the_tensor_made_in_one_pass_is_the_stage_s_own_transposed_and_rounded(
    options: dict[str, Any], channels: int, dtype: Any
) -> None:
    options = {name: value if name == "scale" else value[:channels] for name, value in options.items()}
    largest = np.iinfo(dtype).max
    every = np.resize(np.arange(largest + 1, dtype=dtype), (largest + 1, channels, channels))
    floats = normalise(every, **options)
    for half in (False, True):
        expected = floats.astype(np.float16) if half else floats
        for channels_first in (False, True):
            made = Normalise(**options).tensor(every, half=half, channels_first=channels_first)
            assert made.dtype == expected.dtype
            np.testing.assert_array_equal(made, expected.transpose(2, 0, 1) if channels_first else expected)


@settings(max_examples=100, deadline=None)
@given(SCALE, st.lists(st.floats(-3, 3), min_size=3, max_size=3), st.lists(st.floats(1e-3, 3), min_size=3, max_size=3))
def test_whatever_the_options_planes_are_those_of_the_formula(
    scale: float | None, mean: list[float], std: list[float]
) -> None:
    every = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, 2)
    stage = Normalise(scale=scale, mean=tuple(mean), std=tuple(std))
    scaled = every / 255.0 if scale is None else every * scale
    expected = ((scaled - np.array(mean)) / np.array(std)).astype(np.float32)
    made = stage.tensor(every, half=False, channels_first=True)
    np.testing.assert_array_equal(made, expected.transpose(2, 0, 1))


def test_it_is_within_5e_7_of_torchvision_s_float32_steps() -> None:
    pixels = RNG.integers(0, 256, (32, 32, 3)).astype(np.uint8)
    mean, std = (np.float32(IMAGENET[name]) for name in ("mean", "std"))
    theirs = (pixels.astype(np.float32) / np.float32(255) - mean) / std
    np.testing.assert_allclose(normalise(pixels, **IMAGENET), theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    "options",
    [
        {"std": (0.0,)},
        {"std": (1.0, -1.0, 1.0)},
        {"mean": ()},
        {"mean": (float("nan"),)},
        {"scale": 0},
        {"scale": float("inf")},
        {"sd": 1},
    ],
    ids=str,
)
def test_options_without_meaning_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Normalise(**options)
