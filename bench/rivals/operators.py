"""Lets torchvision's wheel load beside a build of torch for the CPU: its operators are compiled for CUDA's alone."""

from __future__ import annotations

import cv2
import torch

_LIBRARY = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _LIBRARY.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _nms(dets: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    corners = dets.numpy()
    boxes = [(x, y, right - x, bottom - y) for x, y, right, bottom in corners.tolist()]
    return torch.as_tensor(cv2.dnn.NMSBoxes(boxes, scores.tolist(), 0.0, iou_threshold), dtype=torch.int64).flatten()


import torchvision  # noqa: E402  it needs the operators

torchvision.ops.nms = _nms
