"""What both training scripts share: their arguments, the optimiser, the export and the record of a run."""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import torch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

HERE = Path(__file__).parent
OPSET = 17


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a training script; `out` is the ONNX file, its record lies beside it as .json."""

    seed: int
    steps: int
    out: Path
    started: float


def start(description: str, steps: int, out: str) -> Run:
    """Read the command line, make torch repeatable and start the clock."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--out", type=Path, default=HERE / out)
    given = parser.parse_args()
    torch.manual_seed(given.seed)
    torch.set_num_threads(2)
    cv2.setNumThreads(1)
    return Run(given.seed, given.steps, given.out, time.monotonic())


class Optimiser:
    """AdamW on a one-cycle schedule."""

    def __init__(self, network: nn.Module, rate: float, steps: int) -> None:
        self._network = network
        self._adam = torch.optim.AdamW(network.parameters(), rate, weight_decay=1e-3)
        self._cycle = torch.optim.lr_scheduler.OneCycleLR(self._adam, rate, total_steps=steps, pct_start=0.15)

    def step(self, loss: torch.Tensor) -> None:
        """Move the weights one step down the loss."""
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self._network.parameters(), 10.0)
        self._adam.step()
        self._cycle.step()


def jitter(rng: np.random.Generator, grey: NDArray[Any]) -> NDArray[np.float32]:
    """Change contrast and brightness of a grey image 0..255; gives float32 0..255."""
    pixels = (grey.astype(np.float32) - 127.5) * rng.uniform(0.7, 1.3) + 127.5
    return np.asarray(np.clip(pixels + 255 * rng.uniform(-0.12, 0.12), 0, 255), np.float32)


def export(
    network: nn.Module,
    size: tuple[int, int],
    out: Path,
    free_axes: Mapping[str, Mapping[int, str]],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    """Write `network` as ONNX with a uint8 input (N, 1, *size); `free_axes` names the axes that may vary."""
    torch.onnx.export(
        network.eval(),
        (torch.zeros(1, 1, *size, dtype=torch.uint8),),
        str(out),
        input_names=list(inputs),
        output_names=list(outputs),
        dynamic_axes={name: dict(axes) for name, axes in free_axes.items()},
        opset_version=OPSET,
        dynamo=False,
    )
    # The exporter leaves some dimensions unnamed that follow from the graph.
    onnx.save(onnx.shape_inference.infer_shapes(onnx.load(out), data_prop=True), out)


def record(run: Run, network: nn.Module, pool: Sequence[NDArray[Any]]) -> None:
    """Write how the file came to be beside it: seed, steps, digest of the drawn pool, versions, minutes."""
    drawn = hashlib.sha256()
    for array in pool:
        drawn.update(np.ascontiguousarray(array).data)
    facts = {
        "seed": run.seed,
        "steps": run.steps,
        "parameters": sum(weights.numel() for weights in network.parameters()),
        "datasetSha256": drawn.hexdigest(),
        "exporter": f"torch.onnx {torch.__version__}",
        "minutes": round((time.monotonic() - run.started) / 60, 1),
    }
    run.out.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
