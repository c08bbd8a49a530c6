"""Torchvision's non-maximum suppression, for `Debian`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torchvision
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import boxes as box_ops

torch.set_num_threads(1)


def version() -> str:
    return str(torchvision.__version__)


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> Any:
    return box_ops.nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).numpy()


def batched_nms(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> Any:
    tensors = (torch.from_numpy(array) for array in (boxes, scores, classes))
    return box_ops.batched_nms(*tensors, threshold).numpy()


def batched_nms_by_class(boxes: np.ndarray, scores: np.ndarray, classes: np.ndarray, threshold: float) -> Any:
    """`batched_nms` as it is for more than 1,000 boxes; for fewer it moves the classes apart, which costs precision."""
    tensors = (torch.from_numpy(array) for array in (boxes, scores, classes))
    return box_ops._batched_nms_vanilla(*tensors, threshold).numpy()


def retinanet_candidates(
    logits: np.ndarray, deltas: np.ndarray, anchors: np.ndarray, levels: np.ndarray, height: int, width: int
) -> Any:
    """The boxes that `RetinaNet.postprocess_detections` has before its non-maximum suppression, in its words."""
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    found = []
    parts = (torch.from_numpy(array).split(levels.tolist()) for array in (logits, deltas, anchors))
    for some_logits, some_deltas, some_anchors in zip(*parts, strict=True):
        scores = torch.sigmoid(some_logits).flatten()
        keep = scores > 0.05
        hits = torch.where(keep)[0]
        _, best = scores[keep].topk(min(1000, len(hits)))
        rows = torch.div(hits[best], some_logits.shape[1], rounding_mode="floor")
        decoded = coder.decode_single(some_deltas[rows], some_anchors[rows])
        found.append(box_ops.clip_boxes_to_image(decoded, (height, width)))
    return torch.cat(found).numpy()
