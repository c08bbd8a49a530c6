"""`make gpu`: networks on this machine's GPU behind the gateway, beside its CPU and the network without a server.

    python -m bench.gpu [--seconds 4] [--rounds 3] [--large FOLDER]

Serves the coins' U-Net and YOLO-seg, and DeepLabV3 and Mask R-CNN with ResNet-50 (random weights) where torchvision is
installed or their files are in a folder: on the GPU, and the coins' on the CPU with all of a model in one process and
in three steps. Callers send a JPEG and get RLE masks; the bare network runs in this process. Answers
are compared first: served ones on the GPU with the stages in this process on the CPU. The ways take turns. Figures
go to bench/out/gpu_served.json.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np

from bench.coins import variant, write
from bench.gpu_use import gpu_use, use_after
from bench.large_networks import LARGE, exported, large_model
from bench.platform import Running, platform
from bench.request import as_jpeg, image_call
from bench.smoke import output, sized
from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import Case, GoldenTolerance, compare, record
from segserve_builder.gpus import visible_gpus
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_operator.api.segmentation_model import SegmentationModel

OUT: Final = output("bench/out/gpu_served.json")
DEVICE: Final = "gpu"
CALLERS: Final = (1, 8, 32)
TOLERANCE: Final = GoldenTolerance(iou=0.999, score=0.001)
ON_GPU, ON_CPU, STEPS, BARE = "GPU", "CPU, one process", "CPU, three steps", "network alone"
Call = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Served:
    """A model's resource, and whether its CPU is measured as well."""

    manifest: Mapping[str, Any]
    on_cpu: bool

    @property
    def name(self) -> str:
        """The model's name."""
        return str(self.manifest["metadata"]["name"])

    def ways(self) -> dict[str, dict[str, Any]]:
        """Return the resource of each way to serve it, with names of their own."""
        runtime = self.manifest["spec"].get("runtime") or {}
        return {
            way: {
                **self.manifest,
                "metadata": {"name": f"{self.name}-{suffix}"},
                "spec": self.manifest["spec"] | {"runtime": runtime | {"device": device}, "expose": exposed},
            }
            for way, suffix, device, exposed in (
                (ON_GPU, "gpu", DEVICE, []),
                *(((ON_CPU, "cpu", "cpu", []), (STEPS, "steps", "cpu", ["network"])) if self.on_cpu else ()),
            )
        }

    def in_process(self, gpu: int | None) -> InProcessModel:
        """Return the model without a server."""
        pipeline = SegmentationModel.model_validate(self.manifest).pipeline
        path = Path(self.manifest["spec"]["artifact"]["uri"].removeprefix("file://"))
        return InProcessModel(pipeline, path, gpu=gpu)


def models(folder: Path | None) -> list[Served]:
    """Return the models to serve; large ones have their files in the folder."""
    small = [Served(variant(expose=[]), on_cpu=True), Served(variant(model="coins-instances", expose=[]), on_cpu=True)]
    if folder is None:
        return small
    return small + [Served(large_model(name, exported(name, folder)), on_cpu=False) for name in LARGE]


def differences(served: Served, address: str, photo: bytes) -> str | None:
    """Return how the answer on the GPU differs from that of the stages in this process on the CPU, or None."""
    expected = served.in_process(None).answer(photo, RequestOptions(encoding="rle"))
    name = served.ways()[ON_GPU]["metadata"]["name"]
    found: Any = image_call(address, name, photo, [*expected])()
    try:
        compare(
            Case.model_validate(record(expected, "photo", TOLERANCE)),
            {each: found.as_numpy(each) for each in expected},
        )
    except GoldenError as error:
        return str(error)  # a figure of the report
    return None


def turn(call: Call, callers: int, seconds: float) -> tuple[list[float], float]:
    """Return the milliseconds of each call, and calls per second, of so many callers in a loop each."""
    until_s = time.perf_counter() + seconds

    def loop(_: int) -> list[float]:
        spans = []
        while (began_s := time.perf_counter()) < until_s:
            call()
            spans.append(1000 * (time.perf_counter() - began_s))
        return spans

    began_s = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        spans = [each for found in pool.map(loop, range(callers)) for each in found]
    return spans, len(spans) / (time.perf_counter() - began_s)


def measured(ways: Mapping[str, Call], callers: int, rounds: int, seconds: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each way for so many callers: they take turns of so many seconds."""
    rates: dict[str, list[float]] = {way: [] for way in ways}
    spans: dict[str, list[float]] = {way: [] for way in ways}
    uses: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways:
        turn(ways[way], callers, seconds / 2)
    for _ in range(rounds):
        for way, call in ways.items():
            look = use_after(seconds / 2)
            found, rate = turn(call, callers, seconds)
            if (percent := look.result().percent) is not None:
                uses[way].append(percent)
            spans[way] += found
            rates[way].append(rate)
    return {
        way: {
            "imagesPerS": round(median(rates[way]), 1),
            "range": [round(min(rates[way]), 1), round(max(rates[way]), 1)],
            "p50Ms": round(float(np.percentile(spans[way], 50)), 2),
            "p95Ms": round(float(np.percentile(spans[way], 95)), 2),
            "p99Ms": round(float(np.percentile(spans[way], 99)), 2),
            "gpuUsePercent": median(uses[way]) if uses[way] else None,
        }
        for way in ways
    }


def report(all_models: Sequence[Served], running: Running, folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Serve the models one after the other, and return their figures by name."""
    address, photo = running.url.removeprefix("http://"), as_jpeg()
    rows: dict[str, Any] = {}
    for served in all_models:
        ways, memory = served.ways(), {}
        for way, manifest in ways.items():
            before = gpu_use()
            began_s = time.perf_counter()
            running.segserve("apply", "-f", str(write(folder / f"{manifest['metadata']['name']}.yaml", manifest)))
            running.segserve("wait", manifest["metadata"]["name"])
            memory[way] = {"readyS": round(time.perf_counter() - began_s, 1), "gpuMiB": [before.mib, gpu_use().mib]}
        row = rows[served.name] = {"loaded": memory, "differences": differences(served, address, photo)}
        network = served.in_process(0 if DEVICE == "gpu" else None)
        given = network.network_input(photo)
        calls: dict[str, Call] = {
            way: image_call(address, manifest["metadata"]["name"], photo) for way, manifest in ways.items()
        }
        calls[BARE] = partial(network.raw, given)
        for callers in CALLERS:
            row[str(callers)] = measured(calls, callers, rounds, seconds)
            row["gpuMiB"] = gpu_use().mib
            print(json.dumps({served.name: {str(callers): row[str(callers)]}}), flush=True)
        print(json.dumps({served.name: row["loaded"], "differences": row["differences"]}), flush=True)
    return rows


def main() -> None:
    """Measure all models, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=sized(4.0, 0.2), help="Time of a turn.")
    parser.add_argument("--rounds", type=int, default=sized(3, 1), help="Turns of each way.")
    parser.add_argument("--large", type=Path, help="A folder with the files of the large networks.")
    parser.add_argument("--output", type=Path, default=OUT)
    given = parser.parse_args()
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # as servers have it
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        large = given.large or (folder if find_spec("torchvision") is not None else None)
        found = models(large)
        with platform() as running:
            rows = report(found, running, folder, given.rounds, given.seconds)
    made = {"gpus": visible_gpus(), "cores": len(os.sched_getaffinity(0)), "models": rows}
    given.output.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
