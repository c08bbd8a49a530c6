"""What a cascade of two of the zoo's networks saves, and loses: `python -m bench.archive.cascade`.

All answer drawn scenes that they were not trained on. The heavy network is U-Net++ as it is, and the same averaged over
mirrored and turned views of the image; lighter ones stand before it. Conformal risk control finds the threshold on some
of the scenes, for a declared loss of mean IoU; the others tell the loss, the share of the heavy network, and what is
saved of its CPU time, which is that of pre-processing, network and post-processing in this process. A threshold is
found and judged anew on random halves, so that the mean of the losses is known too. Beside the score stands the same
share of scenes drawn by chance. The figures go to bench/out/cascade.json (some minutes).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.platform import ROOT
from bench.rollout.report import markdown_table
from examples.zoo.world import CLASSES, Scene, draw_scenes
from segserve_builder.golden.risk_control import cascade_threshold
from segserve_builder.spec.model_spec import CascadeScore
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Cascade, LightNetwork
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.platforms.manifests import read_files

OUT: Final = ROOT / "bench/out/cascade.json"
ZOO: Final = ROOT / "examples/zoo/zoo.yaml"
HEAVY: Final = "zoo-unet-plus-plus"
VIEWS: Final = {"tta": {"flips": ["horizontal", "vertical", "both"], "rotations": [90, 270]}}
AVERAGED: Final = f"{HEAVY}, six views"
PAIRS: Final = {HEAVY: ("zoo-deeplab",), AVERAGED: ("zoo-deeplab", HEAVY)}
"""Light networks by the heavy one that they stand before."""
SEED: Final = 2000
MAX_LOSSES: Final = (0.005, 0.01, 0.02)
SPLITS: Final = 200
SCORES: Final[tuple[CascadeScore, ...]] = ("confidence", "area")
RAW: Final = RequestOptions(encoding="raw")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answers:
    """One network's answers: the mean IoU of each scene, scores by name, and CPU time a scene in seconds."""

    iou: Floats
    scores: dict[CascadeScore, Floats]
    cpu_s: float


def answered(name: str, scenes: Sequence[Scene], images: Sequence[bytes]) -> Answers:
    """Return the answers of the zoo's model `name`, and if it stands before another one their scores."""
    manifests = (written.complete() for written in read_files([ZOO]))
    manifest = next(each for each in manifests if each["metadata"]["name"] == name.partition(",")[0])
    if name == AVERAGED:
        manifest["spec"]["inference"] = [VIEWS]
    resource = SegmentationModel.model_validate(manifest)
    model = InProcessModel(
        resource.pipeline, ZOO.parent / "weights" / f"{resource.metadata.name.removeprefix('zoo-')}.onnx"
    )
    light = LightNetwork(artifact_sha256=resource.spec.artifact.sha256, family=resource.spec.family)
    is_light = any(name in before for before in PAIRS.values())
    rules = {when: Cascade(light=light, when=when, threshold=0.5) for when in SCORES if is_light}
    model.answer(images[0], RAW)
    started_s = time.process_time()
    if is_light:  # the score is a part of what it costs
        answers = [model.scored(image, RAW, rules["confidence"])[1] for image in images]
    else:
        answers = [model.answer(image, RAW) for image in images]
    cpu_s = (time.process_time() - started_s) / len(images)
    ious = [image_iou(answer, scene) for answer, scene in zip(answers, scenes, strict=True)]
    scores = {when: np.array([model.scored(image, RAW, rule)[0] for image in images]) for when, rule in rules.items()}
    return Answers(np.array(ious), scores, cpu_s)


def image_iou(answer: dict[str, Any], scene: Scene) -> float:
    """Return the mean IoU of the classes that the scene or its answer shows, as golden images are judged."""
    found = np.frombuffer(answer["LABELS"][0], np.uint8).reshape(scene.labels.shape)
    pairs = np.bincount(scene.labels.astype(int).ravel() * len(CLASSES) + found.ravel(), minlength=len(CLASSES) ** 2)
    table = pairs.reshape(len(CLASSES), len(CLASSES))
    either = table.sum(0) + table.sum(1) - table.diagonal()
    return float((table.diagonal()[either > 0] / either[either > 0]).mean())


def judged(light: Answers, heavy: Answers, when: CascadeScore, max_loss: float) -> dict[str, float]:
    """Return the means over random halves: the threshold is found on one, and judged on the other."""
    rng, number = np.random.default_rng(0), len(light.iou)
    scores, losses, change = light.scores[when], np.maximum(heavy.iou - light.iou, 0.0), heavy.iou - light.iou
    rows = []
    for _ in range(SPLITS):
        order = rng.permutation(number)
        known, further = order[: number // 2], order[number // 2 :]
        found = cascade_threshold(scores[known].tolist(), losses[known].tolist(), max_loss)
        is_light = scores[further] < found.threshold
        by_chance = rng.random(len(further)) < is_light.mean()
        saved = 1 - (light.cpu_s + (1 - is_light.mean()) * heavy.cpu_s) / heavy.cpu_s
        lost = [(values[further] * chosen).mean() for values, chosen in ((losses, is_light), (change, is_light))]
        rows.append([found.threshold, 1 - is_light.mean(), *lost, (change[further] * by_chance).mean(), saved])
    names = ("threshold", "heavyShare", "loss", "iouLost", "iouLostByChance", "cpuSaved")
    return {name: round(float(value), 4) for name, value in zip(names, np.mean(rows, axis=0), strict=True)}


def main() -> None:
    """Measure all networks, judge all pairs, write the figures, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=800, help="Drawn scenes; half of them find the threshold.")
    parser.add_argument("--output", type=Path, default=OUT)
    given = parser.parse_args()
    scenes = draw_scenes(given.scenes, SEED)
    images = [_png(scene) for scene in scenes]
    names = dict.fromkeys((*PAIRS, *(light for before in PAIRS.values() for light in before)))
    answers = {name: answered(name, scenes, images) for name in names}
    networks = {
        name: {"iou": round(float(each.iou.mean()), 4), "cpuMs": round(each.cpu_s * 1000, 2)}
        for name, each in answers.items()
    }
    report: dict[str, Any] = {"scenes": given.scenes, "seed": SEED, "splits": SPLITS, "networks": networks}
    report["cascades"] = [
        {"heavy": heavy, "light": light, "when": when, "maxLoss": loss}
        | judged(answers[light], answers[heavy], when, loss)
        for heavy, before in PAIRS.items()
        for light in before
        for when in SCORES
        for loss in MAX_LOSSES
    ]
    given.output.write_text(json.dumps(report, indent=1) + "\n")
    print(
        markdown_table(["network", "iou", "cpuMs"], [[name, *map(str, row.values())] for name, row in networks.items()])
    )
    rows = report["cascades"]
    print(markdown_table([*rows[0]], [[*map(str, row.values())] for row in rows]))


def _png(scene: Scene) -> bytes:
    file = BytesIO()
    Image.fromarray(scene.image).save(file, "PNG")
    return file.getvalue()


if __name__ == "__main__":
    main()
