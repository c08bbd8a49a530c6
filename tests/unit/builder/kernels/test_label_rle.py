"""A label map's masks are those that pycocotools encodes class by class."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco

from segserve_builder.kernels.label_rle import encode_labels


def reference(labels: np.ndarray, number: int) -> list[bytes]:
    return [coco.encode(np.asfortranarray(labels == label, np.uint8))["counts"] for label in range(number)]


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 150)), elements=st.integers(0, 4)),
    st.integers(5, 8),
)
def test_any_label_map_gives_pycocotools_strings(labels: np.ndarray, number: int) -> None:
    assert encode_labels(labels, number) == reference(labels, number)


@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (64, 1), (303, 384), (5, 65)])
def test_blocks_of_labels_give_pycocotools_strings(shape: tuple[int, int]) -> None:
    blocks = np.random.default_rng(1).integers(0, 255, (shape[0] // 16 + 1, shape[1] // 16 + 1), np.uint8)
    labels = np.kron(blocks, np.ones((16, 16), np.uint8))[: shape[0], : shape[1]]

    assert encode_labels(labels, 256) == reference(labels, 256)


def test_labels_of_16_bits_give_pycocotools_strings() -> None:
    labels = np.random.default_rng(3).integers(0, 600, (12, 20)).astype(np.uint16).repeat(5, 0).repeat(7, 1)

    assert encode_labels(labels, 600) == reference(labels, 600)


def test_a_label_beyond_the_number_is_refused() -> None:
    with pytest.raises(ValueError, match="labels up to 3; 3 are allowed"):
        encode_labels(np.full((2, 2), 3, np.uint8), 3)


def test_strided_and_read_only_maps_are_accepted_and_left_alone() -> None:
    labels = np.random.default_rng(2).integers(0, 3, (20, 140), np.uint8)
    view = labels[::2, ::2]
    view.flags.writeable = False

    assert encode_labels(view, 3) == reference(view.copy(), 3)
