"""Planted faults and healthy variations of two zoo networks: does the gate maskAgreement find them in 200 pairs?

    python -m bench.archive.agreement

Writes bench/out/agreement.json and docs/images/rollout-sheet.png. Each variation answers the 80 drawn scenes that the
network as it is answers; the gate then judges 1,000 series of 200 pairs drawn with replacement, and looks after each
pair: by a minimum, and by the one that it learns of stable's second answers to every third request. Without Triton: the
networks in torch, and the zoo's plain post-processing.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from rich.console import Console
from rich.table import Table

from examples.zoo.offline import Network, argmax, as_found, resampled, without_specks, yolo_instances
from examples.zoo.world import BOX, CLASSES, DISC, STAR, draw_scene
from segserve.results.values import SegmentClass
from segserve_builder.comparator.service import BASELINE_INTERVAL, MAX_BASELINES
from segserve_builder.comparator.sheet import Sheet, SheetPair
from segserve_builder.scoring.agreement import agreement
from segserve_common.kserve import Tensor
from segserve_operator.core.evidence import DISAGREEMENTS
from segserve_operator.core.gates.mask_agreement import MaskAgreement
from segserve_platform.cli.picture_pages import write_sheet

OUT: Final = Path(__file__).parents[1] / "out/agreement.json"
PICTURE: Final = Path(__file__).parents[2] / "docs/images/rollout-sheet.png"
SCENES: Final = 80
REPLAYS: Final = 1000
PAIRS: Final = 200
MINIMA: Final = (0.9, 0.97, None)
"""None: learnt."""
LEVEL: Final = 0.01 / 4
"""The gate's share of alpha beside errorRate, latency and goldenQuality."""
SEED: Final = 20
ASKED_AT_S: Final = 1_795_000_000.0
THRESHOLD: Final = 0.4
NMS_IOU: Final = 0.5
SMALL_PIXELS: Final = 100

Image: TypeAlias = NDArray[np.uint8]
Instances: TypeAlias = list[tuple[int, float, NDArray[Any]]]
Found: TypeAlias = "Image | Instances"
Answering: TypeAlias = Callable[[Image], Found]


@dataclass(frozen=True)
class Task:
    """A network with its post-processing: `answer` takes an image, a threshold or bias, and the IoU of NMS."""

    name: str
    network: Network

    def answer(self, image: Image, shift: float = 0.0, iou: float = NMS_IOU) -> Found:
        """Return a label map, or instances; `shift` makes the network more cautious."""
        view = self.network.view(image)
        if self.name == "yolo-seg":
            found = yolo_instances(self.network, view, THRESHOLD + shift / 10, iou)
            # The head knows no background: its first class is the second one.
            return [(number + 1, score, mask) for number, score, mask in found]
        logits = resampled(self.network.run(view.pixels)[0], view)
        logits[0] += shift
        return argmax(logits)


def each_mask(found: Found, change: Callable[[NDArray[Any]], NDArray[Any]]) -> Found:
    """Return the answer with each mask, or the label map, changed."""
    if isinstance(found, list):
        return [(number, score, change(mask.astype(np.uint8)) > 0) for number, score, mask in found]
    return change(found)


def renamed(found: Found, names: dict[int, int]) -> Found:
    """Return the answer with other classes; class 0 of an object drops it."""
    if isinstance(found, list):
        return [(names.get(number, number), *rest) for number, *rest in found if names.get(number, number)]  # type: ignore[misc]
    table = np.arange(256, dtype=np.uint8)
    for number, name in names.items():
        table[number] = name
    return table[found]


def without_small(found: Found) -> Found:
    """Return the answer without its small objects."""
    if isinstance(found, list):
        return [one for one in found if one[2].sum() >= SMALL_PIXELS]
    return without_specks(found, SMALL_PIXELS)


def nothing(found: Found) -> Found:
    """Return an answer that found nothing."""
    return [] if isinstance(found, list) else np.zeros_like(found)


def moved(pixels: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return what moves a mask to the right, with 0 behind it."""

    def move(mask: NDArray[Any]) -> NDArray[Any]:
        shifted = np.zeros_like(mask)
        shifted[:, pixels:] = mask[:, :-pixels]
        return shifted

    return move


def coarse(mask: NDArray[Any]) -> NDArray[Any]:
    """Return a mask of a quarter of the resolution."""
    return np.kron(mask[::4, ::4], np.ones((4, 4), mask.dtype))[: mask.shape[0], : mask.shape[1]]


def off_by_one(mask: NDArray[Any]) -> NDArray[Any]:
    """Return a mask that was resized to one pixel less and put back into the corner."""
    height, width = mask.shape
    small = cv2.resize(mask, (width - 1, height - 1), interpolation=cv2.INTER_NEAREST)
    return np.pad(small, ((0, 1), (0, 1)))


def jpeg(image: Image) -> Image:
    """Return the image after a JPEG of high quality."""
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


def scaled(image: Image, factor: float, offset: float = 0.0) -> Image:
    """Return an image of another normalisation."""
    return np.asarray(np.clip(image * factor + offset, 0, 255), np.uint8)


def rounded_to(dtype: torch.dtype, name: str) -> Network:
    """Return a network whose weights were stored in another precision."""
    network = Network(name)
    with torch.inference_mode():
        for parameter in (*network._module.parameters(), *network._module.buffers()):
            if parameter.is_floating_point():
                parameter.copy_(parameter.to(dtype).to(parameter.dtype))
    return network


def batched(task: Task) -> Answering:
    """Return the answers of a batch of four equal images, of which one is taken."""

    def answer(image: Image) -> Found:
        view = task.network.view(image)
        images = torch.from_numpy(np.ascontiguousarray(view.pixels))[None].permute(0, 3, 1, 2).repeat(4, 1, 1, 1)
        with torch.inference_mode():
            outputs = task.network._module(images)
        first = tuple(output[2] for output in (outputs if isinstance(outputs, tuple) else (outputs,)))
        return Task(task.name, _Answered(task.network, first)).answer(image)  # type: ignore[arg-type]

    return answer


@dataclass(frozen=True)
class _Answered:
    network: Network
    outputs: tuple[torch.Tensor, ...]

    def view(self, image: Image) -> Any:
        return self.network.view(image)

    def run(self, _pixels: Image) -> tuple[torch.Tensor, ...]:
        return tuple(output.clone() for output in self.outputs)


def variations(task: Task, images: Sequence[Image]) -> dict[str, tuple[bool, Answering]]:
    """Return by name whether a variation is a fault, and what answers in its place."""
    answer = task.answer
    bright = float(np.median([image.mean() for image in images]))
    dark = float(np.quantile([image.mean() for image in images], 0.25))
    order = {image.tobytes(): number for number, image in enumerate(images)}

    def camera(image: Image) -> int:
        return order[image.tobytes()] % 4

    def former(image: Image) -> Found:
        return answer(images[order[image.tobytes()] - 1])

    changed = {
        "a class lost (disc)": lambda image: renamed(answer(image), {DISC: 0}),
        "a rare class lost (star)": lambda image: renamed(answer(image), {STAR: 0}),
        "wrong order of classes": lambda image: renamed(answer(image), {DISC: BOX, BOX: DISC}),
        "masks shifted by 4 px": lambda image: each_mask(answer(image), moved(4)),
        "masks shifted by 1 px": lambda image: each_mask(answer(image), moved(1)),
        "masks at a quarter of the resolution": lambda image: each_mask(answer(image), coarse),
        "resize off by one": lambda image: each_mask(answer(image), off_by_one),
        "small objects lost": lambda image: without_small(answer(image)),
        "threshold moved": lambda image: answer(image, 3.0),
        "other normalisation (half the contrast)": lambda image: answer(scaled(image, 0.5)),
        "other normalisation (offset of 60)": lambda image: answer(scaled(image, 1.0, 60)),
        "red and blue exchanged": lambda image: answer(np.ascontiguousarray(image[..., ::-1])),
        "mirrored": lambda image: each_mask(answer(np.ascontiguousarray(image[:, ::-1])), lambda mask: mask),
        "turned by 180 degrees": lambda image: each_mask(answer(image), lambda mask: mask[::-1, ::-1].copy()),
        "another image's answer": former,
        "fp16 overflow in bright images": lambda image: (nothing if image.mean() > bright else _same)(answer(image)),
        "a fault in the darkest quarter": lambda image: (nothing if image.mean() < dark else _same)(answer(image)),
        "one camera of four broken": lambda image: (nothing if not camera(image) else _same)(answer(image)),
        "one answer in twenty empty": lambda image: (nothing if order[image.tobytes()] % 20 == 0 else _same)(
            answer(image)
        ),
        "finds nothing": lambda image: nothing(answer(image)),
    }
    healthy: dict[str, Answering] = {
        "the same": answer,
        "the image recompressed (JPEG, quality 95)": lambda image: answer(jpeg(image)),
        "weights in fp16": Task(task.name, rounded_to(torch.float16, task.name)).answer,
        "weights in bf16": Task(task.name, rounded_to(torch.bfloat16, task.name)).answer,
        "a batch of four": batched(task),
        "one level of noise": lambda image: answer(scaled(image, 1.0, 1.0)),
    }
    return {name: (True, each) for name, each in changed.items()} | {
        name: (False, each) for name, each in healthy.items()
    }


def _same(found: Found) -> Found:
    return found


def as_answer(found: Found, size: tuple[int, int]) -> dict[str, NDArray[Any]]:
    """Return the outputs that segserve would answer with."""
    base: dict[str, NDArray[Any]] = {"SIZE": np.array(size, np.int32)}
    if not isinstance(found, list):
        return {
            **base,
            "LABELS": np.array([found.tobytes()], object),
            "CLASSES": np.arange(len(CLASSES)),
            "AREAS": np.zeros(len(CLASSES)),
        }
    masks = np.empty(len(found), object)
    masks[:] = [one.counts for one in as_found(found)]
    return {
        **base,
        "MASKS": masks,
        "CLASSES": np.array([number for number, *_ in found], np.int32),
        "SCORES": np.array([score for _, score, _ in found], np.float32),
    }


def measured(task: Task, images: Sequence[Image]) -> list[dict[str, Any]]:
    """Return a row of figures for each variation."""
    stable = [as_answer(task.answer(image), image.shape[:2]) for image in images]
    generator, rows = np.random.default_rng(SEED), []
    for name, (is_fault, answering) in variations(task, images).items():
        values = []
        for image, expected in zip(images, stable, strict=True):
            found = agreement(expected, as_answer(answering(image), image.shape[:2]))
            assert found is not None
            values.append(found.value)
        proved = [replayed(np.array(values), minimum, generator) for minimum in MINIMA]
        rows.append(
            {
                "network": task.name,
                "variation": name,
                "fault": is_fault,
                "agreement": float(np.mean(values)),
                "proved": {named(minimum): share for minimum, (share, _) in zip(MINIMA, proved, strict=True)},
                "median_pairs": {named(minimum): pairs for minimum, (_, pairs) in zip(MINIMA, proved, strict=True)},
            }
        )
    return rows


def named(minimum: float | None) -> str:
    """Return how a minimum is called."""
    return "learnt" if minimum is None else str(minimum)


def replayed(
    values: NDArray[np.float64], minimum: float | None, generator: np.random.Generator
) -> tuple[float, float | None]:
    """Return the share of series in which the gate has a proof at some time, and the median number of pairs to it."""
    bins = np.searchsorted(DISAGREEMENTS, 1.0 - values, side="right")
    drawn = bins[generator.integers(0, len(values), (REPLAYS, PAIRS))]
    counts = np.cumsum(drawn[..., None] == np.arange(len(DISAGREEMENTS) + 1), axis=1).astype(float)
    gate = MaskAgreement(minimum)
    state = gate.start((REPLAYS, PAIRS))
    baseline = state.baseline.copy()
    # These networks answer the same request twice alike.
    baseline[..., 0] = np.minimum(np.arange(1, PAIRS + 1) // BASELINE_INTERVAL, MAX_BASELINES)
    proved = gate.judge(replace(state, disagreements=counts, baseline=baseline)).breach >= -np.log(LEVEL)
    any_time = proved.any(1)
    return float(any_time.mean()), float(np.median(proved[any_time].argmax(1) + 1)) if any_time.any() else None


def draw_sheet(images: Sequence[Image]) -> None:
    """Draw the pair of a cautious YOLO that agrees least, as `segserve rollout sheet` does."""
    task, pairs = Task("yolo-seg", Network("yolo-seg")), []
    for image in images:
        sides = [as_answer(task.answer(image, shift), image.shape[:2]) for shift in (0.0, 3.0)]
        found = agreement(*sides)
        assert found is not None
        stable, candidate = (_tensors(name, side) for name, side in zip((b"zoo-1", b"zoo-2"), sides, strict=True))
        pairs.append(SheetPair.of(ASKED_AT_S, Tensor.of_array("PIXELS", image), stable, candidate, found))
    worst = min(pairs, key=lambda pair: pair.agreement)
    classes = tuple(SegmentClass(number, name) for number, name in enumerate(CLASSES))
    with tempfile.TemporaryDirectory() as folder:
        write_sheet(Sheet(model="zoo", stable="zoo-1", candidate="zoo-2", pairs=(worst,)), classes, Path(folder))
        PICTURE.write_bytes((Path(folder) / "pair-1.png").read_bytes())


def _tensors(revision: bytes, answer: dict[str, NDArray[Any]]) -> list[Tensor]:
    columns = {**answer, "REVISION": np.array([revision], object), "BOXES": _boxes(answer)}
    return [
        Tensor.of_items(name, column.tolist()) if column.dtype == object else Tensor.of_array(name, column)
        for name, column in columns.items()
    ]


def _boxes(answer: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    size = answer["SIZE"].tolist()
    boxes = [coco.toBbox({"size": size, "counts": counts}) for counts in answer["MASKS"]]
    return np.array([(x, y, x + width, y + height) for x, y, width, height in boxes], np.float32).reshape(-1, 4)


def main() -> None:
    """Measure both networks, write the file, and print the table."""
    torch.set_num_threads(1)
    started_s = time.monotonic()
    generator = np.random.default_rng(SEED)
    images = [draw_scene(generator).image for _ in range(SCENES)]
    draw_sheet(images[:8])
    rows = [row for name in ("unet", "yolo-seg") for row in measured(Task(name, Network(name)), images)]
    about = {"scenes": SCENES, "replays": REPLAYS, "pairs": PAIRS, "minima": MINIMA, "level": LEVEL, "seed": SEED}
    OUT.write_text(json.dumps({**about, "seconds": round(time.monotonic() - started_s), "rows": rows}, indent=1) + "\n")
    table = Table("network", "variation", "fault", "agreement", *(f"proved at {named(minimum)}" for minimum in MINIMA))
    for row in rows:
        proved = (f"{share:.1%}" for share in row["proved"].values())
        table.add_row(row["network"], row["variation"], str(row["fault"]), f"{row['agreement']:.3f}", *proved)
    Console().print(table)


if __name__ == "__main__":
    main()
