"""Writes small random-weight torchvision detectors as ONNX: `export_torchvision.py FOLDER`, in Debian's Python.

`{faster,mask,keypoint}_rcnn.onnx` take a UINT8 image and give raw heads; `faster_rcnn_plain.onnx` is torchvision's own
export as it is, with an image FP32 [3, height, width] that the network resizes itself.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torchvision_networks import OUTPUTS, RawHeads, network

OPSET = 13
SEED = 7


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")  # of tracing
    image = torch.randint(0, 256, (1, 3, 128, 160), dtype=torch.uint8)
    for kind, outputs in OUTPUTS.items():
        raw = RawHeads(network(kind, SEED), outputs).eval()
        write(raw, image, folder / f"{kind}_rcnn.onnx", outputs, {2: "height", 3: "width"})
    plain = network("faster", SEED)
    write(plain, [image[0] / 255], folder / "faster_rcnn_plain.onnx", OUTPUTS["faster"], {1: "height", 2: "width"})


def write(model: torch.nn.Module, image: Any, path: Path, outputs: tuple[str, ...], size: dict[int, str]) -> None:
    axes = {"image": size} | {name: {0: "detections"} for name in outputs}
    torch.onnx.export(
        model,
        (image,),
        str(path),
        opset_version=OPSET,
        input_names=["image"],
        output_names=list(outputs),
        dynamic_axes=axes,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
