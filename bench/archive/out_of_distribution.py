"""How well scores tell strange images from usual ones: `python -m bench.archive.out_of_distribution`.

Two networks of the zoo, a U-Net and YOLO, answer drawn scenes that they were not trained on, and the same scenes with a
planted strangeness. The area under the ROC curve is 1 where every strange image has a higher score than every usual
one, and 0.5 where the score tells nothing. Thresholds for at most 5 % of usual images come from 100 other scenes; the
tables also have the share that exceeds them. The figures go to bench/out/out_of_distribution.json (a few minutes).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from bench.platform import ROOT
from bench.rollout.report import markdown_table
from examples.zoo.world import SIZE, draw_scenes
from segserve_builder.spec.model_spec import OutOfDistributionPolicy
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.out_of_distribution import conformal_threshold
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.platforms.manifests import read_files

OUT: Final = ROOT / "bench/out/out_of_distribution.json"
ZOO: Final = ROOT / "examples/zoo/zoo.yaml"
PHOTO: Final = ROOT / "examples/coins/coins.png"
MODELS: Final = {
    "zoo-unet": ("maxSoftmax", "energy", "detail"),
    "zoo-yolo-seg": ("maxSoftmax", "detail"),
}
CALIBRATED: Final = 100
TESTED: Final = 100
RATE: Final = 0.05
USUAL: Final = "usual scenes"

Image: TypeAlias = NDArray[np.uint8]


def _noise(image: Image, random: np.random.Generator) -> Image:
    return np.asarray(np.clip(image + random.normal(0, 30, image.shape), 0, 255), np.uint8)


def _pattern(image: Image, random: np.random.Generator) -> Image:
    """Return the image with the sign of a random field added at 8 of 255, as fast gradient attacks look."""
    signs = random.choice([-8, 8], image.shape)
    return np.clip(image.astype(np.int16) + signs, 0, 255).astype(np.uint8)


def _jpeg(image: Image, random: np.random.Generator) -> Image:
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 5])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def _blur(image: Image, random: np.random.Generator) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), 3), np.uint8)


def _coins(image: Image, random: np.random.Generator) -> Image:
    """Return a part of a photograph of coins."""
    photo = cv2.imread(str(PHOTO), cv2.IMREAD_COLOR)
    assert photo is not None
    top, left = (int(random.integers(0, side - SIZE)) for side in photo.shape[:2])
    return np.asarray(photo[top : top + SIZE, left : left + SIZE], np.uint8)


STRANGE: Final[dict[str, Callable[[Image, np.random.Generator], Image]]] = {
    "noise of 30 of 255": _noise,
    "random signs of 8 of 255 (looks as FGSM does)": _pattern,
    "JPEG of quality 5": _jpeg,
    "blur of 3 pixels": _blur,
    "inverted": lambda image, random: 255 - image,
    "a third as bright": lambda image, random: (image / 3).astype(np.uint8),
    "photographs of coins": _coins,
    "nothing but noise": lambda image, random: random.integers(0, 256, image.shape, np.uint8),
    "an even grey": lambda image, random: np.full_like(image, random.integers(60, 200)),
}


def area(usual: Sequence[float], strange: Sequence[float]) -> float:
    """Return the area under the ROC curve: how likely a strange image has the higher score, ties counting half."""
    higher = np.subtract.outer(np.array(strange), np.array(usual))
    return float(((higher > 0) + 0.5 * (higher == 0)).mean())


def scores(model: InProcessModel, images: Sequence[Image]) -> list[float]:
    """Return the scores of images, without those that have none."""
    found = (model.score(cv2.imencode(".png", image)[1].tobytes()) for image in images)
    return [each for each in found if each is not None]


def measured(name: str, score: str, images: dict[str, list[Image]], calibration: list[Image]) -> dict[str, Any]:
    """Return the area and the share that is flagged of each kind of images, with a score of a network."""
    documents = [each.complete() for each in read_files([ZOO])]
    spec = next(SegmentationModel.model_validate(each) for each in documents if each["metadata"]["name"] == name).spec

    file = Path(spec.artifact.uri.removeprefix("file://"))

    policy = OutOfDistributionPolicy.model_validate({"score": score, "threshold": 0.0})
    model = InProcessModel(spec.pipeline(name).model_copy(update={"out_of_distribution": policy}), file)
    threshold = conformal_threshold(scores(model, calibration), RATE)
    found = {kind: scores(model, own) for kind, own in images.items()}
    return {
        kind: {
            "auroc": round(area(found[USUAL], own), 3) if own else None,
            "flagged": round(sum(each > threshold for each in own) / len(images[kind]), 3),
            "unscored": len(images[kind]) - len(own),
        }
        for kind, own in found.items()
    }


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    random = np.random.default_rng(7)
    drawn = [scene.image for scene in draw_scenes(CALIBRATED + TESTED, 4242)]
    calibration, usual = drawn[:CALIBRATED], drawn[CALIBRATED:]
    images = {USUAL: usual} | {kind: [change(each, random) for each in usual] for kind, change in STRANGE.items()}
    results = {}
    for name, kinds in MODELS.items():
        for score in kinds:
            results[f"{name} {score}"] = measured(name, score, images, calibration)
            print(name, score, results[f"{name} {score}"], flush=True)
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    rows = []
    for kind in images:
        cells = []
        for own in (each[kind] for each in results.values()):
            none = f", {own['unscored']} without a score" if own["unscored"] else ""
            cells.append(f"{own['auroc']}, {100 * own['flagged']:.0f} %{none}")
        rows.append([kind, *cells])
    print(markdown_table(["images", *results], rows))


if __name__ == "__main__":
    main()
