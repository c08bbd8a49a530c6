"""Trains YOLO11n-seg on drawn shapes for some minutes, so that it finds about ten objects an image.

    python -m bench.rivals.network FOLDER

Weights of COCO would need the internet. FOLDER gets photos of 1280 x 720 pixels, net.onnx as `export` writes it (a
fixed batch of one image of 640 x 640), and model.yaml by `segserve init`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

os.environ["YOLO_OFFLINE"] = "true"  # it reports what it runs

from bench.rivals import operators  # noqa: F401  before what imports torchvision

# isort: split
from ultralytics import YOLO

TRAINED: Final = 240
PHOTOS: Final = 20
EPOCHS: Final = 12


def drawn(random: np.random.Generator) -> tuple[NDArray[Any], list[str]]:
    """Return an image (720, 1280, 3) of 8 to 13 discs and rectangles, and their classes and outlines, as labels."""
    coarse = random.integers(0, 255, (9, 16, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (1280, 720), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    labels = []
    for _ in range(random.integers(8, 14)):
        size, middle = int(random.integers(30, 90)), random.integers((100, 100), (1180, 620))
        is_disc, colour = bool(random.integers(2)), random.integers(0, 255, 3).tolist()
        angles = np.linspace(0, 2 * np.pi, 40 if is_disc else 4, endpoint=False) + (
            0 if is_disc else random.uniform(0, 3)
        )
        outline = (middle + size * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int32)
        cv2.fillPoly(image, [outline], colour, cv2.LINE_AA)
        labels.append(
            " ".join([str(32 if is_disc else 73), *(f"{each:.4f}" for each in (outline / (1280, 720)).ravel())])
        )
    return image, labels


def main() -> None:
    folder, random = Path(sys.argv[1]).resolve(), np.random.default_rng(7)
    for kind in ("images", "labels"):
        (folder / "train" / kind).mkdir(parents=True)
    (folder / "photos").mkdir()
    for number in range(TRAINED):
        image, labels = drawn(random)
        cv2.imwrite(str(folder / f"train/images/{number}.jpg"), image)
        (folder / f"train/labels/{number}.txt").write_text("\n".join(labels))
    for number in range(PHOTOS):
        cv2.imwrite(str(folder / f"photos/{number}.jpg"), drawn(random)[0], [cv2.IMWRITE_JPEG_QUALITY, 95])
    data = folder / "data.yaml"
    names = {number: f"class {number}" for number in range(80)}
    data.write_text(
        yaml.safe_dump({"path": str(folder), "train": "train/images", "val": "train/images", "names": names})
    )
    network = YOLO("yolo11n-seg.yaml")
    network.train(
        data=data, epochs=EPOCHS, imgsz=256, batch=8, device="cpu", project=str(folder), name="run", val=False,
        plots=False, workers=0, amp=False, cache="ram", mosaic=0.0, optimizer="AdamW", lr0=0.003, warmup_epochs=0.5,
    )  # fmt: skip
    exported = YOLO(folder / "run/weights/last.pt").export(format="onnx", imgsz=640, simplify=False)
    shutil.move(exported, folder / "net.onnx")
    segserve = Path(sys.executable).with_name("segserve")
    subprocess.run([segserve, "init", folder / "photos", folder / "net.onnx", "-o", folder / "yolo"], check=True)


if __name__ == "__main__":
    main()
