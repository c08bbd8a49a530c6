"""Objects of a label map, cut by a watershed, compared with scikit-image's watershed of scipy's distances."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.metadata import version

import numpy as np
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from bench.stages.case import Case, Peer
from segserve_builder.kernels.instances import cut_regions, find_regions

MIN_DISTANCE = 10
BY_CORNERS = ndimage.generate_binary_structure(2, 2)
CELLS = np.arange(256) > 0


def discs(height: int, width: int, number: int) -> np.ndarray:
    """Return a mask of discs with radii of 12 to 25 pixels, many of which touch."""
    rng = np.random.default_rng(0)
    labels = np.zeros((height, width), np.uint8)
    for y, x, radius in rng.uniform((0, 0, 12), (height, width, 25), (number, 3)):
        top, left = max(int(y - radius), 0), max(int(x - radius), 0)
        window = labels[top : int(y + radius) + 2, left : int(x + radius) + 2]
        rows, columns = np.ogrid[top : top + window.shape[0], left : left + window.shape[1]]
        window[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 1
    return labels


def noise(side: int) -> np.ndarray:
    return (np.random.default_rng(1).random((side, side)) < 0.5).astype(np.uint8)


def ours(labels: np.ndarray) -> np.ndarray:
    return cut_regions(find_regions(labels, CELLS, 8, 1), MIN_DISTANCE, 8).numbers


def by_skimage(labels: np.ndarray) -> np.ndarray:
    regions, _ = ndimage.label(labels, BY_CORNERS)
    height = np.rint(ndimage.distance_transform_edt(labels) ** 2)
    peaks = peak_local_max(height, min_distance=MIN_DISTANCE, exclude_border=False, labels=regions)
    peaks = peaks[np.lexsort((peaks[:, 1], peaks[:, 0]))]
    markers = np.zeros(labels.shape, np.int32)
    markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    # Its heap has no order of equally high peaks: here they have one, row by row.
    height[tuple(peaks.T)] += 1 - np.arange(1, len(peaks) + 1) / (len(peaks) + 1)
    return watershed(-height, markers, connectivity=BY_CORNERS, mask=labels)


def cut(name: str, labels: np.ndarray, *, worst: bool = False) -> Case:
    def agrees() -> str:
        expected = by_skimage(labels)
        wrong = int(np.count_nonzero(ours(labels) != expected))
        assert wrong == 0, wrong
        return f"0 of {expected.size / 1e6:.1f} M px differ, {expected.max()} objects"

    peer = Peer("scipy + scikit-image watershed", version("scikit-image"), partial(by_skimage, labels), agrees)
    size = f"{labels.shape[1]}x{labels.shape[0]}"
    return Case(f"touching objects cut, {size}, {name}", partial(ours, labels), (peer,), worst)


def cases() -> Iterator[Case]:
    yield cut("1,500 discs", discs(2048, 2048, 1500))
    yield cut("4,000 discs", discs(3000, 4000, 4000))
    yield cut("noise", noise(1024), worst=True)
