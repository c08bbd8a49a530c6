"""Blending of overlapping tiles, compared with MONAI's sliding window and numpy."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from bench.stages.case import Case, Peer
from oracles.sliding_window import Monai, labels_row_by_row, weighted_sums
from segserve_builder.stages.tile import TiledInference
from segserve_builder.steps.tiling import TilePlan, merged, stream

ROOT = Path(__file__).parents[2]
HUGE = 20_000
HUGE_CLASSES = 4
DIFFERENT_TILES = 16


def logits(plan: TilePlan, classes: int, count: int | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (classes, plan.options.height, plan.options.width)
    return [rng.standard_normal(shape, np.float32) for _ in range(len(plan.grid) if count is None else count)]


def ours(plan: TilePlan, tiles: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(list(stream(plan, tiles)))


def labels_by_numpy(plan: TilePlan, tiles: list[np.ndarray]) -> np.ndarray:
    return weighted_sums(plan, tiles)[0].argmax(0)


def logits_by_numpy(plan: TilePlan, tiles: list[np.ndarray]) -> np.ndarray:
    total, weights = weighted_sums(plan, tiles)
    return total / weights


def equal(plan: TilePlan, tiles: list[np.ndarray]) -> str:
    assert np.array_equal(ours(plan, tiles), labels_by_numpy(plan, tiles))
    return "0 px different"


def nearly_equal(plan: TilePlan, tiles: list[np.ndarray], monai: Monai) -> str:
    """Compare labels, which may differ only where MONAI's two best classes are equal up to 1e-5."""
    different = int((ours(plan, tiles) != monai().numpy()).sum())
    best = np.sort(Monai(plan, tiles, argmax=False)().numpy(), axis=0)
    ties = int((best[-1] - best[-2] < 1e-5).sum())
    assert different <= ties
    return f"{different} px different, {ties} are ties up to 1e-5"


def furthest(actual: np.ndarray, expected: np.ndarray) -> str:
    distance = float(np.abs(actual - expected).max())
    assert distance <= 1e-5
    return f"values within {distance:.0e}" if distance else "values identical"


def blended(name: str, height: int, width: int, options: TiledInference, classes: int, *, worst: bool = False) -> Case:
    plan = TilePlan.of(options, height, width)
    tiles = logits(plan, classes)
    monai = Monai(plan, tiles, argmax=True)
    goals = (20.0, 4.0) if classes == 4 else (None, None)
    peers = (
        Peer("MONAI", version("monai"), monai.seconds, partial(nearly_equal, plan, tiles, monai), goals[0]),
        Peer("numpy", np.__version__, partial(labels_by_numpy, plan, tiles), partial(equal, plan, tiles), goals[1]),
    )
    return Case(f"{len(plan.grid)} tiles {name}, to labels", partial(ours, plan, tiles), peers, worst)


def values(plan: TilePlan, tiles: list[np.ndarray]) -> Case:
    monai = Monai(plan, tiles, argmax=False)
    numpy = partial(logits_by_numpy, plan, tiles)
    peers = (
        Peer("MONAI", version("monai"), monai.seconds, lambda: furthest(merged(plan, tiles), monai().numpy())),
        Peer("numpy", np.__version__, numpy, lambda: furthest(merged(plan, tiles), numpy())),
    )
    return Case(f"{len(plan.grid)} tiles 512x512x4, to merged logits", partial(merged, plan, tiles), peers)


def huge() -> tuple[TilePlan, list[np.ndarray]]:
    """Return the tiles of an image of 20,000 x 20,000 pixels, and logits of a few; those of all would take 6.4 GB."""
    plan = TilePlan.of(TiledInference(height=1024, width=1024, overlap=0.25, multiple_of=32), HUGE, HUGE)
    return plan, logits(plan, HUGE_CLASSES, DIFFERENT_TILES)


def network(plan: TilePlan, tiles: list[np.ndarray]) -> Iterator[np.ndarray]:
    return islice(cycle(tiles), len(plan.grid))


def digest(rows: Iterable[np.ndarray]) -> str:
    total = hashlib.sha256()
    for labels in rows:
        total.update(np.ascontiguousarray(labels, np.uint8))
    return total.hexdigest()


def drained(rows: Iterable[np.ndarray]) -> int:
    return sum(len(labels) for labels in rows)


def huge_equal(plan: TilePlan, tiles: list[np.ndarray]) -> str:
    command = [sys.executable, "-m", "bench.stages.blend"]
    # With the default allocator: the warm one of the other cases keeps gigabytes of freed memory.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True, check=True)
    labels_digest, before, after = done.stdout.split()
    assert labels_digest == digest(labels_row_by_row(plan, network(plan, tiles), HUGE_CLASSES))
    return f"0 px different; {after} MiB at the most, of it {before} before the first tile"


def cases() -> Iterator[Case]:
    half = TiledInference(height=512, width=512, overlap=0.5, multiple_of=1)
    yield blended("512x512x4", 2048, 2048, half, 4)
    quarter = TiledInference(height=512, width=512, overlap=0.25, multiple_of=1)
    yield blended("512x512x4 with ragged edges", 2011, 1907, quarter, 4, worst=True)
    yield blended("250x170x4, three of four pixels shared", 1001, 777, dense(250, 170), 4, worst=True)
    yield blended("256x256x150", 512, 512, TiledInference(height=256, width=256, overlap=0.5, multiple_of=1), 150)
    plan = TilePlan.of(half, 2048, 2048)
    yield values(plan, logits(plan, 4))
    plan, tiles = huge()
    by_numpy = Peer(
        "numpy, row by row",
        np.__version__,
        lambda: drained(labels_row_by_row(plan, network(plan, tiles), HUGE_CLASSES)),
        partial(huge_equal, plan, tiles),
    )
    name = f"{len(plan.grid)} tiles 1024x1024x4 of 20,000x20,000, to labels"
    yield Case(name, lambda: drained(stream(plan, network(plan, tiles))), (by_numpy,))


def dense(height: int, width: int) -> TiledInference:
    return TiledInference(height=height, width=width, overlap=0.75, multiple_of=1)


def peak_mib() -> int:
    # Not getrusage: its peak includes that of the parent process.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    # A separate process, to measure its memory before the work and at the peak.
    image, answers = huge()
    started = peak_mib()
    print(digest(stream(image, network(image, answers))), started, peak_mib())
