"""Trains YOLO11n-seg on drawn shapes for some minutes, so that it finds what the photos of all scenes show.

    python -m bench.rivals.network FOLDER

Weights of COCO would need the internet. FOLDER gets photos of 1280 x 720 pixels for each of SCENES, and two folders
with the network and the model.yaml of `segserve init`: yolo (as `export` writes it: a fixed batch of one image of
640 x 640) and yolo-batch (a free batch, `dynamic=True`). In a smoke run nothing is trained: both find one object.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

os.environ["YOLO_OFFLINE"] = "true"  # it reports what it runs

from ultralytics import YOLO

from bench.rivals.pipeline import masks, prepare
from bench.rivals.session import Network, session
from bench.smoke import is_smoke, sized


@dataclass(frozen=True, slots=True)
class Scene:
    """The range of the number of shapes in a photo and of their radius in pixels, and what the network finds in it."""

    shapes: tuple[int, int]
    radius: tuple[int, int]
    found: tuple[int, int]


SCENES: Final = {
    "few": Scene((6, 14), (20, 60), (4, 4)),
    "eight": Scene((12, 28), (20, 60), (7, 9)),
    "crowded": Scene((130, 200), (16, 28), (90, 110)),
}
SIZE: Final = (720, 1280)
TRAINED: Final = (288, 512)
"""Parts of a scene at 256 pixels show objects as large as whole scenes at 640."""
IMAGES: Final = 240
PHOTOS: Final = sized(10, 2)
SEGSERVE: Final = str(Path(sys.executable).with_name("segserve"))
MOST_DRAWN: Final = 1000
EPOCHS: Final = 12
DISC, RECTANGLE = 32, 73


def drawn(random: np.random.Generator, scene: Scene, size: tuple[int, int]) -> tuple[NDArray[Any], list[str]]:
    """Return an image of discs and rectangles apart, and their classes and outlines, as labels."""
    height, width = size
    coarse = random.integers(0, 255, (height // 80, width // 80, 3)).astype(np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = np.clip(image + random.normal(0, 12, image.shape), 0, 255).astype(np.uint8)
    taken, labels = np.empty((0, 3)), []
    for _ in range(max(3, random.integers(*scene.shapes) * height * width // (SIZE[0] * SIZE[1]))):
        radius = int(random.integers(*scene.radius))
        for _ in range(100):
            middle = random.integers(radius, (width - radius, height - radius))
            if (np.linalg.norm(taken[:, :2] - middle, axis=1) > taken[:, 2] + radius).all():
                break
        else:
            continue  # there is no room
        taken = np.vstack([taken, [*middle, radius]])
        is_disc = bool(random.integers(2))
        colour = (image[middle[1], middle[0]] + random.integers(90, 166, 3)) % 256  # unlike what is behind it
        angles = np.linspace(0, 2 * np.pi, 40 if is_disc else 4, endpoint=False) + random.uniform(0, 3)
        outline = (middle + radius * np.stack([np.cos(angles), np.sin(angles)], 1)).astype(np.int32)
        cv2.fillPoly(image, [outline], colour.tolist(), cv2.LINE_AA)
        corners = (outline / (width, height)).ravel()
        labels.append(" ".join([str(DISC if is_disc else RECTANGLE), *(f"{each:.4f}" for each in corners)]))
    return image, labels


def photos(random: np.random.Generator, scene: Scene, network: Network) -> Iterator[bytes]:
    """Yield photos, drawn until the network finds as many objects in each as the scene has."""
    least, most = sized(scene.found, (1, 300))
    count = 0
    for _ in range(MOST_DRAWN):
        jpeg = cv2.imencode(".jpg", drawn(random, scene, SIZE)[0], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        tensor, size = prepare(jpeg)
        if least <= len(masks(network(tensor), size)) <= most:
            yield jpeg
            count += 1
            if count == PHOTOS:
                return
    raise SystemExit(
        f"the network finds {least} to {most} objects in {count} of {MOST_DRAWN} drawn photos; train it longer"
    )


def served(folder: Path, name: str, network: Path, photos: Path) -> None:
    """Let `segserve init` write a folder of a network."""
    subprocess.run([SEGSERVE, "init", photos, network, "-o", folder / name], check=True)


def train(folder: Path, random: np.random.Generator) -> None:
    """Write the weights of a network that finds the shapes."""
    for kind in ("images", "labels"):
        (folder / "train" / kind).mkdir(parents=True)
    for number in range(IMAGES):
        image, labels = drawn(random, SCENES["crowded" if number % 3 == 2 else "eight"], TRAINED)
        cv2.imwrite(str(folder / f"train/images/{number}.jpg"), image)
        (folder / f"train/labels/{number}.txt").write_text("\n".join(labels))
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


def export(weights: Path, path: Path, *, is_free: bool) -> None:
    """Write a network's file."""
    exported = YOLO(weights).export(format="onnx", imgsz=640, simplify=False, dynamic=is_free)
    shutil.move(exported, path)


def find_one(path: Path) -> None:
    """Change a network's file so that it finds one object in each image, a rectangle."""
    network = onnx.load(path)
    detection = np.zeros((1, 116, 1), np.float32)
    detection[0, :5, 0] = 320, 250, 200, 150, 0.9
    detection[0, 84] = 10
    for output, answer in zip(
        network.graph.output, (detection, np.eye(1, 32, dtype=np.float32)[..., None, None]), strict=True
    ):
        name = output.name
        for node in network.graph.node:
            node.output[:] = [f"{each} untrained" if each == name else each for each in node.output]
            node.input[:] = [f"{each} untrained" if each == name else each for each in node.input]
        constants = {f"{name} zero": np.zeros(1, np.float32), f"{name} answer": answer}
        network.graph.initializer.extend(onnx.numpy_helper.from_array(each, key) for key, each in constants.items())
        product = onnx.helper.make_node("Mul", [f"{name} untrained", f"{name} zero"], [f"{name} product"])
        network.graph.node.extend(
            [product, onnx.helper.make_node("Add", [f"{name} product", f"{name} answer"], [name])]
        )
    onnx.save(network, path)


def main() -> None:
    folder, random = Path(sys.argv[1]).resolve(), np.random.default_rng(7)
    weights = folder / "run/weights/last.pt"
    if is_smoke():
        weights.parent.mkdir(parents=True)
        YOLO("yolo11n-seg.yaml").save(weights)
    elif not weights.exists():
        train(folder, random)
    for name in ("yolo", "yolo-batch"):
        export(weights, folder / f"{name}.onnx", is_free=name == "yolo-batch")
        if is_smoke():
            find_one(folder / f"{name}.onnx")
    for scene in SCENES:
        (folder / scene).mkdir(exist_ok=True)
        for number, photo in enumerate(photos(random, SCENES[scene], session(folder / "yolo.onnx", 0))):
            (folder / scene / f"{number}.jpg").write_bytes(photo)
    for name in ("yolo", "yolo-batch"):
        served(folder, name, folder / f"{name}.onnx", folder / "eight")


if __name__ == "__main__":
    main()
