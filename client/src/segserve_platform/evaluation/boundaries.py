"""Boundary IoU: how well the outlines of masks agree, whatever their size.

Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021: the IoU of the bands
inside of two masks' outlines, whose width is 2 % of the image's diagonal.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.cocoeval import COCOeval

from segserve.results.masks import EncodedMask
from segserve_builder.scoring.quality import Regions

WIDTH: Final = 0.02
"""The width of a band, as a share of the image's diagonal."""
BAND: Final = "band"
"""The field of an annotation that has the band of its mask as RLE."""


def band_of(counts: bytes, size: tuple[int, int]) -> bytes:
    """Return the pixels of a mask that are near its outline, or near the image's edge, as RLE counts of `size`."""
    patch = EncodedMask(counts, *size).patch()
    band = np.zeros(size, np.bool_)
    band[patch.window] = patch.pixels & ~_eroded(patch.pixels, max(1, round(WIDTH * math.hypot(*size))))
    return EncodedMask.of(band).rle["counts"]


def bands_of(regions: Regions, counted: bytes | None) -> Regions:
    """Return the bands of regions' masks, without the pixels that do not count."""
    height, width = regions.size
    masks = []
    for mask in regions.masks or ():
        shapes = [{"size": [height, width], "counts": each} for each in (mask, counted) if each is not None]
        masks.append(band_of(coco.merge(shapes, intersect=True)["counts"], regions.size))
    return replace(regions, masks=tuple(masks))


class BoundaryEvaluation(COCOeval):  # type: ignore[misc]  # pycocotools has no types
    """COCO's evaluation in which objects are as alike as the lesser of mask IoU and boundary IoU says (boundary AP).

    Annotations have the field `BAND`. Crowds, whose outlines are those of no object, are compared by masks alone.
    """

    def computeIoU(self, imgId: int, catId: int) -> Any:  # noqa: N802, N803  # pycocotools' names
        """Return the likeness of each detection and each labelled object of a class, float (D, G)."""
        alike = super().computeIoU(imgId, catId)
        if len(alike) == 0:
            return alike
        labelled, found = self._gts[imgId, catId], self._dts[imgId, catId]
        # In pycocotools' own order.
        order = np.argsort([-each["score"] for each in found], kind="mergesort")[: self.params.maxDets[-1]]
        sides = [found[place][BAND] for place in order], [each[BAND] for each in labelled]
        bands = coco.iou(*sides, [0] * len(labelled))
        return np.where([bool(each["iscrowd"]) for each in labelled], alike, np.minimum(alike, bands))


def _eroded(mask: NDArray[np.bool_], distance: int) -> NDArray[np.bool_]:
    """Return the pixels whose square of `distance` to each side is all in the mask, which ends at the array's edge."""
    found, side = np.pad(mask, distance), 2 * distance + 1
    for _ in range(2):
        length = 1
        while length < side:
            step = min(length, side - length)
            found, length = found[step:] & found[:-step], length + step
        found = found.T
    return found
