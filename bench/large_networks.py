"""DeepLabV3 and Mask R-CNN of torchvision with ResNet-50 and random weights, for 512 x 512 pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

SEED: Final = 3000
SIZE: Final = 512


@dataclass(frozen=True, slots=True)
class LargeNetwork:
    """A network's family, the names of its outputs, and how many classes it has."""

    family: str
    outputs: tuple[str, ...]
    classes: int


LARGE: Final = {
    "deeplabv3-resnet50": LargeNetwork("semantic-logits", ("logits",), 21),
    "mask-rcnn-resnet50": LargeNetwork("mask-rcnn", ("boxes", "labels", "scores", "masks"), 91),
}


def exported(name: str, folder: Path) -> Path:
    """Return the network's ONNX file in a folder, which torch writes if it is not there."""
    path = folder / f"{name}.onnx"
    if path.exists():
        return path
    import torch

    outputs = LARGE[name].outputs
    torch.manual_seed(SEED)
    torch.onnx.export(
        _module(name).eval(),
        (torch.randint(0, 256, (1, 3, SIZE, SIZE), dtype=torch.uint8),),
        str(path),
        opset_version=17,
        dynamo=False,
        input_names=["image"],
        output_names=list(outputs),
        dynamic_axes={output: {0: "n"} for output in outputs} | ({"image": {0: "n"}} if outputs == ("logits",) else {}),
    )
    return path


def large_model(name: str, path: Path) -> dict[str, Any]:
    """Return the network's resource."""
    network = LARGE[name]
    spec = {
        "artifact": {"uri": path.as_uri(), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
        "family": network.family,
        "classes": [{"id": number, "name": f"class {number}"} for number in range(network.classes)],
        "preprocess": [{"resize": {"mode": "stretch", "height": SIZE, "width": SIZE}}],
        "runtime": {"maxBatchSize": 1},
    }
    return {
        "apiVersion": "segserve.dev/v1alpha1",
        "kind": "SegmentationModel",
        "metadata": {"name": name},
        "spec": spec,
    }


def _module(name: str) -> Any:
    from torch import nn
    from torchvision.models.detection import maskrcnn_resnet50_fpn
    from torchvision.models.segmentation import deeplabv3_resnet50

    if name == "mask-rcnn-resnet50":
        from oracles.torchvision_networks import RawHeads

        network = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=50
        )
        return RawHeads(network, LARGE[name].outputs)

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21)

        def forward(self, image: Any) -> Any:
            return self.model(image.float() / 255)["out"]

    return Logits()
