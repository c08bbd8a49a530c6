"""Trials of a pipeline in this process, to score how confident and consistent its answers are."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from PIL import Image, ImageOps

from segserve_builder.errors import BuilderError
from segserve_builder.export.reduced import label_map
from segserve_builder.golden.judging import Answer, with_columns
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel

if TYPE_CHECKING:
    from numpy.typing import NDArray

TRIAL_IMAGES: Final = 2
"""Images of each trial; each is also mirrored."""
SAME_OBJECT_IOU: Final = 0.5
"""IoU above which a box matches one of the mirrored image."""


def steadiness(model: InProcessModel, images: Sequence[Path]) -> float:
    """Return the model's confidence times the agreement of its answers for each image and its mirror image, 0 to 1.

    Confidence alone is not enough: networks that get pixels of 0 to 255 instead of 0 to 1 are confident about noise.
    """

    scores = []
    for path in images[:TRIAL_IMAGES]:
        try:
            scores.append(_compared(model, path))
        except BuilderError:
            scores.append(0.0)
    return sum(scores) / len(scores)


def _compared(model: InProcessModel, path: Path) -> float:

    data, mirrored = path.read_bytes(), _mirrored(path)
    if model.task == "semantic":
        request = RequestOptions(encoding="raw")
        return _labels_agree(model.answer(data, request), model.answer(mirrored, request))
    request = RequestOptions()
    return _objects_agree(model.answer(data, request), model.answer(mirrored, request))


def _mirrored(path: Path) -> bytes:

    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
        buffer = BytesIO()
        ImageOps.mirror(upright if upright.mode in ("L", "RGB") else upright.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def _labels_agree(answer: Answer, mirrored: Answer) -> float:
    """Return Cohen's kappa of two label maps, 0 if all pixels are of one class, times the mean confidence."""
    import numpy as np

    labels, other = label_map(answer), label_map(mirrored)[:, ::-1]
    if labels.shape != other.shape or labels.min() == labels.max():
        return 0.0
    top = int(max(labels.max(), other.max())) + 1
    shares = [np.bincount(one.ravel(), minlength=top) / one.size for one in (labels, other)]
    chance = float(shares[0] @ shares[1])
    agreed = float((labels == other).mean())
    kappa = 0.0 if chance >= 1 else max(0.0, (agreed - chance) / (1 - chance))
    areas = answer["AREAS"].astype(float)
    confidence = float(areas @ answer["CONFIDENCE"]) / max(float(areas.sum()), 1.0)
    return kappa * confidence


def _objects_agree(answer: Answer, mirrored: Answer) -> float:
    """Return the scores of objects that have a match in the mirrored image, relative to the mean number of objects."""
    import numpy as np

    mine, theirs = with_columns("the image", answer), with_columns("the image", mirrored)
    width = float(answer["SIZE"][1])
    boxes, other = mine["BOXES"], theirs["BOXES"].copy()
    if not len(boxes) or not len(other):
        return 0.0
    other[:, [0, 2]] = width - other[:, [2, 0]]
    same = (_overlaps(boxes, other) > SAME_OBJECT_IOU) & (mine["CLASSES"][:, None] == theirs["CLASSES"][None])
    return float((mine["SCORES"] * same.any(axis=1)).sum() * 2 / (len(boxes) + len(other))) if np.any(same) else 0.0


def _overlaps(boxes: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    import numpy as np

    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(b[:, 2:] - b[:, :2]).prod(axis=1) for b in (boxes, others)]
    overlaps: NDArray[Any] = shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)
    return overlaps
