"""Suppression by mask IoU against pycocotools and the matrices of the SOLOv2 paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segserve_builder.kernels.mask_nms import greedy_masks, matrix_decay

SEEDS = st.integers(0, 2**32 - 1)


def some_masks(rng: np.random.Generator, n: int, height: int, width: int) -> list[bytes]:
    """Rectangles that lie on each other, with holes and noise; some are equal, some empty, some full."""
    masks = []
    for _ in range(n):
        y, x = np.sort(rng.integers(0, height + 1, 2)), np.sort(rng.integers(0, width + 1, 2))
        bitmap = np.zeros((height, width), np.uint8)
        bitmap[y[0] : y[1], x[0] : x[1]] = 1
        bitmap[rng.random((height, width)) < rng.choice([0, 0.02, 0.5])] = 0
        masks.append(
            coco.encode(np.asfortranarray(bitmap if rng.random() < 0.9 else np.full_like(bitmap, y[0] == 0)))["counts"]
        )
        if rng.random() < 0.1:
            masks[-1] = masks[rng.integers(0, len(masks))]
    return masks


def ious(masks: list[bytes], height: int, width: int) -> np.ndarray:
    encoded = [{"counts": counts, "size": [height, width]} for counts in masks]
    if not masks:
        return np.zeros((0, 0))
    # Where both masks are empty it says NaN or 0, by their boxes.
    return np.nan_to_num(np.asarray(coco.iou(encoded, encoded, [0] * len(masks))))


def plain_matrix(iou: np.ndarray, classes: np.ndarray, gaussian: bool, sigma: float) -> np.ndarray:
    """Algorithm 1 of the paper; a better mask without any score left has no say, where it would divide by zero."""
    iou = np.triu(iou * (classes[:, None] == classes), 1)
    largest = iou.max(axis=0, initial=0)[:, None]
    if gaussian:
        decay = np.exp(-sigma * iou**2) / np.exp(-sigma * largest**2)
    else:
        decay = np.divide(1 - iou, 1 - largest, out=np.ones_like(iou), where=largest < 1)
    return decay.min(axis=0, initial=1)


def plain_greedy(iou: np.ndarray, classes: np.ndarray, threshold: float, limit: int) -> list[int]:
    keep: list[int] = []
    for j in range(len(classes)):
        if len(keep) < limit and not any(classes[i] == classes[j] and iou[i, j] > threshold for i in keep):
            keep.append(j)
    return keep


@settings(max_examples=120, deadline=None)
@given(
    SEEDS, st.integers(0, 30), st.integers(1, 30), st.integers(1, 70), st.integers(1, 3), st.sampled_from([0.5, 2, 9])
)
def test_decays_are_those_of_the_paper_with_the_overlaps_of_pycocotools(
    seed: int, n: int, height: int, width: int, number: int, sigma: float
) -> None:
    rng = np.random.default_rng(seed)
    masks, classes = some_masks(rng, n, height, width), rng.integers(0, number, n).astype(np.int32)
    iou = ious(masks, height, width)

    for gaussian in (True, False):
        decay = matrix_decay(masks, classes, height, width, gaussian=gaussian, sigma=sigma)

        assert decay == pytest.approx(plain_matrix(iou, classes, gaussian, sigma), abs=1e-9)


@settings(max_examples=120, deadline=None)
@given(SEEDS, st.integers(0, 30), st.integers(1, 30), st.integers(1, 70), st.sampled_from([0.0, 0.5, 1.0]))
def test_the_greedy_pass_keeps_what_the_overlaps_of_pycocotools_allow(
    seed: int, n: int, height: int, width: int, threshold: float
) -> None:
    rng = np.random.default_rng(seed)
    masks, classes = some_masks(rng, n, height, width), rng.integers(0, 2, n).astype(np.int32)
    iou = ious(masks, height, width)

    for limit in (1, 5, 100):
        keep = greedy_masks(masks, classes, height, width, threshold, limit)

        assert keep.tolist() == plain_greedy(iou, classes, threshold, limit)


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 40), st.integers(1, 140))
def test_two_masks_of_a_linear_matrix_show_their_iou(seed: int, height: int, width: int) -> None:
    masks = some_masks(np.random.default_rng(seed), 2, height, width)

    decay = matrix_decay(masks, np.zeros(2, np.int32), height, width, gaussian=False, sigma=1)

    assert decay.tolist() == [1, 1 - ious(masks, height, width)[0, 1]]


@pytest.mark.parametrize(
    "counts", [b"", b"4", b"13", b"W1", b"0:1", b"\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f\x7f1"]
)
def test_counts_of_another_size_are_refused(counts: bytes) -> None:
    good = coco.encode(np.asfortranarray(np.ones((3, 5), np.uint8)))["counts"]

    with pytest.raises(ValueError, match="mask 1 do not add up to the 15 pixels of 3 x 5"):
        matrix_decay([good, counts], np.zeros(2, np.int32), 3, 5, gaussian=True, sigma=2)
    with pytest.raises(ValueError, match="mask 0"):
        greedy_masks([counts, good], np.zeros(2, np.int32), 3, 5, 0.5, 9)


def test_a_class_for_every_mask_is_needed() -> None:
    with pytest.raises(ValueError, match="0 masks and 1 classes"):
        greedy_masks([], np.zeros(1, np.int32), 3, 5, 0.5, 9)
