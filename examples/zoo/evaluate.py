"""The figures of the report: how well label maps and instances agree with the world they were drawn in."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from examples.zoo.world import CLASSES
from segserve.results.masks import EncodedMask

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from examples.zoo.world import Scene

BOUNDARY: Final = 0.02  # of the image's diagonal, as Cheng et al. have it
SIZES: Final = {"tiny": (0, 8**2), "small": (8**2, 16**2), "large": (16**2, 1e9)}
"""Areas in pixels of what AP by size counts; COCO's own (32 and 96 pixels a side) are made for larger images."""
BINS: Final = 15


@dataclass(frozen=True, slots=True)
class Found:
    """One detected instance: its class id, score, and mask as COCO compressed RLE counts."""

    class_id: int
    score: float
    counts: bytes


def boundary(mask: NDArray[Any]) -> NDArray[np.bool_]:
    """Return the pixels of a mask (H, W) within 2 % of the image's diagonal of its edge.

    The inner boundary region of Boundary IoU (Cheng et al. 2021), whose code erodes a mask that is padded with 0.
    """
    height, width = mask.shape
    depth = max(1, round(BOUNDARY * float(np.hypot(height, width))))
    padded = np.pad(mask.astype(np.uint8), 1)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=depth)[1:-1, 1:-1]
    return np.asarray(mask.astype(bool) & (inner == 0))


def ious(predicted: Sequence[NDArray[Any]], true: Sequence[NDArray[Any]], *, at_boundary: bool = False) -> list[float]:
    """Return each class's IoU over all label maps (H, W) together, of all pixels or of those near an edge."""
    shared, united = np.zeros(len(CLASSES)), np.zeros(len(CLASSES))
    for one, other in zip(predicted, true, strict=True):
        for class_id in range(len(CLASSES)):
            a, b = one == class_id, other == class_id
            if at_boundary:
                a, b = boundary(a), boundary(b)
            shared[class_id] += np.count_nonzero(a & b)
            united[class_id] += np.count_nonzero(a | b)
    return [float(share) for share in shared / np.maximum(united, 1)]


def islands(labels: Iterable[NDArray[Any]]) -> float:
    """Return the mean number of 4-connected regions of one class, ground apart, of label maps (H, W)."""
    counts = [sum(ndimage.label(one == class_id)[1] for class_id in range(1, len(CLASSES))) for one in labels]
    return float(np.mean(counts))


def mask_islands(found: Iterable[Sequence[Found]], sizes: Iterable[tuple[int, int]]) -> float:
    """Return the mean number of 4-connected parts of a mask."""
    parts = [
        ndimage.label(EncodedMask(one.counts, *size).bitmap)[1]
        for image, size in zip(found, sizes, strict=True)
        for one in image
    ]
    return float(np.mean(parts)) if parts else 0.0


def semantic_figures(predicted: Sequence[NDArray[Any]], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return mIoU, the classes' IoU, boundary IoU (the mean of the classes), and islands an image."""
    true = [scene.labels for scene in scenes]
    by_class = ious(predicted, true)
    return {
        "mIoU": float(np.mean(by_class)),
        **{f"IoU {name}": value for name, value in zip(CLASSES, by_class, strict=True)},
        "boundary IoU": float(np.mean(ious(predicted, true, at_boundary=True))),
        "islands": islands(predicted),
    }


def instance_figures(found: Sequence[Sequence[Found]], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return pycocotools' AP, at IoU 0.5 and 0.75, by class and by size, and the parts of a mask."""
    truth = ground_truth(scenes)
    figures = dict(zip(("AP", "AP50", "AP75", *(f"AP {size}" for size in SIZES)), _summary(truth, found), strict=True))
    figures["parts of a mask"] = mask_islands(found, [scene.labels.shape for scene in scenes])
    return figures


def ground_truth(scenes: Sequence[Scene]) -> COCO:
    """Return the objects of scenes as a COCO data set; what is seen of an object is its mask."""
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, 1):
        for number, class_id in enumerate(scene.classes.tolist(), 1):
            mask = np.asfortranarray(scene.objects == number).view(np.uint8)
            rle = coco_mask.encode(mask)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_id,
                    "segmentation": rle,
                    "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                    "area": int(np.count_nonzero(mask)),
                    "iscrowd": 0,
                }
            )
    sizes = [scene.labels.shape for scene in scenes]
    images = [{"id": index, "height": height, "width": width} for index, (height, width) in enumerate(sizes, 1)]
    categories = [{"id": class_id, "name": name} for class_id, name in enumerate(CLASSES) if class_id]
    data = COCO()
    data.dataset = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    with contextlib.redirect_stdout(io.StringIO()):
        data.createIndex()
    return data


def _summary(truth: COCO, found: Sequence[Sequence[Found]]) -> list[float]:
    sizes = {image["id"]: [image["height"], image["width"]] for image in truth.dataset["images"]}
    results = [
        {
            "image_id": image_id,
            "category_id": one.class_id,
            "segmentation": {"size": sizes[image_id], "counts": one.counts},
            "score": one.score,
        }
        for image_id, image in enumerate(found, 1)
        for one in image
    ]
    if not results:
        return [0.0] * (3 + len(SIZES))
    with contextlib.redirect_stdout(io.StringIO()):
        judge = COCOeval(truth, truth.loadRes(results), "segm")
        judge.params.areaRng = [[0, 1e10], *(list(limits) for limits in SIZES.values())]
        judge.params.areaRngLbl = ["all", *SIZES]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]  # by IoU threshold, recall, class, area, number of detections
    at = {"all": slice(None), "50": slice(0, 1), "75": slice(5, 6)}
    whole = [_mean(precision[at[name], :, :, 0, -1]) for name in ("all", "50", "75")]
    return whole + [_mean(precision[:, :, :, area, -1]) for area in range(1, 1 + len(SIZES))]


def _mean(precision: NDArray[Any]) -> float:
    """Return the mean without the entries of -1, for which nothing is there to be found."""
    return float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
