"""Trains the encoder and the decoder on drawn scenes of coins, and writes encoder.onnx and decoder.onnx.

    PYTHONPATH=examples/coins python examples/prompt/train.py [--seed 0] [--steps 1800]

Each step asks twice about each coin: first by a click or a box, then by one more click where the answer was wrong.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from promptable import BOTTOM_RIGHT, CELLS, EMBEDDED, NOT_OBJECT, OBJECT, SIDE, STRIDE, TOP_LEFT, Decoder, Encoder
from scenes import draw_pool
from torch import nn
from torch.nn import functional
from training import OPSET, Optimiser, jitter, record, start

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Pool = tuple[NDArray[np.uint8], NDArray[np.uint8]]

HERE = Path(__file__).parent
SCENES, SIZE, CROP, BATCH, PROMPTS = 1500, 256, 160, 6, 3
RATE = 3e-3
SMALLEST = 40
"""Pixels of the smallest coin that is asked for."""
PADDING = -1
POINTS = 3
"""Points of a prompt: at most the corners of a box and one correction."""
ON_TABLE, BOXES = 0.1, 0.25
"""Shares of prompts that click where no coin is, which select nothing, and that are boxes."""
INPUTS = ("image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input")


@dataclass(frozen=True, slots=True)
class Asked:
    """Images 0..255 float32 (BATCH, 1, CROP, CROP), and PROMPTS prompts of each with the masks that they select."""

    images: torch.Tensor
    masks: torch.Tensor
    points: torch.Tensor
    labels: torch.Tensor


def batch_of(rng: np.random.Generator, pool: Pool) -> Asked:
    """Return random crops, turned and jittered, some with zeros at an edge as small images have them."""
    images, masks, points, labels = [], [], [], []
    while len(images) < BATCH:
        index = rng.integers(0, len(pool[0]))
        top, left = rng.integers(0, SIZE - CROP + 1, 2)
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        image, label = (
            np.rot90(array[index, top : top + CROP, left : left + CROP][:, :: -1 if mirrored else 1], turns).copy()
            for array in pool
        )
        numbers = np.flatnonzero(np.bincount(label.ravel(), minlength=1)[1:] >= SMALLEST) + 1
        if not numbers.size:
            continue
        pixels = jitter(rng, image)
        if rng.random() < 0.4:
            end = int(rng.integers(CROP // 2, CROP))
            pixels[end:] = label[end:] = 0
            numbers = np.flatnonzero(np.bincount(label.ravel(), minlength=1)[1:] >= SMALLEST) + 1
        images.append(pixels)
        for _ in range(PROMPTS):
            chosen = label == (0 if rng.random() < ON_TABLE or not numbers.size else rng.choice(numbers))
            is_table = bool(label[chosen][0] == 0) if chosen.any() else True
            given, kinds = _prompt(rng, chosen, may_be_box=not is_table)
            masks.append(np.zeros_like(chosen) if is_table else chosen)
            points.append(given)
            labels.append(kinds)
    return Asked(
        torch.from_numpy(np.stack(images)[:, None]),
        torch.from_numpy(np.stack(masks)[:, None].astype(np.float32)),
        torch.from_numpy(np.stack(points)),
        torch.from_numpy(np.stack(labels)),
    )


def _prompt(
    rng: np.random.Generator, chosen: NDArray[np.bool_], *, may_be_box: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a click on a pixel of a mask, or a box around it that is off by up to a tenth of its sides."""
    points, labels = np.zeros((POINTS, 2), np.float32), np.full(POINTS, PADDING, np.float32)
    rows, columns = np.nonzero(chosen)
    if may_be_box and rng.random() < BOXES:
        corners = np.array([[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float32)
        points[:2] = corners + rng.uniform(-0.1, 0.1, (2, 2)) * (corners[1] - corners[0])
        labels[:2] = TOP_LEFT, BOTTOM_RIGHT
    elif rows.size:
        at = rng.integers(rows.size)
        points[0], labels[0] = (columns[at] + 0.5, rows[at] + 0.5), OBJECT
    return points, labels


def corrected(rng: np.random.Generator, asked: Asked, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the points and labels with one more, on a pixel that an answer has wrong."""
    points, labels = asked.points.clone(), asked.labels.clone()
    wrong = ((logits > 0) != (asked.masks > 0.5))[:, 0].numpy()
    for prompt, errors in enumerate(wrong):
        rows, columns = np.nonzero(errors)
        if not rows.size:
            continue
        at = rng.integers(rows.size)
        points[prompt, -1] = torch.tensor([columns[at] + 0.5, rows[at] + 0.5])
        is_object = bool(asked.masks[prompt, 0, rows[at], columns[at]])
        labels[prompt, -1] = OBJECT if is_object else NOT_OBJECT
    return points, labels


def loss_of(iou: torch.Tensor, logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return cross entropy, Dice loss and the squared error of the predicted IoU."""
    found = torch.sigmoid(logits)
    shared, all_of_both = (found * masks).sum((1, 2, 3)), (found + masks).sum((1, 2, 3))
    dice = (1 - (2 * shared + 20) / (all_of_both + 20)).mean()
    true, wanted = logits.detach() > 0, masks > 0.5
    union = (true | wanted).sum((1, 2, 3))
    actual = (true & wanted).sum((1, 2, 3)) / union.clamp(min=1)
    entropy = functional.binary_cross_entropy_with_logits(logits, masks, reduction="none").mean((1, 2, 3))
    return 4 * entropy.mean() + dice + functional.mse_loss(iou[:, 0], actual)


def train(encoder: Encoder, decoder: Decoder, pool: Pool, seed: int, steps: int) -> None:
    """Train both in place."""
    both = nn.ModuleList([encoder, decoder]).train()
    both.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    optimiser = Optimiser(both, RATE, steps)
    rng = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        asked = batch_of(rng, pool)
        embeddings = encoder(asked.images.contiguous(memory_format=torch.channels_last)).repeat_interleave(PROMPTS, 0)
        blank = torch.zeros(len(asked.points), 1, CROP // STRIDE, CROP // STRIDE)
        iou, logits = decoder(embeddings, asked.points, asked.labels, blank, blank[:, 0, 0, 0])
        finer = functional.interpolate(logits, scale_factor=STRIDE, mode="bilinear")
        points, labels = corrected(rng, asked, finer.detach())
        shown = torch.from_numpy(rng.integers(0, 2, len(points)).astype(np.float32))
        again, second = decoder(embeddings, points, labels, logits.detach(), shown)
        loss = loss_of(iou, finer, asked.masks)
        second = functional.interpolate(second, scale_factor=STRIDE, mode="bilinear")
        optimiser.step(loss + loss_of(again, second, asked.masks))
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)


def export(encoder: Encoder, decoder: Decoder, folder: Path) -> None:
    """Write both as ONNX: the encoder's input is uint8 (1, 1, SIDE, SIDE), the decoder takes any number of points."""
    blank = torch.zeros(1, 1, CELLS, CELLS)
    asked = (torch.zeros(1, EMBEDDED, CELLS, CELLS), torch.zeros(1, POINTS, 2), torch.zeros(1, POINTS), blank)
    free = {"point_coords": {1: "points"}, "point_labels": {1: "points"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, which is the former one
        for network, name, given, inputs, outputs in (
            (encoder, "encoder", (torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8),), ["image"], INPUTS[:1]),
            (decoder, "decoder", (*asked, torch.zeros(1)), INPUTS, ["iou_predictions", "low_res_masks"]),
        ):
            file = folder / f"{name}.onnx"
            torch.onnx.export(
                network.eval(),
                given,
                str(file),
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes={key: axes for key, axes in free.items() if key in inputs},
                opset_version=OPSET,
                dynamo=False,
            )
            # The exporter leaves some dimensions unnamed that follow from the graph.
            onnx.save(onnx.shape_inference.infer_shapes(onnx.load(file), data_prop=True), file)


def main() -> None:
    """Draw, train, export."""
    run = start(str(__doc__), steps=1800, out=str(HERE / "encoder.onnx"))
    pool = draw_pool(SCENES, SIZE, run.seed)
    encoder, decoder = Encoder(), Decoder()
    train(encoder, decoder, pool, run.seed, run.steps)
    export(encoder, decoder, run.out.parent)
    record(run, nn.ModuleList([encoder, decoder]), pool)


if __name__ == "__main__":
    main()
