"""Objects in a label map against scipy's components and distances, and scikit-image's peaks and watershed."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.instances import MOST_DISTANCE, ObjectMap, cut_regions, find_regions

SEEDS = st.integers(0, 2**32 - 1)
SIDES = (st.integers(1, 30), st.integers(1, 45))
TYPES = st.sampled_from([np.uint8, np.uint16])
CONNECTIVITIES: Any = st.sampled_from([4, 8])
ALL = [1, 2, 3]


def structure(connectivity: int) -> np.ndarray:
    from scipy import ndimage

    return ndimage.generate_binary_structure(2, 1 if connectivity == 4 else 2)


def chosen(dtype: type, classes: list[int]) -> np.ndarray:
    wanted = np.zeros(256 ** np.dtype(dtype).itemsize, np.bool_)
    wanted[classes] = True
    return wanted


def objects(labels: np.ndarray, connectivity: Literal[4, 8], min_distance: int, classes: list[int] = ALL) -> ObjectMap:
    regions = find_regions(labels, chosen(labels.dtype.type, classes), connectivity, 1)
    return cut_regions(regions, min_distance, connectivity)


def parts(numbers: np.ndarray) -> set[frozenset[int]]:
    """The objects as sets of pixels, whatever their numbers."""
    flat = numbers.ravel()
    return {frozenset(np.flatnonzero(flat == number).tolist()) for number in np.unique(flat[flat > 0])}


def regions_by_scipy(labels: np.ndarray, classes: list[int], connectivity: int) -> np.ndarray:
    from scipy import ndimage

    numbers, n = np.zeros(labels.shape, np.int64), 0
    for value in classes:
        found, count = ndimage.label(labels == value, structure(connectivity))
        numbers[found > 0] = found[found > 0] + n
        n += count
    return numbers


def cut_by_skimage(labels: np.ndarray, connectivity: int, min_distance: int, classes: list[int] = ALL) -> np.ndarray:
    """Each region cut by itself; equally high peaks, which scikit-image's heap does not order, flood row by row."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.segmentation import watershed

    regions = regions_by_scipy(labels, classes, connectivity)
    numbers, n = np.zeros(labels.shape, np.int64), 0
    for region in range(1, regions.max(initial=0) + 1):
        mask = regions == region
        # scipy knows no distance where nothing is outside, and scikit-image no peak in a single pixel.
        single = mask.all() or mask.sum() == 1
        height = mask * 1.0 if single else np.rint(ndimage.distance_transform_edt(mask) ** 2)
        peaks = np.argwhere(mask)[:1] if single else peak_local_max(height, min_distance, 0, exclude_border=False)
        peaks = peaks[np.lexsort((peaks[:, 1], peaks[:, 0]))]
        markers, depth = np.zeros(labels.shape, np.int64), -height
        for place, (y, x) in enumerate(peaks):
            markers[y, x] = place + 1
            depth[y, x] -= 1 - (place + 1) / (len(peaks) + 1)  # less than the next height
        flooded = watershed(depth, markers, connectivity=structure(connectivity), mask=mask)
        numbers[mask] = flooded[mask] + n
        n += len(peaks)
    return numbers


def blobs(height: int, width: int, dtype: type, seed: int) -> np.ndarray:
    """Touching discs of three classes, smooth noise, or blocks, by seed."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    if seed % 3 == 0:
        smooth = ndimage.gaussian_filter(rng.normal(size=(height, width)), rng.uniform(0.5, 4))
        return (smooth > 0).astype(dtype)
    if seed % 3 == 1:
        blocks = rng.integers(0, 3, (height // 3 + 1, width // 3 + 1)).astype(dtype)
        return blocks.repeat(3, 0).repeat(3, 1)[:height, :width]
    labels, (rows, columns) = np.zeros((height, width), dtype), np.mgrid[:height, :width]
    for y, x, radius, label in rng.uniform((0, 0, 2, 1), (height, width, 9, 4), (8, 4)):
        labels[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = int(label)
    return labels


@settings(max_examples=60, deadline=None)
@given(*SIDES, TYPES, CONNECTIVITIES, st.integers(2, 12), SEEDS)
def test_regions_are_cut_as_scikit_image_cuts_each_by_itself(
    height: int, width: int, dtype: type, connectivity: Literal[4, 8], min_distance: int, seed: int
) -> None:
    labels = blobs(height, width, dtype, seed)
    before = labels.copy()

    cut = objects(labels, connectivity, min_distance)

    assert parts(cut.numbers) == parts(cut_by_skimage(labels, connectivity, min_distance))
    assert np.array_equal(labels, before)
    for number, (box, label) in enumerate(zip(cut.boxes.tolist(), cut.classes.tolist(), strict=True), 1):
        y, x = np.nonzero(cut.numbers == number)
        assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert set(labels[y, x].tolist()) == {label}


@settings(max_examples=60, deadline=None)
@given(*SIDES, TYPES, CONNECTIVITIES, st.integers(1, 30), st.sampled_from([[1], [2, 3], ALL, [0, 2]]), SEEDS)
def test_regions_of_the_chosen_classes_are_those_of_scipy(
    height: int, width: int, dtype: type, connectivity: Literal[4, 8], min_area: int, classes: list[int], seed: int
) -> None:
    labels = blobs(height, width, dtype, seed)

    found = find_regions(labels, chosen(dtype, classes), connectivity, min_area)

    expected = parts(regions_by_scipy(labels, classes, connectivity))
    assert parts(found.numbers) == {part for part in expected if len(part) >= min_area}
    assert [found.numbers[box[1], box[0] : box[2]].any() for box in found.boxes.tolist()] == [True] * len(found.boxes)
    firsts = [int(np.flatnonzero(found.numbers.ravel() == number)[0]) for number in range(1, len(found.boxes) + 1)]
    assert firsts == sorted(firsts)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (64, 65), (0, 5), (5, 0)])
def test_a_map_of_one_class_is_one_object_or_none(shape: tuple[int, int], value: int) -> None:
    cut = objects(np.full(shape, value, np.uint8), 4, 5)

    expected = [[0, 0, shape[1], shape[0]]] if value and shape[0] * shape[1] else []
    assert cut.boxes.tolist() == expected
    assert cut.numbers.tolist() == np.full(shape, value).tolist()


def test_what_is_farther_from_the_outside_than_any_object_has_one_middle() -> None:
    strip = np.ones((1, 2 * MOST_DISTANCE + 9), np.uint8)
    strip[0, -1] = 0

    assert objects(strip, 4, 1000).boxes.tolist() == [[0, 0, len(strip[0]) - 1, 1]]


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match="labels are int64, chosen 256; uint8 with 256, uint16 with 65536 fit"):
        find_regions(np.zeros((3, 3), np.int64), chosen(np.uint8, [1]), 4, 1)
