"""Masks of classes that may overlap, against torch's interpolate and sigmoid with pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve_builder.kernels.class_masks import class_masks
from segserve_builder.sampling import axes
from segserve_builder.values import ResizeTransform

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, numpy 2


def upsampled(logits: np.ndarray, size: tuple[int, int], aligned: bool = False) -> np.ndarray:
    from oracles.one_thread import functional, torch

    stacked = torch.from_numpy(np.ascontiguousarray(logits))[None]
    return functional.interpolate(stacked, size, mode="bilinear", align_corners=aligned)[0].numpy()


def decoded(counts: bytes, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(coco.decode({"size": list(size), "counts": counts})) > 0


def confident(values: np.ndarray, masks: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    likely = 1 / (1 + np.exp(-values.astype(np.float64) / temperature))
    return np.array([p[m].sum() for p, m in zip(likely, masks, strict=True)])


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("kind", ["smooth", "noise", "rare"])
def test_the_strings_of_torch_and_pycocotools(kind: str, aligned: bool) -> None:
    from oracles.one_thread import torch

    noise = np.random.default_rng(0).normal(size=(7, 48, 40)).astype(np.float32)
    smooth = upsampled(noise[:, :6, :5], (48, 40))
    logits = {"smooth": smooth, "noise": noise, "rare": smooth - np.float32(1.4)}[kind]
    size = (300, 511)
    values = upsampled(logits, size, aligned)

    masks, areas, sums = class_masks(
        logits, *axes(ResizeTransform.of(*size), 48, 40, align_corners=aligned), np.full(7, 0.25, np.float32)
    )

    expected = torch.sigmoid(torch.from_numpy(values)).numpy() > 1 / (1 + np.exp(-0.25))
    assert masks == tuple(coco.encode(np.asfortranarray(m.view(np.uint8)))["counts"] for m in expected)
    assert areas.tolist() == expected.sum(axis=(1, 2)).tolist()
    assert sums == pytest.approx(confident(values, expected), rel=1e-5)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 30), st.integers(1, 30), st.integers(1, 90), st.integers(1, 150), st.integers(1, 6),
    st.sampled_from([0.5, 1.0, 3.0]), st.booleans(), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_size_gives_the_masks_of_torch_but_for_float_ties(
    h: int, w: int, height: int, width: int, classes: int, temperature: float, aligned: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(classes, h, w)).astype(np.float32)
    limits = rng.normal(size=classes).astype(np.float32)
    size = (height, width)

    masks, areas, sums = class_masks(
        logits, *axes(ResizeTransform.of(*size), h, w, align_corners=aligned), limits, temperature
    )

    values = upsampled(logits, size, aligned)
    found = np.array([decoded(counts, size) for counts in masks])
    wrong = found != (values > limits[:, None, None])
    assert np.abs(values - limits[:, None, None])[wrong].max(initial=0) < 1e-5
    assert areas.tolist() == found.sum(axis=(1, 2)).tolist()
    assert sums == pytest.approx(confident(values, found, temperature), rel=1e-5, abs=1e-6)


def test_padding_has_no_say() -> None:
    logits = np.full((1, 16, 16), -5, np.float32)
    logits[:, 4:12, 3:13] = 5

    masks, areas, _ = class_masks(
        logits, *axes(ResizeTransform(77, 91, 32, 24, 64, 80, 128, 128), 16, 16), np.zeros(1, np.float32)
    )

    assert decoded(masks[0], (77, 91)).all()
    assert areas.tolist() == [77 * 91]


def test_a_class_that_is_nowhere_has_an_empty_mask_and_huge_logits_are_certain() -> None:
    logits = np.stack([np.full((4, 4), -1e4), np.full((4, 4), 1e4)]).astype(np.float32)

    masks, areas, sums = class_masks(logits, *axes(ResizeTransform.of(9, 7), 4, 4), np.zeros(2, np.float32))

    assert [int(decoded(counts, (9, 7)).sum()) for counts in masks] == [0, 63]
    assert areas.tolist() == [0, 63]
    assert sums.tolist() == [0, pytest.approx(63)]


def test_limits_and_axes_that_do_not_fit_are_refused() -> None:
    logits = np.zeros((2, 4, 4), np.float32)

    with pytest.raises(ValueError, match="need one a class"):
        class_masks(logits, *axes(ResizeTransform.of(8, 8), 4, 4), np.zeros(3, np.float32))
    with pytest.raises(ValueError, match="do not cover"):
        class_masks(logits, *axes(ResizeTransform.of(8, 8), 5, 4), np.zeros(2, np.float32))
