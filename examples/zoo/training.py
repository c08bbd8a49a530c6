"""What all trainings of the zoo share: the drawn pool, batches, the optimiser, the export and the record of a run."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnx
import torch

from examples.zoo.world import SIZE, Scene, draw_scenes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

HERE = Path(__file__).parent
WEIGHTS = HERE / "weights"
POOL, BATCH = 1600, 8
OPSET = 17


@dataclass(frozen=True, slots=True)
class Run:
    """One training: `out` is the ONNX file, its record lies beside it as .json."""

    name: str
    seed: int
    steps: int
    out: Path


class Optimiser:
    """AdamW on a one-cycle schedule; says now and then how the loss goes."""

    def __init__(self, network: nn.Module, rate: float, run: Run) -> None:
        self._network, self._run, self._done = network, run, 0
        self._adam = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(self._adam, rate, total_steps=run.steps, pct_start=0.15)

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights one step down the loss."""
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 10.0)
        self._adam.step()
        self._cycle.step()
        self._done += 1
        if self._done % 50 == 0:
            print(f"{self._run.name}: step {self._done} of {self._run.steps}, loss {loss.item():.3f}", flush=True)


@lru_cache(maxsize=1)
def pool(seed: int) -> list[Scene]:
    """Return the scenes that networks are trained on."""
    cv2.setNumThreads(1)
    # The report's scenes have another first number: none is trained on.
    return draw_scenes(POOL, seed)


def batch_of(rng: np.random.Generator, scenes: Sequence[Scene]) -> tuple[torch.Tensor, list[Scene]]:
    """Return turned and jittered images 0..255, float32 (BATCH, 3, H, W), and their scenes turned alike."""
    batch = [_turned(rng, scenes[index]) for index in rng.integers(0, len(scenes), BATCH)]
    pixels = np.stack([_jittered(rng, scene) for scene in batch]).transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(pixels)), batch


def _turned(rng: np.random.Generator, scene: Scene) -> Scene:
    arrays = [scene.image, scene.labels, scene.objects]
    if rng.random() < 0.5:
        arrays = [array[:, ::-1] for array in arrays]
    turns = int(rng.integers(4))
    image, labels, objects = (np.ascontiguousarray(np.rot90(array, turns)) for array in arrays)
    return Scene(image, labels, objects, scene.classes)


def _jittered(rng: np.random.Generator, scene: Scene) -> np.ndarray:
    """Return float32 pixels of other contrast and brightness."""
    pixels = (scene.image.astype(np.float32) - 127.5) * rng.uniform(0.8, 1.2) + 127.5
    return np.clip(pixels + rng.uniform(-20, 20), 0, 255)


@dataclass(frozen=True, slots=True)
class Objects:
    """The objects of one scene: boxes (N, 4) as x1 y1 x2 y2 in pixels, classes from 0 (N,), masks 0..1 (N, H, W)."""

    boxes: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor


def objects_of(scene: Scene) -> Objects:
    """Return what is to be found in a scene; class 0 is the first class that is no ground."""
    numbers = np.arange(1, len(scene.classes) + 1)[:, None, None]
    masks = scene.objects == numbers
    boxes = []
    for mask in masks:
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        boxes.append((x, y, x + width, y + height))
    return Objects(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.from_numpy(scene.classes.astype(np.int64) - 1),
        torch.from_numpy(masks.astype(np.float32)),
    )


def export(
    network: nn.Module,
    example: torch.Tensor,
    out: Path,
    free_axes: Mapping[str, Mapping[int, str]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write `network` as ONNX for inputs like `example`; `free_axes` names the axes that may vary.

    Weights keep their names and values, so that `weights.load` finds them again: nothing is folded.
    """
    out.parent.mkdir(exist_ok=True)
    torch.onnx.export(
        network.eval(),
        (example,),
        str(out),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(axes) for name, axes in free_axes.items()},
        opset_version=OPSET,
        dynamo=False,
        do_constant_folding=False,
        training=torch.onnx.TrainingMode.PRESERVE,
    )
    # The exporter leaves some dimensions unnamed that follow from the graph.
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(out), data_prop=True), out)


def blank(channels_last: bool = False) -> torch.Tensor:
    """Return an image to trace a network with, uint8 (1, 3, SIZE, SIZE) or with the channels last."""
    shape = (1, SIZE, SIZE, 3) if channels_last else (1, 3, SIZE, SIZE)
    return torch.zeros(shape, dtype=torch.uint8)


def record(run: Run, network: nn.Module, scenes: Sequence[Scene], started_s: float) -> None:
    """Write how the file came to be beside it: seed, steps, digest of the drawn pool, versions, minutes."""
    drawn = hashlib.sha256()
    for scene in scenes:
        for array in (scene.image, scene.labels, scene.objects, scene.classes):
            drawn.update(np.ascontiguousarray(array).data)
    facts = {
        "seed": run.seed,
        "steps": run.steps,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "datasetSha256": drawn.hexdigest(),
        "threads": torch.get_num_threads(),
        "exporter": f"torch.onnx {torch.__version__}",
        "minutes": round((time.monotonic() - started_s) / 60, 1),
    }
    run.out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
