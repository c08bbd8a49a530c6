"""Small torchvision RetinaNets and SSDs with random weights, for `Debian`: their raw heads, answers and ONNX files.

`RawHeads` is what exports one of them: it works for torchvision's own networks as it stands.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

torch.set_num_threads(1)

NAMES = ("cls_logits", "bbox_regression", "anchors", "levels")
CLASSES = 7
SSD_SIZE = 128


class RawHeads(nn.Module):
    """The heads and anchors of a torchvision RetinaNet or SSD, for normalised images [batch, 3, height, width].

    Gives `cls_logits` [batch, A, C], `bbox_regression` [batch, A, 4], `anchors` [batch, A, 4] and `levels` [batch, L],
    the numbers of anchors of each feature map. The network's own resizing and normalisation are left out.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        features = list(self.network.backbone(images).values())
        heads = self.network.head(features)
        anchors = self.network.anchor_generator(ImageList(images, [(0, 0)]), features)[0]
        cells = torch.stack([torch._shape_as_tensor(feature)[2:].prod() for feature in features])
        a_cell = self.network.anchor_generator.num_anchors_per_location()
        levels = cells * torch.tensor(a_cell)
        batch = images.shape[0]
        logits, deltas = heads["cls_logits"], heads["bbox_regression"]
        return logits, deltas, anchors.expand(batch, -1, -1), levels.expand(batch, -1)


class Pyramid(nn.Module):
    """Three feature maps, at strides 8, 16 and 32."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 9, stride=8, padding=4)
        self.down = nn.ModuleList(nn.Conv2d(8, 8, 3, stride=2, padding=1) for _ in range(2))

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        maps = [self.stem(images).relu()]
        for step in self.down:
            maps.append(step(maps[-1]).relu() + 0.1)
        return OrderedDict((str(index), item) for index, item in enumerate(maps))


def network(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    if name == "retinanet":
        sizes = tuple((size, int(size * 1.4)) for size in (16, 32, 64))
        anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)
        model: nn.Module = RetinaNet(Pyramid(), CLASSES, min_size=96, max_size=160, anchor_generator=anchors)
    else:
        boxes = DefaultBoxGenerator([[2], [2, 3], [2]])
        model = SSD(Pyramid(), boxes, (SSD_SIZE, SSD_SIZE), CLASSES, head=_ssd_head(boxes))
    # As initialised, no class would be probable anywhere.
    for key, weight in model.head.named_parameters():
        # As initialised, no class is probable anywhere.
        if key.endswith("weight"):
            nn.init.kaiming_normal_(weight)
        else:
            nn.init.constant_(weight, -1.5 if key.endswith("cls_logits.bias") else 0.0)
    return model.eval()


def _ssd_head(boxes: DefaultBoxGenerator) -> nn.Module:
    from torchvision.models.detection.ssd import SSDHead

    return SSDHead([Pyramid.out_channels] * 3, boxes.num_anchors_per_location(), CLASSES)


@torch.no_grad()
def answer(name: str, seed: int, image: np.ndarray) -> Any:
    """Return the network's input, its placement, the raw heads, and torchvision's own boxes, scores, labels.

    `image` is float32 (3, H, W) in 0..1; boxes are in its pixels.
    """
    model = network(name, seed)
    images, _ = model.transform([torch.from_numpy(image)])
    heads = RawHeads(model)(images.tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model([torch.from_numpy(image)])[0]
    return (
        images.tensors.numpy(),
        list(images.image_sizes[0]),
        [head.numpy() for head in heads],
        [found[key].numpy() for key in ("boxes", "scores", "labels")],
    )


def export(name: str, seed: int, path: str) -> None:
    """Write the raw network as ONNX; RetinaNet's images may have any size, SSD's are squares of SSD_SIZE."""
    free = {0: "batch", 2: "height", 3: "width"} if name == "retinanet" else {0: "batch"}
    side = 96 if name == "retinanet" else SSD_SIZE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            RawHeads(network(name, seed)),
            (torch.rand(2, 3, side, side),),
            path,
            input_names=["image"],
            output_names=list(NAMES),
            dynamic_axes={"image": free}
            | {key: {0: "batch", 1: "anchors"} for key in NAMES[:3]}
            | {"levels": {0: "batch"}},
            opset_version=16,
        )
