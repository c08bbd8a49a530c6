"""Trains the zoo's networks on drawn scenes and writes weights/NAME.onnx.

    python -m examples.zoo.train all|NAME ... [--seed 0] [--steps N] [--threads 2] [--out FOLDER]

The same seed and number of threads give the same weights on the same machine.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import torch

from examples.zoo import teach_mask_rcnn, teach_maskformer, teach_semantic, teach_yolo
from examples.zoo.networks import NETWORKS
from examples.zoo.training import WEIGHTS, Run, blank, export, pool, record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from examples.zoo.networks.mask_rcnn import TinyMaskRcnn
    from examples.zoo.networks.maskformer import TinyMaskFormer
    from examples.zoo.networks.yolo import YoloLayout

BATCH_AXIS: Final = {0: "batch"}
ANY_SIZE: Final = {0: "batch", 2: "height", 3: "width"}


def semantic(run: Run, rate: float, axes: Mapping[int, str], channels_last: bool = False) -> nn.Module:
    """Train and export a network that gives logits."""
    network = NETWORKS[run.name]()
    teach_semantic.teach(network, pool(run.seed), run, rate, channels_last=channels_last)
    free = {"image": axes, "logits": axes}
    export(network, blank(channels_last), run.out, free, ["image"], ["logits"])
    return network


def yolo_seg(run: Run) -> nn.Module:
    """Train and export the one-stage network."""
    network, names = cast("YoloLayout", NETWORKS[run.name]()), ["output0", "output1"]
    teach_yolo.teach(network.network, pool(run.seed), run)
    free = dict.fromkeys(("images", *names), BATCH_AXIS)
    export(network, blank(), run.out, free, ["images"], names)
    return network


def mask_rcnn(run: Run) -> nn.Module:
    """Train and export the two-stage network, which takes one image at a time."""
    network = cast("TinyMaskRcnn", NETWORKS[run.name]())
    teach_mask_rcnn.teach(network, pool(run.seed), run)
    export(network, blank(), run.out, {}, ["image"], ["boxes", "labels", "scores", "masks"])
    return network


def maskformer(run: Run) -> nn.Module:
    """Train and export the network of queries."""
    network, names = cast("TinyMaskFormer", NETWORKS[run.name]()), ["class_queries_logits", "masks_queries_logits"]
    teach_maskformer.teach(network, pool(run.seed), run)
    export(network, blank(), run.out, dict.fromkeys(("image", *names), BATCH_AXIS), ["image"], names)
    return network


RECIPES: Final[Mapping[str, tuple[Callable[[Run], nn.Module], int]]] = {
    "unet": (partial(semantic, rate=3e-3, axes=ANY_SIZE), 650),
    "attention-unet": (partial(semantic, rate=3e-3, axes=ANY_SIZE), 650),
    "unet-plus-plus": (partial(semantic, rate=3e-3, axes=ANY_SIZE), 600),
    "deeplab": (partial(semantic, rate=3e-3, axes=ANY_SIZE), 500),
    "pspnet": (partial(semantic, rate=3e-3, axes=BATCH_AXIS), 500),
    "segformer": (partial(semantic, rate=2e-3, axes=BATCH_AXIS, channels_last=True), 800),
    "yolo-seg": (yolo_seg, 700),
    "mask-rcnn": (mask_rcnn, 700),
    "maskformer": (maskformer, 900),
}
"""How each network is trained, and for how many steps."""


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="+", choices=[*RECIPES, "all"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name in RECIPES if "all" in given.names else given.names:
        train, steps = RECIPES[name]
        run = Run(name, given.seed, given.steps or steps, given.out / f"{name}.onnx")
        torch.manual_seed(run.seed)
        started_s = time.monotonic()
        record(run, train(run), pool(run.seed), started_s)


if __name__ == "__main__":
    main()
