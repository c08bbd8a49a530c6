"""Engines and devices beside ONNX Runtime on the CPU: `python -m bench.engines` (OpenVINO), `make gpu` (CUDA).

Networks are the zoo's nine, and DeepLabV3 and Mask R-CNN with ResNet-50 (random weights) where torchvision is
installed. Correctness comes first: both engines answer the same images, and the lowest IoU of a class and the largest
difference of raw outputs are written. Then the network alone (and on a GPU the whole request: PNG in, masks out) runs
on both in turns, in random order. For OpenVINO each has one thread, and CPU time counts, which other processes change
less; a GPU is timed by the clock, and in FP32 unless NVIDIA_TF32_OVERRIDE is set to 1. Ratios are medians over turns,
with the middle half. Requests run in this process, without Triton and gateway. `--int8` adds INT8 files, calibrated on
other images and compared with the FP32 file's answers.

Figures go to bench/out/engines.json, or gpu.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from bench.gpu_use import use_after
from bench.large_networks import LARGE, exported, large_model
from bench.platform import ROOT
from bench.smoke import output, sized
from examples.zoo.world import CLASSES, Scene, draw_scenes
from segserve_builder.errors import BuilderError
from segserve_builder.export.reducing import answers_of, to_int8
from segserve_builder.export.reducing import compared as compared_answers
from segserve_builder.gpus import visible_gpus
from segserve_builder.spec.model_spec import Engine
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.pipeline import Pipeline
from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_platform.platforms.manifests import read_files

ZOO: Final = ROOT / "examples/zoo/zoo.yaml"
SEED: Final = 3000
RUNS: Final = sized(5, 1)
"""Runs in a turn."""


@dataclass(frozen=True, slots=True)
class Network:
    """A model to measure: its pipeline, its file, how many classes its answers have, and the FP32 file if INT8 is."""

    name: str
    pipeline: Pipeline
    path: Path
    classes: int = len(CLASSES)
    exact: Path | None = None

    def opened(self, engine: Engine | None = None, gpu: int | None = None) -> InProcessModel:
        """Return the model on an engine and a device."""
        return InProcessModel(self.pipeline, self.path, engine=engine, gpu=gpu)


def zoo() -> Iterator[Network]:
    """Yield the zoo's models in the order of zoo.yaml, with one thread for the network."""
    for written in read_files([ZOO]):
        manifest = written.complete()
        manifest["spec"]["runtime"]["intraOpThreads"] = 1
        resource = SegmentationModel.model_validate(manifest)
        name = resource.metadata.name.removeprefix("zoo-")
        yield Network(name, resource.pipeline, ZOO.parent / "weights" / f"{name}.onnx")


def large(folder: Path) -> Iterator[Network]:
    """Yield DeepLabV3 and Mask R-CNN of torchvision, whose files are in a folder or are exported into it."""
    for name in LARGE:
        path = exported(name, folder)
        manifest = large_model(name, path)
        manifest["spec"]["runtime"]["intraOpThreads"] = len(os.sched_getaffinity(0))
        resource = SegmentationModel.model_validate(manifest)
        yield Network(name, resource.pipeline, path, len(resource.pipeline.classes))


def quantised(network: Network, folder: Path, images: Sequence[bytes]) -> Network:
    """Return a network with an INT8 file, calibrated on images."""
    model, path = network.opened(), folder / f"{network.name}.int8.onnx"
    onnx.save(to_int8(network.path, (feed for image in images for feed in model.feeds(image)), path.parent), path)
    return replace(network, name=f"{network.name} INT8", path=path, exact=network.path)


def agreement(one: InProcessModel, other: InProcessModel, images: Sequence[bytes], names: Mapping[int, str]) -> float:
    """Return the lowest class's IoU of two models' answers, or the lowest agreement of objects."""
    found = compared_answers(answers_of(one, images), answers_of(other, images), names)
    return min((each.after for each in found.classes if each.after is not None and each.is_judged), default=1.0)


def difference(one: InProcessModel, other: InProcessModel, images: Sequence[bytes]) -> float:
    """Return the largest difference of raw outputs, as a part of each output's range."""
    worst = 0.0
    for image in images:
        given = one.network_input(image)
        for ours, theirs in zip(one.raw(given).values(), other.raw(given).values(), strict=True):
            if ours.size and ours.shape == theirs.shape:
                worst = max(worst, float(np.abs(ours.astype(float) - theirs).max() / max(float(np.ptp(ours)), 1e-6)))
    return worst


def timed(
    runs: Mapping[str, Callable[[], object]], turns: int, clock: Callable[[], float]
) -> dict[str, NDArray[np.float64]]:
    """Return the time of a run in ms by name, the median of each turn; all take their turns in random order."""
    rng = np.random.default_rng(0)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in rng.permutation([*runs]):
            spans = []
            for _ in range(RUNS):
                began_s = clock()
                runs[name]()
                spans.append(1000 * (clock() - began_s))
            if turn:  # the first one is not counted
                taken[name].append(float(np.median(spans)))
    return {name: np.array(values) for name, values in taken.items()}


def compared(spans: Mapping[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Return the median time of both, and how many times as fast the second is."""
    base, other = spans.values()
    ratios = base / other
    return {
        **{f"{name}Ms": round(float(np.median(each)), 3) for name, each in spans.items()},
        **{f"{name}P95Ms": round(float(np.quantile(each, 0.95)), 3) for name, each in spans.items()},
        "speed": round(float(np.median(ratios)), 2),
        "middleHalf": [round(float(value), 2) for value in np.quantile(ratios, (0.25, 0.75))],
    }


def saturated(run: Callable[[], object], seconds: float) -> dict[str, float | None]:
    """Return the runs per second, one after the other, and the GPU's use and memory meanwhile."""
    count, began_s = 0, time.perf_counter()
    look = use_after(seconds / 2)
    while (passed_s := time.perf_counter() - began_s) < seconds:
        run()
        count += 1
    use = look.result()
    return {"runsPerS": round(count / passed_s, 1), "gpuUsePercent": use.percent, "gpuMemoryMiB": use.mib}


def measured(network: Network, against: str, images: Sequence[bytes], turns: int, seconds: float) -> dict[str, Any]:
    """Return the row of one network: `against` is openvino, gpu or tensorrt."""
    engine: Engine | None = None if against == "gpu" else against  # type: ignore[assignment]
    began_s = time.perf_counter()
    other = network.opened(engine, None if against == "openvino" else 0)
    other.raw(other.network_input(images[0]))
    load_s, cpu = time.perf_counter() - began_s, network.opened()
    given, request, pair = cpu.network_input(images[0]), RequestOptions(), {"cpu": cpu, against: other}
    clock = time.process_time if against == "openvino" else time.perf_counter
    exact = cpu if network.exact is None else replace(network, path=network.exact).opened()
    is_large = network.classes != len(CLASSES)
    few, turns = (images[:5], min(turns, 3)) if is_large else (images, turns)
    row: dict[str, Any] = {
        "network": network.name,
        "iou": round(agreement(exact, other, few, {each.id: each.name for each in network.pipeline.classes}), 5),
        "difference": difference(exact, other, few),
        "loadS": round(load_s, 2),
        "run": compared(timed({name: partial(each.raw, given) for name, each in pair.items()}, turns, clock)),
    }
    if against != "openvino":
        whole = {name: partial(each.answer, images[0], request) for name, each in pair.items()}
        row["request"] = compared(timed(whole, turns, clock))
        row["saturated"] = saturated(partial(other.raw, given), seconds)
    return row


def as_png(scene: Scene) -> bytes:
    """Return a scene's image as a PNG."""
    file = BytesIO()
    Image.fromarray(scene.image).save(file, "PNG")
    return file.getvalue()


def main() -> None:
    """Measure all networks, write the figures, and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", choices=("openvino", "gpu", "tensorrt"), default="openvino")
    parser.add_argument("--int8", action="store_true", help="Compare INT8 files beside FP32 ones.")
    parser.add_argument("--scenes", type=int, default=sized(40, 2), help="Drawn scenes that both engines answer.")
    parser.add_argument("--turns", type=int, default=sized(60, 1), help="Turns of each network.")
    parser.add_argument(
        "--seconds", type=float, default=sized(3.0, 0.2), help="Time of each network at saturation, on a GPU."
    )
    parser.add_argument("--only", nargs="*", help="Names of networks. Default: all.")
    parser.add_argument("--large", type=Path, help="A folder for the files of the large networks.")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")  # as servers have it
    gpus = visible_gpus()
    if given.against != "openvino" and not gpus:
        sys.exit("nvidia-smi shows no GPU: this run needs a machine with a GPU and NVIDIA's driver")
    images = [as_png(scene) for scene in draw_scenes(given.scenes, SEED)]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        networks = [*zoo(), *(large(given.large or Path(folder)) if find_spec("torchvision") is not None else ())]
        networks = [network for network in networks if not given.only or network.name in given.only]
        if given.int8:
            calibration = [as_png(scene) for scene in draw_scenes(sized(40, 4), SEED + 1)]
            networks += [quantised(network, Path(folder), calibration) for network in networks]
        for network in networks:
            try:
                rows.append(measured(network, given.against, images, given.turns, given.seconds))
            except BuilderError as error:
                sys.exit(f"{network.name}: {error}")
            print(json.dumps(rows[-1]), flush=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    report = {
        "against": given.against,
        "tf32": os.environ["NVIDIA_TF32_OVERRIDE"] != "0",
        "gpus": gpus,
        "cpu": next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "onnxruntime": onnxruntime.__version__,
        "scenes": given.scenes,
        "turns": given.turns,
        "networks": rows,
    }
    name = "engines.json" if given.against == "openvino" else "gpu.json"
    (given.output or output(f"bench/out/{name}")).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
