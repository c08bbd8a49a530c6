"""Makes truth.png, the checked label map of the photograph: 0 is the table, 1 to 24 are the coins.

A watershed from pixels that are surely table or coin, with holes filled. Its outlines were looked at coin by
coin: they run on the visible edges to about one pixel.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from scipy import ndimage
from skimage import data, filters, segmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

HERE = Path(__file__).parent
SURE_TABLE, SURE_COIN = 30, 150
SMALLEST_COIN = 300


def label_coins(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the label map (H, W) of the photograph; regions of fewer than 300 pixels are no coins."""
    seeds = np.zeros(grey.shape, np.int32)
    seeds[grey < SURE_TABLE] = 1
    seeds[grey > SURE_COIN] = 2
    regions = segmentation.watershed(filters.sobel(grey), seeds)
    parts, _ = ndimage.label(ndimage.binary_fill_holes(regions == 2))
    areas = np.bincount(parts.ravel())
    areas[0] = 0
    numbers = np.zeros(len(areas), np.uint8)
    kept = np.flatnonzero(areas >= SMALLEST_COIN)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return np.asarray(numbers[parts])


if __name__ == "__main__":
    photograph = data.coins()
    cv2.imwrite(str(HERE / "coins.png"), photograph)
    cv2.imwrite(str(HERE / "truth.png"), label_coins(photograph))
