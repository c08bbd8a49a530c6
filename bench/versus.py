"""A served model beside other ways to run the same stages, for 1, 8 and 32 callers on one machine.

    python -m bench.versus MODEL.yaml PHOTO... [--rounds 3] [--seconds 5] [--rivals]

MODEL.yaml holds one model whose artifact is a file beside it; `--rivals` are for YOLO segmentation, and need
`make .venv-rivals/stamp`. The ways take turns in short rounds, after their masks were found equal. Images/s are medians
over rounds, CPU is that of all processes and the client's, memory the proportional set size once each was warm and at
the end. Adds to bench/out/versus.json; with `--rivals` it draws docs/images/versus.svg.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import median
from threading import Semaphore
from typing import Any, Final

import numpy as np
import psutil
import urllib3
import yaml
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask
from rich.console import Console
from rich.table import Table

from bench.platform import ROOT, Running, platform
from bench.ports import free_port
from bench.request import OUTPUTS, image_call
from bench.svg import BLUE, GREY, ORANGE, plot_style, save_svg
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import Postprocess
from segserve_operator.api.segmentation_model import SegmentationModel

CALLERS: Final = (1, 8, 32)
CORES: Final = len(os.sched_getaffinity(0))
OUT: Final = ROOT / "bench/out/versus.json"
PLOT: Final = ROOT / "docs/images/versus.svg"
SIZE: Final = (720, 1280)
START_S: Final = 120
Call = Callable[[bytes], list[bytes]]
"""Returns the masks of an encoded image, as RLE."""


@dataclass(slots=True)
class Way:
    """One way to run the stages: the call for a number of callers, and the processes beside this one.

    `is_ours` says that its masks are those of the first way, bit by bit; others' may differ in a few pixels.
    """

    call: Callable[[int], Call]
    processes: Callable[[], Sequence[psutil.Process]] = tuple
    is_ours: bool = True
    ready_mib: float = 0.0
    rates: dict[int, list[float]] = field(default_factory=dict)
    ms: dict[int, list[float]] = field(default_factory=dict)
    cpu_ms: dict[int, list[float]] = field(default_factory=dict)

    def cpu_s(self) -> float:
        """Return the processor time of its processes and of this one so far."""
        return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *self.processes()])

    def memory_mib(self) -> float:
        """Return the proportional set size of its processes."""
        return sum(process.memory_full_info().pss for process in self.processes()) / 2**20

    def round(self, callers: int, photos: Sequence[bytes], seconds: float) -> None:
        """Let callers send photos one after the other for some seconds."""
        call, until = self.call(callers), time.perf_counter() + seconds

        def caller(number: int) -> list[float]:
            ms: list[float] = []
            while (start := time.perf_counter()) < until:
                call(photos[(number + len(ms)) % len(photos)])
                ms.append(1000 * (time.perf_counter() - start))
            return ms

        start, cpu_s = time.perf_counter(), self.cpu_s()
        with ThreadPoolExecutor(callers) as threads:
            ms = [each for of in threads.map(caller, range(callers)) for each in of]
        self.rates.setdefault(callers, []).append(len(ms) / (time.perf_counter() - start))
        self.cpu_ms.setdefault(callers, []).append(1000 * (self.cpu_s() - cpu_s) / len(ms))
        self.ms.setdefault(callers, []).extend(ms)

    def row(self, callers: int) -> dict[str, Any]:
        """Return the figures for a number of callers."""
        p50, p95 = np.percentile(self.ms[callers], (50, 95))
        return {
            "images_per_s": round(median(self.rates[callers]), 2),
            "rounds": [round(rate, 2) for rate in self.rates[callers]],
            "p50_ms": round(p50, 1),
            "p95_ms": round(p95, 1),
            "cpu_ms": round(median(self.cpu_ms[callers]), 1),
        }


@contextmanager
def served(file: Path, **runtime: int) -> Iterator[Way]:
    """Serve the model, with other settings of its runtime."""
    document = yaml.safe_load(file.read_text())
    artifact = file.parent / document["spec"]["artifact"]["uri"]
    document["spec"]["artifact"]["uri"] = artifact.resolve().as_uri()
    document["spec"].pop("golden", None)
    document["spec"]["runtime"] = document["spec"].get("runtime", {}) | runtime
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.yaml"
        path.write_text(yaml.safe_dump(document))
        with platform(path) as running:
            yield at(running, document["metadata"]["name"])


def at(running: Running, model: str) -> Way:
    """Return the way through a platform's gateway by gRPC."""
    address = running.url.removeprefix("http://")

    def call(photo: bytes) -> list[bytes]:
        return list(image_call_of(photo)().as_numpy("MASKS").tolist())

    calls: dict[bytes, Callable[[], Any]] = {}

    def image_call_of(photo: bytes) -> Callable[[], Any]:
        if photo not in calls:
            calls[photo] = image_call(address, model, photo)
        return calls[photo]

    return Way(lambda callers: call, running.processes)


def in_process(file: Path) -> Way:
    """Return the same stages in this process: all threads for one caller, else an image a core with one thread each."""
    resource = SegmentationModel.model_validate(yaml.safe_load(file.read_text()))
    artifact, request = file.parent / resource.spec.artifact.uri, RequestOptions(encoding="rle")
    cores, calls = Semaphore(CORES), []
    for threads in (0, 1):
        runtime = resource.spec.runtime.model_copy(update={"intra_op_threads": threads})
        pipeline = resource.spec.pipeline("versus").model_copy(update={"runtime": runtime})
        model = InProcessModel(pipeline, artifact)
        postprocess = Postprocess(pipeline, network_io(pipeline, read_signature(artifact)), None)

        def call(photo: bytes, model: InProcessModel = model, postprocess: Postprocess = postprocess) -> list[bytes]:
            with cores:
                given = model.network_input(photo)
                raw = model.raw(given)
                answer = postprocess(raw, given.transform, request, frozenset(OUTPUTS), given.guide, None)
            return list(answer["MASKS"].tolist())

        calls.append(call)
    return Way(lambda callers: calls[0 if callers == 1 else 1])


@contextmanager
def rival(name: str, command: Sequence[str], *, is_form: bool = False, **environment: str) -> Iterator[Way]:
    """Run a server of `bench/rivals`, with a worker for each core; a caller posts an image and reads JSON."""
    port, blank = free_port(), BytesIO()
    Image.new("RGB", (64, 48)).save(blank, "JPEG")
    words = [word.format(port=port) for word in command]
    quiet = {"BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(words, cwd=ROOT, env=os.environ | quiet | environment, stdout=log, stderr=log) as process,
        urllib3.PoolManager(maxsize=max(CALLERS), retries=False) as pool,
    ):
        url, known = f"http://127.0.0.1:{port}/predict", psutil.Process(process.pid)

        def call(photo: bytes) -> list[bytes]:
            sent: dict[str, Any] = {"body": photo, "headers": {"content-type": "image/jpeg"}}
            if is_form:
                sent = {"fields": {"image": ("image.jpg", photo, "image/jpeg")}}
            answer = pool.request("POST", url, **sent)
            if answer.status != 200:
                raise RuntimeError(f"{name} answers {answer.status}: {answer.data[:500]!r}")
            return [each.encode() for each in answer.json()["masks"]]

        def processes() -> list[psutil.Process]:
            return [known, *known.children(recursive=True)]

        try:
            for last in range(START_S, -1, -1):
                try:
                    call(blank.getvalue())
                    break
                except (urllib3.exceptions.HTTPError, RuntimeError) as error:
                    if not last or process.poll() is not None:
                        log.seek(0)
                        raise SystemExit(f"{name} does not start: {error}\n{log.read().decode()[-2000:]}") from error
                    time.sleep(1)
            yield Way(lambda callers: call, processes, is_ours=False)
        finally:
            for each in reversed(processes()):
                each.terminate()


def rivals(network: Path) -> dict[str, AbstractContextManager[Way]]:
    """Return the servers beside which YOLO segmentation is measured, and the same code without a server."""
    python, given = sys.executable, [str(network), "{port}", str(CORES)]
    bentoml = [str(Path(python).with_name("bentoml")), "serve", "bench.rivals.bentoml_service:Yolo"]
    return {
        "LitServe": rival("LitServe", [python, "-m", "bench.rivals.litserve_server", *given], is_form=True),
        "BentoML": rival(
            "BentoML", [*bentoml, "--host", "127.0.0.1", "--port", "{port}"], NETWORK=given[0], WORKERS=given[2]
        ),
        "Ray Serve": rival("Ray Serve", [python, "-m", "bench.rivals.ray_server", *given]),
        "Ultralytics' functions in the client": nullcontext(in_client(network)),
    }


def in_client(network: Path) -> Way:
    """Return Ultralytics' functions in this process: all threads for one caller, else an image a core."""
    from bench.rivals.pipeline import masks, session

    cores, sessions = Semaphore(CORES), [session(network, threads) for threads in (0, 1)]

    def call(photo: bytes, used: int) -> list[bytes]:
        with cores:
            return masks(photo, sessions[used])

    return Way(lambda callers: partial(call, used=0 if callers == 1 else 1), is_ours=False)


def check(ways: dict[str, Way], photos: Sequence[bytes]) -> float:
    """Return the mean number of masks; exit if two ways answer differently, which would not be the same work."""
    count = 0
    for photo in photos:
        first: list[bytes] | None = None
        for name, way in ways.items():
            for callers in CALLERS:
                found = way.call(callers)(photo)
                first = found if first is None else first
                if found != first and (way.is_ours or not _are_alike(found, first)):
                    raise SystemExit(f"the masks of {name} differ from the first's: {len(found)} and {len(first)}")
        count += len(first or ())
    return round(count / len(photos), 1)


def _are_alike(found: Sequence[bytes], known: Sequence[bytes]) -> bool:
    """Return whether each mask of one answer has one in the other with an IoU of at least 0.99."""
    if len(found) != len(known):
        return False
    sizes = [[{"size": list(SIZE), "counts": counts} for counts in each] for each in (found, known)]
    ious = np.asarray(mask.iou(*sizes, [0] * len(known)))
    return bool((ious.max(axis=0) >= 0.99).all() and (ious.max(axis=1) >= 0.99).all())


def compare(ways: dict[str, Way], photos: Sequence[bytes], rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures of each way, by way and number of callers."""
    masks = check(ways, photos)
    for way in ways.values():
        way.ready_mib = way.memory_mib()
    for callers in CALLERS:
        for way in ways.values():
            way.round(callers, photos, 1)  # what is opened when it is first needed
        for way in ways.values():
            for of in (way.rates, way.ms, way.cpu_ms):
                of.clear() if callers == CALLERS[0] else of.pop(callers)
        for turn in range(rounds):
            names = list(ways)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                ways[name].round(callers, photos, seconds)
    return {
        name: {str(callers): way.row(callers) for callers in CALLERS}
        | ({"ready_mib": round(way.ready_mib), "mib": round(way.memory_mib())} if way.processes() else {})
        for name, way in ways.items()
    } | {"masks": masks}


def show(results: dict[str, Any]) -> None:
    """Print the figures, a table for each number of callers."""
    for callers in CALLERS:
        table = Table("way", "images/s", "p50 ms", "p95 ms", "CPU ms an image", title=f"{callers} callers")
        for name, of in results.items():
            if isinstance(of, dict):
                row = of[str(callers)]
                table.add_row(name, *(str(row[key]) for key in ("images_per_s", "p50_ms", "p95_ms", "cpu_ms")))
        Console().print(table)
    Console().print(
        {name: (of.get("ready_mib"), of.get("mib")) for name, of in results.items() if isinstance(of, dict)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rivals", action="store_true")
    given = parser.parse_args()
    photos = [path.read_bytes() for path in given.photos]
    with ExitStack() as stack:
        ways = {
            "segserve": stack.enter_context(served(given.model)),
            f"segserve, instances {CORES}, intraOpThreads 1": stack.enter_context(
                served(given.model, instances=CORES, intraOpThreads=1)
            ),
            "the same stages in one process": in_process(given.model),
        }
        if given.rivals:
            artifact = yaml.safe_load(given.model.read_text())["spec"]["artifact"]["uri"]
            for name, context in rivals(given.model.parent / artifact).items():
                ways[name] = stack.enter_context(context)
        results = compare(ways, photos, given.rounds, given.seconds)
    record(given.model, results)
    if given.rivals:
        draw(results, PLOT)
    show(results)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw the images a second of each way, a group for each number of callers, with the spread of its rounds."""
    names = [name for name, of in results.items() if isinstance(of, dict)]
    width = 0.8 / len(names)
    with plot_style():
        figure = Figure(figsize=(8.5, 3.4), layout="constrained")
        axes = figure.subplots()
        for place, name in enumerate(names):
            rows = [results[name][str(callers)] for callers in CALLERS]
            rates = np.array([row["images_per_s"] for row in rows])
            spread = [rates - [min(row["rounds"]) for row in rows], [max(row["rounds"]) for row in rows] - rates]
            ours, served = name.startswith("segserve"), "ready_mib" in results[name]
            colour = BLUE if ours else GREY if served else ORANGE
            axes.bar(
                np.arange(len(CALLERS)) + (place - (len(names) - 1) / 2) * width,
                rates,
                width,
                yerr=spread,
                color=colour,
                edgecolor="white",
                alpha=1 - 0.12 * sum(name.startswith("segserve") == ours for name in names[:place]),
                label=name if served else f"{name} (no server)",
            )
        axes.set_xticks(range(len(CALLERS)), [f"{callers} caller{'s' * (callers > 1)}" for callers in CALLERS])
        axes.set(ylabel="images a second", xlim=(-0.5, len(CALLERS) - 0.5))
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        save_svg(figure, path)


def record(model: Path, results: dict[str, Any]) -> None:
    """Write the figures of a model beside those of others."""
    name = model.parent.name
    digest = hashlib.sha256((model.parent / yaml.safe_load(model.read_text())["spec"]["artifact"]["uri"]).read_bytes())
    former = json.loads(OUT.read_text()) if OUT.exists() else {}
    former[name] = {"cores": CORES, "sha256": digest.hexdigest(), **results}
    OUT.write_text(json.dumps(former, indent=1) + "\n")


if __name__ == "__main__":
    main()
