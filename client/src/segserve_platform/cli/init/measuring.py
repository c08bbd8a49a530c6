"""The memory and time of a pipeline by size of image, measured in another process, and the bound that follows."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from segserve.calls.steps import DEFAULT_TIMEOUTS
from segserve.results.images import picture
from segserve_builder.memory import STEP_LIMIT_VARIABLE, step_limit_bytes
from segserve_builder.spec.model_spec import Input
from segserve_builder.steps.pipeline import Pipeline
from segserve_common.errors import BadRequestError
from segserve_common.interpreter import python
from segserve_platform.cli.init.network import Progress

MEGAPIXEL: Final = 1_000_000
SIZES: Final[tuple[int, ...]] = (62_500, 250_000, 1_000_000, 4_000_000)
"""Pixels of the images of the trial runs, in ascending order; of a network of one size, the first and the last."""
WARM_UP: Final = 4_096
"""Pixels of an image that is run before them."""
DEFAULT_MAX_PIXELS: Final[int] = Input().max_pixels
MEMORY_SHARE: Final = 0.75
"""Share of a step's limit that an image may take: ONNX Runtime's memory grows in pieces, up to a quarter too large."""
REQUEST_SHARE: Final = 5 / 6
"""Share of the client's timeout that an image may take; the rest is for its way and for waiting."""
KILL_AFTER_S: Final = 300.0
KILLED: Final = (-signal.SIGKILL, -signal.SIGABRT, -signal.SIGSEGV, 127)
"""Exit codes of a process that the kernel or the deadline ended, or C, C++ or glibc that could not allocate."""
CONVEX: Final = 1.5
"""Ratio of two successive slopes above which a cost grows faster than the number of pixels."""
MOST_ELONGATED: Final = 4.0


@dataclass(frozen=True)
class TrialRun:
    """One image through the pipeline: its pixels, the bytes of memory allocated for it, and seconds."""

    pixels: int
    allocated: int
    seconds: float


@dataclass(frozen=True)
class Measurement:
    """Trial runs in ascending order of pixels.

    `error` says why the next larger one failed, if it did; `too_large` is its pixels if memory or time was the reason.
    """

    runs: tuple[TrialRun, ...]
    error: str | None = None
    too_large: int | None = None


@dataclass(frozen=True)
class Budget:
    """The limits of one image: bytes that a step may allocate, and seconds until the client gives up."""

    step_bytes: int
    request_s: float

    @property
    def step_gb(self) -> float:
        """The limit of a step in units of 10^9 bytes."""
        return self.step_bytes / 1e9

    @classmethod
    def of_this_machine(cls) -> Budget:
        """Return the limit of a step on this machine, and the client's default timeout."""
        return cls(step_limit_bytes(), DEFAULT_TIMEOUTS.total_s)


@dataclass(frozen=True)
class PixelBound:
    """The largest image that fits into a budget, at most the resource's default, and what it takes, in words.

    `fits` is False if what the network takes for images of any size exceeds the budget already.
    """

    pixels: int
    reason: str
    fits: bool


def measure(
    pipeline: Pipeline, artifact: Path, image: Path, progress: Progress, *, is_resized: bool = False
) -> Measurement:
    """Run a pipeline in another process on `image`, scaled to several sizes; fewer if the network sees but one size.

    That process may allocate what a step may, and is the first that the kernel ends if memory runs out.
    """
    with tempfile.TemporaryDirectory(prefix="segserve-init-") as folder:
        try:
            (_, warm_up), *files = _scaled(
                image, pipeline.input.colour == "GREY", Path(folder), SIZES[:: len(SIZES) - 1] if is_resized else SIZES
            )
        except (OSError, ValueError, BadRequestError) as error:
            return Measurement((), f"{image} cannot be decoded: {error}")
        return _measured(pipeline, artifact, warm_up, dict(files), progress, is_resized)


def _scaled(path: Path, grey: bool, folder: Path, sizes: Sequence[int]) -> list[tuple[int, Path]]:
    image = picture(path).convert("L" if grey else "RGB")
    aspect = min(max(image.width / image.height, 1 / MOST_ELONGATED), MOST_ELONGATED)
    files = []
    for pixels in (WARM_UP, *sizes):
        height = round(math.sqrt(pixels / aspect))
        width = round(height * aspect)
        files.append((height * width, folder / f"{pixels}.jpg"))
        image.resize((width, height)).save(files[-1][1], quality=90)
    return files


def _measured(
    pipeline: Pipeline, artifact: Path, warm_up: Path, files: Mapping[int, Path], progress: Progress, is_resized: bool
) -> Measurement:
    order = {
        "pipeline": pipeline.model_dump(mode="json", by_alias=True, exclude_none=True),
        "artifact": str(artifact),
        "warm_up": str(warm_up),
        "is_resized": is_resized,
        "images": {pixels: str(path) for pixels, path in files.items()},
    }
    process = subprocess.Popen(
        python("-m", "segserve_platform.cli.init.trial_process"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, STEP_LIMIT_VARIABLE: str(step_limit_bytes())},
    )  # fmt: skip
    deadline = threading.Timer(KILL_AFTER_S, process.kill)
    deadline.start()
    runs: list[TrialRun] = []
    last: dict[str, Any] = {}
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(order))
        progress(f"measuring memory 1 of {len(files)}")
        for line in process.stdout:
            last = json.loads(line)
            if "pixels" in last:
                runs.append(TrialRun(**last))
                progress(f"measuring memory {min(len(runs) + 1, len(files))} of {len(files)}")
        process.stdout.close()
        code = process.wait()  # it has closed its output, and the deadline is still set
    finally:
        deadline.cancel()
        process.kill()
        process.wait()
    if "done" in last:
        return Measurement(tuple(runs))
    error = str(last.get("error", f"the process of the trial runs ended with {code}"))
    is_too_large = last.get("out_of_memory", code in KILLED) and len(runs) < len(files)
    return Measurement(tuple(runs), error, list(files)[len(runs)] if is_too_large else None)


def bound_of(measurement: Measurement, budget: Budget) -> PixelBound | None:
    """Return the largest image that is expected to stay within the budget, None if nothing was measured."""
    runs = measurement.runs
    if not runs and measurement.too_large is None:
        return None
    if measurement.too_large is not None and not runs:
        reason = (
            f"an image of {megapixels(measurement.too_large)} takes more than the {budget.step_gb:.1f} GB of a step"
        )
        return PixelBound(_rounded_down(measurement.too_large / 2), reason, fits=False)
    sizes = [run.pixels / MEGAPIXEL for run in runs]
    memory = Growth.of(sizes, [run.allocated / 1e9 for run in runs])
    time = Growth.of(sizes, [run.seconds for run in runs])
    most = min(memory.largest(budget.step_gb * MEMORY_SHARE), time.largest(budget.request_s * REQUEST_SHARE))
    if measurement.too_large is not None:
        most = min(most, sizes[-1])
    pixels = _rounded_down(most * MEGAPIXEL)
    at = pixels / MEGAPIXEL
    gb, seconds = memory.at(at), time.at(at)
    reason = (
        f"{_amount((gb - memory.base) / at, 'GB', 'MB')} and {_amount((seconds - time.base) / at, 's', 'ms')} "
        "a megapixel on this machine: "
        f"{megapixels(pixels)} take {gb:.1f} of the {budget.step_gb:.1f} GB of a step, and {seconds:.1f} of the "
        f"{budget.request_s:g} s of a request"
    )
    return PixelBound(pixels, reason, gb <= budget.step_gb and seconds <= budget.request_s)


@dataclass(frozen=True)
class Growth:
    """A cost by megapixels, `base + slope * x + bend * x * x`, with no coefficient below 0."""

    base: float
    slope: float
    bend: float

    @classmethod
    def of(cls, megapixels: Sequence[float], costs: Sequence[float]) -> Growth:
        """Fit the costs of up to four sizes in ascending order; a single one is taken as proportional to its size."""
        if len(costs) == 1:
            return cls(0.0, costs[0] / megapixels[0], 0.0)
        slopes = np.diff(costs) / np.diff(megapixels)
        if len(slopes) > 1 and slopes[-1] > CONVEX * slopes[-2] > 0:
            bend, slope, base = map(float, np.polyfit(megapixels[-3:], costs[-3:], 2))
            return cls(max(base, 0.0), max(slope, 0.0), bend)
        # The steepest of the lines to the last point: caches and first runs make single ones too flat.
        last = max(
            0.0, *((costs[-1] - y) / (megapixels[-1] - x) for x, y in zip(megapixels[:-1], costs[:-1], strict=True))
        )
        return cls(max(costs[-1] - last * megapixels[-1], 0.0), last, 0.0)

    def at(self, megapixels: float) -> float:
        """Return the expected cost of a size."""
        return self.base + self.slope * megapixels + self.bend * megapixels**2

    def largest(self, budget: float) -> float:
        """Return the megapixels at which the cost reaches a budget; infinite if smaller images would not help."""
        left = budget - self.base
        if left <= 0:
            return math.inf
        if self.bend > 0:
            return (math.sqrt(self.slope**2 + 4 * self.bend * left) - self.slope) / (2 * self.bend)
        return left / self.slope if self.slope > 0 else math.inf


def megapixels(pixels: int) -> str:
    """Return a number of pixels as `16 megapixels`."""
    return f"{pixels / MEGAPIXEL:g} megapixels"


def _amount(value: float, unit: str, thousandth: str) -> str:
    """Return two significant digits of a small amount, in the unit that suits it."""
    return f"{value:.2g} {unit}" if value >= 0.1 else f"{value * 1000:.2g} {thousandth}"


def _rounded_down(pixels: float) -> int:
    """Return two significant digits, at most the resource's default and at least one pixel."""
    within = min(max(pixels, 1.0), float(DEFAULT_MAX_PIXELS))
    unit = 10 ** max(math.floor(math.log10(within)) - 1, 0)
    return int(within // unit * unit)
