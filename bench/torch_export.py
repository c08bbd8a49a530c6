"""Programs of torch.export beside ONNX Runtime on the CPU: `python -m bench.torch_export`.

Networks are those of the zoo that take images of any size, with random weights, on one of 512 x 512 pixels. Outputs are
compared first; then both run in turns, with one thread each. Ratios are medians over turns. Figures go to
bench/out/torch-export.json.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Final

import numpy as np
import onnxruntime
import torch

from bench.smoke import output, sized
from examples.zoo.networks.attention_unet import AttentionUNet
from examples.zoo.networks.deeplab import DeepLab
from examples.zoo.networks.unet import UNet
from examples.zoo.networks.unet_plus_plus import UNetPlusPlus

NETWORKS: Final[Mapping[str, Callable[[int], torch.nn.Module]]] = {
    "unet": UNet,
    "unet-plus-plus": UNetPlusPlus,
    "attention-unet": AttentionUNet,
    "deeplab": DeepLab,
}
SIDE: Final = 512
CLASSES: Final = 6
TURNS: Final = sized(15, 1)
TOLERANCE: Final = 1e-4
"""Largest difference, relative to the outputs' range."""


def ms(call: Callable[[], Any]) -> float:
    """Return the time of a call in ms."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def row(network: torch.nn.Module) -> dict[str, float]:
    """Return the median times of a network by both, and the median ratio; raises ValueError if outputs differ."""
    image, file = torch.rand(1, 3, SIDE, SIDE), io.BytesIO()
    program = torch.export.export(network, (image,)).module()
    torch.onnx.export(network, (image,), file, input_names=["image"], opset_version=17, dynamo=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(file.getvalue(), options)

    def by_torch() -> Any:
        return program(image)

    def by_onnxruntime() -> Any:
        return session.run(None, {"image": image.numpy()})[0]

    expected, found = by_torch().numpy(), by_onnxruntime()
    if np.abs(expected - found).max() > TOLERANCE * np.ptp(expected):
        raise ValueError("the outputs differ")
    turns = [(ms(by_torch), ms(by_onnxruntime)) for _ in range(TURNS)]
    return {
        "torch_ms": round(median(each for each, _ in turns), 1),
        "onnxruntime_ms": round(median(each for _, each in turns), 1),
        "ratio": round(median(first / second for first, second in turns), 2),
    }


def main() -> None:
    """Measure all networks, and write the figures."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows = {}
    with torch.no_grad():
        for name, made in NETWORKS.items():
            rows[name] = row(made(CLASSES).eval())
            print(name, rows[name], flush=True)
    output("bench/out/torch-export.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
