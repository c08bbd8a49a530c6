"""Trains a small U-Net on drawn scenes for two minutes: 10 to 20 ms with one thread at 512 x 512.

    python -m bench.rivals.unet FOLDER

FOLDER gets photos of 1280 x 720 pixels (semantic), and a folder unet with the network and the model.yaml of
`segserve init`. Scenes and their five classes are the zoo's.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import torch
import yaml
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from bench.rivals.network import PHOTOS, SEGSERVE, served
from bench.smoke import sized
from examples.zoo.world import CLASSES, Scene, draw_scene

CHANNELS: Final = (8, 16, 32, 64)
DRAWN: Final = (180, 320)
TRAINED, STEPS, BATCH = sized(160, 40), sized(160, 40), 4


def convolution(given: int, channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(given, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """Images (B, 3, 512, 512), 0 to 1, to logits (B, 5, 256, 256)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(convolution(a, b, 2) for a, b in pairwise((3, *CHANNELS)))
        self.same = nn.ModuleList(convolution(channels, channels) for channels in CHANNELS)
        self.up = nn.ModuleList(convolution(a + b, a) for a, b in pairwise(CHANNELS))
        self.head = nn.Conv2d(CHANNELS[0], len(CLASSES), 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features, skips = images, list[torch.Tensor]()
        for down, same in zip(self.down, self.same, strict=True):
            features = same(down(features))
            skips.append(features)
        for skip, up in zip(reversed(skips[:-1]), reversed(self.up), strict=True):
            features = up(torch.cat([skip, functional.interpolate(features, scale_factor=2.0)], 1))
        logits: torch.Tensor = self.head(features)
        return logits


def trained(scenes: list[Scene], random: np.random.Generator) -> UNet:
    """Return the network after some steps with scenes and their mirror images."""
    images = np.stack([cv2.resize(scene.image, (512, 512), interpolation=cv2.INTER_CUBIC) for scene in scenes])
    labels = np.stack([cv2.resize(scene.labels, (256, 256), interpolation=cv2.INTER_NEAREST) for scene in scenes])
    network = UNet().train()
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.005)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.01, STEPS)
    weights = torch.tensor([0.3, *[1.0] * (len(CLASSES) - 1)])
    for _ in range(STEPS):
        chosen, turn = random.integers(0, len(scenes), BATCH), (1, -1)[random.integers(2)]
        batch = images[chosen][:, :, ::turn].transpose(0, 3, 1, 2) / np.float32(255)
        logits = network(torch.from_numpy(np.ascontiguousarray(batch)))
        wanted = torch.from_numpy(np.ascontiguousarray(labels[chosen][:, :, ::turn])).long()
        loss = functional.cross_entropy(logits, wanted, weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rates.step()
    return network.eval()


def export(network: UNet, path: Path) -> None:
    """Write the network with a free batch, and the names of its classes."""
    free = {"images": {0: "batch"}, "logits": {0: "batch"}}
    given: Any = (torch.zeros(1, 3, 512, 512),)
    torch.onnx.export(
        network, given, path, input_names=["images"], output_names=["logits"], dynamic_axes=free, dynamo=False
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"names": str(dict(enumerate(CLASSES)))})
    onnx.save(model, path)


def photo(scene: Scene) -> NDArray[Any]:
    """Return a scene as a photo (720, 1280, 3), BGR."""
    return cv2.resize(scene.image[..., ::-1], (1280, 720), interpolation=cv2.INTER_CUBIC)


def main() -> None:
    folder, random = Path(sys.argv[1]).resolve(), np.random.default_rng(7)
    torch.manual_seed(7)
    network = trained([draw_scene(random, *DRAWN) for _ in range(TRAINED)], random)
    (folder / "semantic").mkdir(parents=True)
    for number in range(PHOTOS):
        path = str(folder / "semantic" / f"{number}.jpg")
        cv2.imwrite(path, photo(draw_scene(random, *DRAWN)), [cv2.IMWRITE_JPEG_QUALITY, 95])
    export(network, folder / "unet.onnx")
    served(folder, "unet", folder / "unet.onnx", folder / "semantic")
    state_range(folder / "unet/model.yaml", folder / "semantic")


def state_range(file: Path, photos: Path) -> None:
    """Say in a model.yaml that pixels are 0 to 1; after few steps of training that cannot be guessed."""
    resource = yaml.safe_load(file.read_text())
    steps = [step for step in resource["spec"]["preprocess"] if "normalise" not in step]
    resource["spec"]["preprocess"] = [*steps, {"normalise": {"mean": [0.0], "std": [1.0]}}]
    file.write_text(yaml.safe_dump(resource, sort_keys=False))
    subprocess.run([SEGSERVE, "golden", "record", photos, "-f", file], check=True)


if __name__ == "__main__":
    main()
