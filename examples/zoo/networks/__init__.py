"""The nine networks of the zoo, one file each, by the names of their files in weights/."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from examples.zoo.networks.attention_unet import AttentionUNet
from examples.zoo.networks.deeplab import DeepLab
from examples.zoo.networks.mask_rcnn import TinyMaskRcnn
from examples.zoo.networks.maskformer import TinyMaskFormer
from examples.zoo.networks.pspnet import PspNet
from examples.zoo.networks.segformer import SegFormer
from examples.zoo.networks.unet import UNet
from examples.zoo.networks.unet_plus_plus import UNetPlusPlus
from examples.zoo.networks.yolo import TinyYoloSeg, YoloLayout
from examples.zoo.world import CLASSES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

THINGS: Final = len(CLASSES) - 1

NETWORKS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "unet": lambda: UNet(len(CLASSES)),
    "attention-unet": lambda: AttentionUNet(len(CLASSES)),
    "unet-plus-plus": lambda: UNetPlusPlus(len(CLASSES)),
    "deeplab": lambda: DeepLab(len(CLASSES)),
    "pspnet": lambda: PspNet(len(CLASSES)),
    "segformer": lambda: SegFormer(len(CLASSES)),
    "yolo-seg": lambda: YoloLayout(TinyYoloSeg(THINGS)),
    "mask-rcnn": lambda: TinyMaskRcnn(THINGS),
    "maskformer": lambda: TinyMaskFormer(len(CLASSES)),
}
"""Untrained networks as they are exported."""
