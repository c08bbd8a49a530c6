"""What 100 labels bring, chosen as `segserve samples list` ranks samples or at random: `python -m bench.label_gain`.

The zoo's U-Net learns a drawn set, then answers a pool of samples. Of these 100 are chosen, their labels are added, and
the network is trained on; each choice begins with the same weights and takes as many steps. In the first world the pool
is like the set that was learnt; in the second, one sample of eight was taken at night, which the network never saw. The
samples' uncertainty and embeddings are computed by the code of the capture service. The figures go to
bench/out/label_gain.json, and the table is printed (an hour on one busy core).
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from bench.rollout.report import markdown_table
from examples.zoo.networks.unet import UNet
from examples.zoo.teach_semantic import teach
from examples.zoo.training import Run
from examples.zoo.world import CLASSES, Scene, draw_scenes
from segserve_builder.capture.ranking import RankedBy, ranked
from segserve_builder.capture.samples import embedding, uncertainty_of
from segserve_builder.capture.store import ManifestRow

OUT: Final = Path(__file__).parent / "out/label_gain.json"
LEARNT: Final = 100
POOL: Final = 600
LABELS: Final = 100
TESTED: Final = 150
FIRST_STEPS: Final = 250
FURTHER_STEPS: Final = 150
FIRST_RATE: Final = 4e-3
FURTHER_RATE: Final = 1.5e-3
NIGHT_INTERVAL: Final = 8
BATCH: Final = 25
RANDOM: Final = "random"
T_95: Final = {3: 4.303, 5: 2.776, 8: 2.365, 10: 2.262}
"""Quantiles of Student's distribution for 95 %, by the number of seeds."""


@dataclass(frozen=True, slots=True)
class World:
    """Scenes of a pool and of the test: `photographed` changes the i-th one."""

    says: str
    photographed: Callable[[Scene, int], Scene]


def _as_learnt(scene: Scene, number: int) -> Scene:
    return scene


def _some_at_night(scene: Scene, number: int) -> Scene:
    if number % NIGHT_INTERVAL:
        return scene
    noise = np.random.default_rng(number).normal(0, 12, scene.image.shape)
    return replace(scene, image=np.clip(scene.image * 0.3 + noise, 0, 255).astype(np.uint8))


WORLDS: Final = {
    "same": World("like the set that was learnt", _as_learnt),
    "night": World("one sample of eight at night", _some_at_night),
}


def probabilities(network: UNet, scenes: Sequence[Scene]) -> NDArray[np.float32]:
    """Return the classes' probabilities (N, C, H, W)."""
    network.eval()
    parts = []
    with torch.no_grad():
        for at in range(0, len(scenes), BATCH):
            images = np.stack([scene.image for scene in scenes[at : at + BATCH]]).transpose(0, 3, 1, 2)
            parts.append(torch.softmax(network(torch.from_numpy(np.ascontiguousarray(images))), 1).numpy())
    return np.concatenate(parts)


def mean_iou(network: UNet, scenes: Sequence[Scene]) -> float:
    """Return the mean over classes of the IoU of all scenes' pixels."""
    found = probabilities(network, scenes).argmax(1)
    labels = np.stack([scene.labels for scene in scenes])
    each = [
        ((found == number) & (labels == number)).sum() / ((found == number) | (labels == number)).sum()
        for number in range(len(CLASSES))
    ]
    return float(np.mean(each))


def rows_of(network: UNet, scenes: Sequence[Scene]) -> list[ManifestRow]:
    """Return the samples as the capture service describes them."""
    rows = []
    for number, (scene, chances) in enumerate(zip(scenes, probabilities(network, scenes), strict=True)):
        labels = chances.argmax(0)
        areas = np.bincount(labels.ravel(), minlength=len(CLASSES))
        sums = np.bincount(labels.ravel(), chances.max(0).ravel(), len(CLASSES))
        present = areas > 0
        answer = {
            "SIZE": np.array(labels.shape),
            "CLASSES": np.flatnonzero(present),
            "AREAS": areas[present],
            "CONFIDENCE": sums[present] / areas[present],
        }
        row = ManifestRow(
            key=str(number),
            model="zoo",
            revision="zoo-0",
            request_id="",
            captured_at_s=float(number),
            reasons=(),
            image="",
            image_sha256="",
            size=(labels.shape[0], labels.shape[1]),
            uncertainty=uncertainty_of(answer, None),
            embedding=embedding(scene.image),
        )
        rows.append(row)
    return rows


def chosen(network: UNet, pool: Sequence[Scene], by: str, seed: int) -> list[Scene]:
    """Return the samples that are labelled."""
    if by == RANDOM:
        numbers = np.random.default_rng(seed).choice(len(pool), LABELS, replace=False).tolist()
    else:
        (ranking,) = (name for name in get_args(RankedBy) if name == by)
        numbers = [int(row.key) for row in ranked(rows_of(network, pool), ranking, LABELS)]
    return [pool[number] for number in numbers]


def trained_on(network: UNet, scenes: Sequence[Scene], seed: int, steps: int, rate: float) -> UNet:
    """Return the network after further steps."""
    further = copy.deepcopy(network)
    torch.manual_seed(seed)
    teach(further, scenes, Run("label_gain", seed, steps, OUT), rate)
    return further


def run(seed: int) -> list[dict[str, Any]]:
    """Return each world's and each choice's mIoU before and after."""
    torch.manual_seed(seed)
    learnt = draw_scenes(LEARNT, 100 + seed)
    first = trained_on(UNet(len(CLASSES)), learnt, seed, FIRST_STEPS, FIRST_RATE)
    results = []
    for name, world in WORLDS.items():
        drawn = enumerate(draw_scenes(POOL + TESTED, 200 + seed))
        scenes = [world.photographed(scene, number) for number, scene in drawn]
        pool, tested = scenes[:POOL], scenes[POOL:]
        before = mean_iou(first, tested)
        for by in (RANDOM, "uncertainty", "diversity"):
            labelled = chosen(first, pool, by, seed)
            after = mean_iou(trained_on(first, [*learnt, *labelled], seed, FURTHER_STEPS, FURTHER_RATE), tested)
            night = sum(scene.image.mean() < 60 for scene in labelled)
            result = {"world": name, "by": by, "seed": seed, "before": before, "after": after, "dark": int(night)}
            results.append(result)
            print(result, flush=True)
    return results


def interval(values: Sequence[float]) -> str:
    """Return the mean in points of IoU with its 95 % interval over seeds."""
    points = 100 * np.array(values)
    half = T_95[len(points)] * points.std(ddof=1) / np.sqrt(len(points))
    return f"{points.mean():+.1f} ({points.mean() - half:+.1f} to {points.mean() + half:+.1f})"


def report(results: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    rows = []
    for name, world in WORLDS.items():
        gains = {}
        for by in (RANDOM, "uncertainty", "diversity"):
            own = [each for each in results if (each["world"], each["by"]) == (name, by)]
            gains[by] = [each["after"] - each["before"] for each in own]
            beyond = [one - other for one, other in zip(gains[by], gains[RANDOM], strict=True)]
            before = f"{np.mean([each['before'] for each in own]):.3f}"
            dark = f"{np.mean([each['dark'] for each in own]):.0f}"
            rows.append([world.says, before, by, interval(gains[by]), "" if by == RANDOM else interval(beyond), dark])
    head = ["pool", "mIoU before", "chosen by", "points of mIoU for 100 labels", "more than random", "dark ones"]
    print(markdown_table(head, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, choices=sorted(T_95), help="repetitions")
    torch.set_num_threads(1)
    results = [each for seed in range(parser.parse_args().seeds) for each in run(seed)]
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=2) + "\n")
    report(results)


if __name__ == "__main__":
    main()
