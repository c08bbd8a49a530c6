"""Small torchvision detectors with random weights, and the wrapper that leaves pasting and resizing to segserve."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, KeypointRCNN, MaskRCNN, roi_heads
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

CLASSES = 4  # the background among them
KEYPOINTS = 5
DETECTIONS = 12
OUTPUTS = {
    "faster": ("boxes", "labels", "scores"),
    "mask": ("boxes", "labels", "scores", "masks"),
    "keypoint": ("boxes", "labels", "scores", "keypoints"),
}


class Backbone(nn.Sequential):
    """Two strides of convolution to 8 channels at a quarter of the size."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, self.out_channels, 3, stride=2, padding=1)
        )


def network(kind: str, seed: int) -> Any:
    """Return a `faster`, `mask` or `keypoint` R-CNN in evaluation mode."""
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "min_size": 96,
        "max_size": 160,
        "box_detections_per_img": DETECTIONS,
        "rpn_anchor_generator": AnchorGenerator(((32, 64, 96),), ((0.5, 1.0, 2.0),)),
        "box_roi_pool": MultiScaleRoIAlign(["0"], 7, 2),
        "box_head": TwoMLPHead(8 * 7 * 7, 16),
    }
    classes = 2 if kind == "keypoint" else CLASSES
    common["box_predictor"] = FastRCNNPredictor(16, classes)
    pool = MultiScaleRoIAlign(["0"], 14, 2)
    if kind == "mask":
        head, predictor = MaskRCNNHeads(8, (8,), 1), MaskRCNNPredictor(8, 8, CLASSES)
        model = MaskRCNN(Backbone(), mask_roi_pool=pool, mask_head=head, mask_predictor=predictor, **common)
        _strengthen(model.roi_heads.mask_predictor.mask_fcn_logits, 30.0)
    elif kind == "keypoint":
        points: dict[str, Any] = {
            "keypoint_roi_pool": pool,
            "keypoint_head": KeypointRCNNHeads(8, (8,)),
            "keypoint_predictor": KeypointRCNNPredictor(8, KEYPOINTS),
        }
        model = KeypointRCNN(Backbone(), **points, **common)
        _strengthen(model.roi_heads.keypoint_predictor.kps_score_lowres, 30.0)
    else:
        model = FasterRCNN(Backbone(), **common)
    _strengthen(model.roi_heads.box_predictor.bbox_pred, 10.0)
    _strengthen(model.roi_heads.box_predictor.cls_score, 10.0)
    return model.eval()


def _strengthen(layer: nn.Module, factor: float) -> None:
    """Weights of a fresh network say nearly nothing; these differ from place to place."""
    with torch.no_grad():
        layer.weight.mul_(factor)


class RawHeads(nn.Module):
    """A torchvision R-CNN as segserve takes it.

    In: one image, UINT8 [1, 3, height, width] RGB, already resized. Out, in pixels of that image: boxes [N, 4],
    labels [N], scores [N], and masks [N, 1, 28, 28] (probabilities) or keypoints [N, K, 56, 56] (heat maps).
    """

    def __init__(self, model: Any, outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.outputs = model, outputs
        model.transform.resize = lambda image, target: (image, target)
        model.transform.postprocess = lambda result, sizes, originals: result

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for one image."""
        points_of_heatmaps = roi_heads.keypointrcnn_inference
        roi_heads.keypointrcnn_inference = lambda logits, boxes: ([logits], [logits.flatten(2).amax(2)])
        try:
            (found,) = self.model([image[0].float() / 255])
        finally:
            roi_heads.keypointrcnn_inference = points_of_heatmaps
        return tuple(found[name] for name in self.outputs)
