"""A served network beside other ways to run the same stages, for several numbers of callers on one machine.

    python -m bench.versus [SCENARIO:CALLERS,...]... [--folder out/versus] [--rounds 3] [--seconds 2]

Needs `make .venv-rivals/stamp`, and a folder that `bench.rivals.network` and `bench.rivals.unet` have written. The ways
of a scenario take turns in short rounds, after their answers were found equal. Images/s are medians over rounds, CPU
is that of all processes and the client's, memory the proportional set size once each was warm and after the rounds,
bytes are what the client's sockets have sent and received for an image. Adds to bench/out/versus.json, and writes the
tables of docs/evidence/versus.md and docs/images/versus.svg out of it; without arguments it does the latter alone.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import os
import queue
import shutil
import socket
import struct
import subprocess
import sys
import sysconfig
import tempfile
import time
import tokenize
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from statistics import mean, median
from threading import Semaphore
from typing import Any, Final, Literal

import numpy as np
import onnx
import psutil
import tritonclient.grpc as triton
import urllib3
import yaml
from matplotlib.figure import Figure
from PIL import Image
from pycocotools import mask

from bench.monolith_server import embedded_triton
from bench.platform import ROOT, platform
from bench.ports import free_port
from bench.smoke import output, sized
from bench.svg import BLUE, ORANGE, plot_style, save_svg
from segserve_builder.memory import STEP_MALLOC
from segserve_builder.stages.base import RequestOptions
from segserve_builder.steps.in_process import InProcessModel
from segserve_builder.steps.inference import network_io
from segserve_builder.steps.onnx_signature import read_signature
from segserve_builder.steps.postprocess import Postprocess
from segserve_common.files import file_sha256
from segserve_operator.adapters.local.code_folder import CODE_VARIABLE
from segserve_operator.api.segmentation_model import SegmentationModel

CORES: Final = len(os.sched_getaffinity(0))
OUT: Final = output("bench/out/versus.json")
PLOT: Final = output("docs/images/versus.svg")
PAGE: Final = output("docs/evidence/versus.md")
RIVALS: Final = ROOT / "bench/rivals"
SIZE: Final = (720, 1280)
START_S: Final = 120
CHECKED: Final = sized(5, 2)
"""Photos whose answers are compared."""
AGREEMENT: Final = 0.99
"""Least IoU of two ways' masks, and least part of pixels with the same label."""
TCP_INFO: Final = "120xQQ"
"""Of Linux: bytes acknowledged and bytes received, after what is of no interest here."""
Call = Callable[[bytes], list[bytes]]
"""Returns the masks of an encoded image as RLE, or its label map as PNG."""
Task = Literal["yolo", "semantic"]
OUTPUTS: Final[dict[Task, str]] = {"yolo": "MASKS", "semantic": "LABELS"}

OURS, ONE_THREAD = "segserve", f"segserve, `instances: {CORES}`, `intraOpThreads: 1`"
LITSERVE, BATCHED, BENTOML, RAY = "LitServe", "LitServe, batches", "BentoML", "Ray Serve"
ENSEMBLE, REMOTE = "Triton, own ensemble", "Triton, Ultralytics' client"
CLIENT, STAGES = "in the client", "stages in one process"
WAYS: Final = (OURS, ONE_THREAD, LITSERVE, BATCHED, BENTOML, RAY, ENSEMBLE, REMOTE, CLIENT, STAGES)
NO_SERVER: Final = (CLIENT, STAGES)

KEPT: Final = {name: str(threshold) for name, (_, threshold) in STEP_MALLOC.items()}
"""Steps written by hand keep freed memory, as segserve's do."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """Photos of a folder, the network that gets them, and the ways that take turns.

    The title takes the mean number of objects.
    """

    title: str
    photos: str
    network: str
    ways: tuple[str, ...]
    task: Task = "yolo"
    is_dynamic: bool = False


YOLO: Final = tuple(way for way in WAYS if way != BATCHED)
SCENARIOS: Final = {
    "few": Scenario("{:.0f} objects", "few", "yolo", YOLO),
    "eight": Scenario("{:.0f} objects", "eight", "yolo", YOLO),
    # Of the servers that run the same functions one is enough: an image takes them a second.
    "crowded": Scenario(
        "{:.0f} objects", "crowded", "yolo", (OURS, ONE_THREAD, LITSERVE, ENSEMBLE, REMOTE, CLIENT, STAGES)
    ),
    "batch": Scenario(
        "{:.0f} objects, free batch",
        "eight",
        "yolo-batch",
        (OURS, ONE_THREAD, LITSERVE, BATCHED, CLIENT, STAGES),
        is_dynamic=True,
    ),
    "semantic": Scenario(
        "label maps", "semantic", "unet", (OURS, ONE_THREAD, LITSERVE, ENSEMBLE, CLIENT, STAGES), "semantic"
    ),
}
FILES: Final[dict[Task, dict[str, tuple[str, ...]]]] = {
    "yolo": {
        LITSERVE: ("litserve_server.py", "pipeline.py", "session.py"),
        BATCHED: ("litserve_batched.py", "pipeline.py", "session.py"),
        BENTOML: ("bentoml_service.py", "pipeline.py", "session.py"),
        RAY: ("ray_server.py", "pipeline.py", "session.py"),
        ENSEMBLE: ("triton_yolo", "pipeline.py", "session.py"),
        REMOTE: ("triton_yolo/network", "session.py", "ultralytics_client.py"),
        CLIENT: ("pipeline.py", "session.py"),
    },
    "semantic": {
        LITSERVE: ("litserve_semantic.py", "semantic.py", "session.py"),
        ENSEMBLE: ("triton_semantic", "semantic.py", "session.py"),
        CLIENT: ("semantic.py", "session.py"),
    },
}
"""What a user writes for each way."""


@dataclass(slots=True)
class Way:
    """One way to run the stages: the call for a number of callers, and the processes beside this one.

    `is_ours` says that its answers are those of the first way, bit by bit; others' may differ in a few pixels.
    """

    call: Callable[[int], Call]
    processes: Callable[[], Sequence[psutil.Process]] = tuple
    is_ours: bool = True
    rates: list[float] = field(default_factory=list)
    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)

    def cpu_s(self) -> float:
        """Return the processor time of its processes and of this one so far."""
        return sum(sum(process.cpu_times()[:2]) for process in [psutil.Process(), *self.processes()])

    def memory_mib(self) -> int:
        """Return the proportional set size of its processes."""
        return round(sum(process.memory_full_info().pss for process in self.processes()) / 2**20)

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
        self.rates.append(len(ms) / (time.perf_counter() - start))
        self.cpu_ms.append(1000 * (self.cpu_s() - cpu_s) / len(ms))
        self.ms.extend(ms)

    def row(self) -> dict[str, Any]:
        """Return the figures of the rounds since the last call."""
        p50, p95 = np.percentile(self.ms, (50, 95))
        row = {
            "images_per_s": round(median(self.rates), 2),
            "rounds": [round(rate, 2) for rate in self.rates],
            "p50_ms": round(p50, 1),
            "p95_ms": round(p95, 1),
            "cpu_ms": round(median(self.cpu_ms), 1),
        }
        for of in (self.rates, self.ms, self.cpu_ms):
            of.clear()
        return row


def triton_way(
    address: str,
    model: str,
    output: str,
    processes: Callable[[], Sequence[psutil.Process]],
    *,
    shape: Sequence[int] = (1,),
    is_ours: bool = True,
) -> Way:
    """Return the way to a model of a Triton by gRPC that takes images as a tensor of this shape."""
    client = triton.InferenceServerClient(address)
    outputs = [triton.InferRequestedOutput(output)]
    parameters = {"outputs": output} if is_ours else None

    def call(photo: bytes) -> list[bytes]:
        image = triton.InferInput("IMAGE", shape, "BYTES")
        image.set_data_from_numpy(np.array([photo], np.object_).reshape(shape))
        return list(client.infer(model, [image], outputs=outputs, parameters=parameters).as_numpy(output).ravel())

    return Way(lambda callers: call, processes, is_ours)


@contextmanager
def served(file: Path, task: Task, **runtime: int) -> Iterator[Way]:
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
            address, output = running.url.removeprefix("http://"), OUTPUTS[task]
            yield triton_way(address, document["metadata"]["name"], output, running.processes)


def in_process(file: Path, task: Task) -> Way:
    """Return the same stages in this process: all threads for one caller, else an image a core with one thread each."""
    resource = SegmentationModel.model_validate(yaml.safe_load(file.read_text()))
    request = RequestOptions(encoding={"yolo": "rle", "semantic": "png"}[task])
    artifact, cores, calls = file.parent / resource.spec.artifact.uri, Semaphore(CORES), []
    for threads in (0, 1):
        runtime = resource.spec.runtime.model_copy(update={"intra_op_threads": threads})
        pipeline = resource.spec.pipeline("versus").model_copy(update={"runtime": runtime})
        model = InProcessModel(pipeline, artifact)
        postprocess = Postprocess(pipeline, network_io(pipeline, read_signature(artifact)), None)

        def call(photo: bytes, model: InProcessModel = model, postprocess: Postprocess = postprocess) -> list[bytes]:
            with cores:
                given = model.network_input(photo)
                raw = model.raw(given)
                answer = postprocess(raw, given.transform, request, frozenset([OUTPUTS[task]]), given.guide, None)
            return list(answer[OUTPUTS[task]].tolist())

        calls.append(call)
    return Way(lambda callers: calls[0 if callers == 1 else 1])


@contextmanager
def rival(name: str, command: Sequence[str], *, is_form: bool = False, **environment: str) -> Iterator[Way]:
    """Run a server of `bench/rivals`, with a worker for each core; a caller posts an image and reads JSON or PNG."""
    port, blank = free_port(), BytesIO()
    Image.new("RGB", (64, 48)).save(blank, "JPEG")
    words = [word.format(port=port) for word in command]
    quiet = {"BENTOML_DO_NOT_TRACK": "1", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    with (
        tempfile.TemporaryFile() as log,
        # Of its own session, as segserve's processes: the kernel shares processors between sessions.
        subprocess.Popen(
            words, cwd=ROOT, env=os.environ | quiet | environment, stdout=log, stderr=log, start_new_session=True
        ) as process,
        urllib3.PoolManager(maxsize=64, retries=False) as pool,
    ):
        url, known = f"http://127.0.0.1:{port}/predict", psutil.Process(process.pid)

        def call(photo: bytes) -> list[bytes]:
            sent: dict[str, Any] = {"body": photo, "headers": {"content-type": "image/jpeg"}}
            if is_form:
                sent = {"fields": {"image": ("image.jpg", photo, "image/jpeg")}}
            response = pool.request("POST", url, **sent)
            if response.status != 200:
                raise RuntimeError(f"{name} answers {response.status}: {response.data[:500]!r}")
            if response.headers["content-type"] == "image/png":
                return [response.data]
            return [each.encode() for each in response.json()["masks"]]

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


@contextmanager
def by_hand(network: Path, task: Task, model: str) -> Iterator[tuple[str, Callable[[], list[psutil.Process]]]]:
    """Serve a model of `bench/rivals/triton_*` with the Triton that segserve uses; yield its address and processes.

    Its steps find packages of the runtime first (numpy, OpenCV, ONNX Runtime), then this program's (Ultralytics).
    """
    with tempfile.TemporaryDirectory() as folder:
        repository = Path(folder)
        shutil.copytree(RIVALS / f"triton_{task}", repository, dirs_exist_ok=True)
        for each in repository.glob("*/"):
            (each / "1").mkdir(exist_ok=True)
        shutil.copyfile(network, repository / "network/1/model.onnx")
        # Ultralytics' client reads what its exporter has written to the file out of the configuration.
        known = {each.key: each.value for each in onnx.load(network).metadata_props}
        with (repository / "network/config.pbtxt").open("a") as file:
            text = json.dumps(repr(known))
            file.write(f'parameters {{ key: "metadata" value: {{ string_value: {text} }} }}\n')
        # Its stubs ignore PYTHONPATH; the folder of this variable comes after the runtime's own packages.
        variables = {CODE_VARIABLE: sysconfig.get_path("purelib"), "YOLO_OFFLINE": "true", **KEPT}
        with embedded_triton(repository, model, variables=variables) as server:
            root = psutil.Process(server.pid)
            yield server.grpc, lambda: [root, *root.children(recursive=True)]


@contextmanager
def ensemble(network: Path, task: Task) -> Iterator[Way]:
    """Serve an ensemble of three Python steps."""
    shape = {"yolo": (1,), "semantic": (1, 1)}[task]  # a free batch comes first
    with by_hand(network, task, task) as (address, processes):
        yield triton_way(address, task, OUTPUTS[task], processes, shape=shape, is_ours=False)


@contextmanager
def remote(network: Path) -> Iterator[Way]:
    """Serve the network alone, for Ultralytics' client; each caller has a client of its own."""
    import torch

    from bench.rivals.ultralytics_client import connect, masks

    with by_hand(network, "yolo", "network") as (address, processes):
        idle: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def call(photo: bytes) -> list[bytes]:
            try:
                model = idle.get_nowait()
            except queue.Empty:
                model = connect(address)
            found = masks(photo, model)
            idle.put(model)
            return found

        def call_of(callers: int) -> Call:
            torch.set_num_threads(CORES if callers == 1 else 1)
            return call

        yield Way(call_of, processes, is_ours=False)


def in_client(network: Path, task: Task, *, is_dynamic: bool = False) -> Way:
    """Return the rivals' functions in this process: all threads for one caller, else an image a core."""
    import torch

    from bench.rivals import pipeline, semantic
    from bench.rivals.session import session

    cores, sessions = Semaphore(CORES), [session(network, threads) for threads in (0, 1)]

    def call(photo: bytes, used: int) -> list[bytes]:
        with cores:
            if task == "semantic":
                tensor, size = semantic.prepare(photo)
                return [semantic.label_map(sessions[used](tensor)[0][0], size)]
            tensor, size = pipeline.prepare(photo, is_dynamic=is_dynamic)
            return pipeline.masks(sessions[used](tensor), size)

    def call_of(callers: int) -> Call:
        torch.set_num_threads(CORES if callers == 1 else 1)
        return partial(call, used=0 if callers == 1 else 1)

    return Way(call_of, is_ours=False)


def started(name: str, scenario: Scenario, folder: Path) -> AbstractContextManager[Way]:
    """Return a way of a scenario, not yet started."""
    file, task = folder / scenario.network / "model.yaml", scenario.task
    network = artifact_of(file)
    python, given = sys.executable, [str(network), "{port}", str(CORES)]
    bentoml = [str(Path(python).with_name("bentoml")), "serve", "bench.rivals.bentoml_service:Yolo"]
    litserve = [python, "-m", f"bench.rivals.{FILES[task].get(name, ('',))[0].removesuffix('.py')}", *given]
    litserve += ["dynamic"] * scenario.is_dynamic
    ways: dict[str, Callable[[], AbstractContextManager[Way]]] = {
        OURS: lambda: served(file, task),
        ONE_THREAD: lambda: served(file, task, instances=CORES, intraOpThreads=1),
        LITSERVE: lambda: rival(name, litserve, is_form=True),
        BATCHED: lambda: rival(name, litserve, is_form=True),
        BENTOML: lambda: rival(
            name, [*bentoml, "--host", "127.0.0.1", "--port", "{port}"], NETWORK=given[0], WORKERS=given[2]
        ),
        RAY: lambda: rival(name, [python, "-m", "bench.rivals.ray_server", *given]),
        ENSEMBLE: lambda: ensemble(network, task),
        REMOTE: lambda: remote(network),
        CLIENT: lambda: nullcontext(in_client(network, task, is_dynamic=scenario.is_dynamic)),
        STAGES: lambda: nullcontext(in_process(file, task)),
    }
    return ways[name]()


def artifact_of(file: Path) -> Path:
    """Return the network of a model.yaml."""
    return file.parent / str(yaml.safe_load(file.read_text())["spec"]["artifact"]["uri"])


def check(ways: dict[str, Way], callers: Sequence[int], photos: Sequence[bytes], task: Task) -> dict[str, Any]:
    """Return the mean number of objects, and by way its least agreement and its bytes for an image.

    Exits if two ways answer differently, which would not be the same work.
    """
    known: list[list[bytes]] = []
    checked: dict[str, Any] = {}
    for name, way in ways.items():
        agreements, calls = [], dict.fromkeys(way.call(number) for number in callers)
        for call in calls:
            call(photos[0])
        before = wire_bytes()
        for call in calls:
            for number, photo in enumerate(photos):
                found = [each for each in call(photo) if task == "semantic" or mask.area(_rle(each))]
                if len(known) < len(photos):
                    known.append(found)
                alike = 1.0 if found == known[number] else 0.0 if way.is_ours else agreement(found, known[number], task)
                if alike < AGREEMENT:
                    raise SystemExit(f"{name} answers differently from {next(iter(ways))}: {alike:.3f}")
                agreements.append(alike)
        checked[name] = {"agreement": round(min(agreements), 4)}
        if way.processes():
            checked[name]["bytes"] = round((wire_bytes() - before) / len(photos) / len(calls))
    objects = round(mean(map(len, known)), 1) if task == "yolo" else 0
    return {"objects": objects, "jpeg_bytes": round(mean(map(len, photos))), "ways": checked}


def agreement(found: Sequence[bytes], known: Sequence[bytes], task: Task) -> float:
    """Return the least IoU of two answers' masks with their best counterpart, or the part of equal labels."""
    if task == "semantic":
        one, other = (np.asarray(Image.open(BytesIO(each[0]))) for each in (found, known))  # OpenCV applies palettes
        return float((one == other).mean()) if one.shape == other.shape else 0.0
    if len(found) != len(known):
        return 0.0
    ious = np.asarray(mask.iou([*map(_rle, found)], [*map(_rle, known)], [0] * len(known)))
    return float(min(ious.max(axis=0).min(), ious.max(axis=1).min()))


def _rle(counts: bytes) -> dict[str, Any]:
    return {"size": list(SIZE), "counts": counts}


def wire_bytes() -> int:
    """Return the bytes that this process's TCP connections have sent and received since they were opened."""
    total = 0
    for path in Path("/proc/self/fd").iterdir():
        if not path.is_socket():
            continue
        with socket.socket(fileno=os.dup(int(path.name))) as one:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM:
                sent = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, struct.calcsize(TCP_INFO))
                total += sum(struct.unpack(TCP_INFO, sent))
    return total


def code_lines(*paths: Path) -> int:
    """Return the lines of Python and configuration files without blank lines, comments and docstrings."""
    lines = 0
    for path in paths:
        if path.is_dir():
            lines += code_lines(*sorted(path.rglob("*.py")), *sorted(path.rglob("*.pbtxt")))
        elif path.suffix == ".py":
            tree = ast.parse(path.read_text())
            texts = [each for each in ast.walk(tree) if isinstance(each, ast.Expr)]
            strings = [each for each in texts if isinstance(each.value, ast.Constant)]
            docs = {line for each in strings for line in range(each.lineno, (each.end_lineno or 0) + 1)}
            empty = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
            tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
            coded = {token.start[0] for token in tokens if token.type not in empty and token.string}
            lines += len(coded - docs)
        else:
            lines += sum(not line.lstrip().startswith("#") for line in path.read_text().split("\n") if line.strip())
    return lines


def measure(name: str, callers: Sequence[int], folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """Return the figures of a scenario."""
    scenario = SCENARIOS[name]
    photos = [path.read_bytes() for path in sorted((folder / scenario.photos).glob("*.jpg"))]
    with ExitStack() as stack:
        ways = {way: stack.enter_context(started(way, scenario, folder)) for way in scenario.ways}
        result = check(ways, callers, photos[:CHECKED], scenario.task)
        rows = result["ways"]
        for each, way in ways.items():
            if way.processes():
                rows[each] |= {"ready_mib": way.memory_mib(), "mib": {}}
            if each in FILES[scenario.task]:
                rows[each]["lines"] = code_lines(*(RIVALS / file for file in FILES[scenario.task][each]))
        for number in callers:
            for way in ways.values():
                way.round(number, photos, sized(1, 0.1))  # what is opened when it is first needed
                way.row()
            for turn in range(rounds):
                for each in [*ways][turn % len(ways) :] + [*ways][: turn % len(ways)]:
                    ways[each].round(number, photos, seconds)
            for each, way in ways.items():
                rows[each][str(number)] = way.row()
                if way.processes():
                    rows[each]["mib"][str(number)] = way.memory_mib()
    file = folder / scenario.network / "model.yaml"
    digest = file_sha256(artifact_of(file))
    return {
        "cores": CORES,
        "rounds": rounds,
        "seconds": seconds,
        "sha256": digest,
        "yaml_lines": code_lines(file),
        **result,
    }


def record(name: str, result: dict[str, Any]) -> None:
    """Write the figures of a scenario beside those of others, and beside its own of other numbers of callers."""
    former = json.loads(OUT.read_text()) if OUT.exists() else {}
    if former.get(name, {}).get("sha256") == result["sha256"]:
        for way, row in former[name]["ways"].items():
            of = result["ways"].setdefault(way, {})
            row.get("mib", {}).update(of.get("mib", {}))
            result["ways"][way] = row | of | ({"mib": row["mib"]} if "mib" in row else {})
    former[name] = result
    OUT.write_text(json.dumps(former, indent=1) + "\n")


def render(results: dict[str, Any]) -> None:
    """Write the page's tables and the plot."""
    begin, end = "<!-- tables: written by make bench-versus -->", "<!-- end of tables -->"
    head, rest = PAGE.read_text().split(begin)
    shown = {
        of.title.format(results[name]["objects"]): results[name] for name, of in SCENARIOS.items() if name in results
    }
    lines = [line for callers in ("1", "8", "32") for line in rates(shown, callers)]
    PAGE.write_text("\n".join([head + begin, "", *lines, *costs(results), end + rest.split(end)[1]]))
    draw(shown)


def rates(shown: dict[str, Any], callers: str) -> list[str]:
    """Return the table of images a second for a number of callers, a column for each scenario."""
    shown = {title: of["ways"] for title, of in shown.items() if callers in of["ways"][OURS]}
    return [
        f"| images/s, {callers} caller{'s' * (callers != '1')} | {' | '.join(shown)} |",
        "|---|" + "---|" * len(shown),
        *(
            f"| {f'**{way}**' if way == OURS else way} | "
            + " | ".join(_rate(ways.get(way, {}).get(callers)) for ways in shown.values())
            + " |"
            for way in WAYS
            if any(way in ways for ways in shown.values())
        ),
        "",
    ]


def _rate(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['images_per_s']:.1f} ({min(row['rounds']):.1f}–{max(row['rounds']):.1f})"


def costs(results: dict[str, Any]) -> list[str]:
    """Return the table of what an image of eight objects costs, and a server."""
    if "eight" not in results:
        return []
    result, rows = results["eight"], []
    for way, of in result["ways"].items():
        served, code = "ready_mib" in of, of.get("lines", "")
        code = f"{result['yaml_lines']} by `init`" if way == OURS else "+ 2" if way == ONE_THREAD else code
        one, many = of.get("1", {}), of.get("8", {})
        cells = [
            way,
            f"{one['p50_ms']:.0f}, {one['p95_ms']:.0f}" if one else "",
            f"{many['p50_ms']:.0f}, {many['p95_ms']:.0f}" if many and served else "",
            f"{one['cpu_ms']:.0f}, {many['cpu_ms']:.0f}" if one and many else "",
            f"{of['bytes'] / result['jpeg_bytes']:.2f}" if served else "",
            f"{of['ready_mib']}, {of['mib'].get('32', '')}" if served else "",
            str(code),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return [
        "| way | p50, p95 ms, 1 caller | 8 callers | processor ms, 1 and 8 callers | bytes, JPEG = 1 | MiB ready, "
        "after 32 callers | lines |",
        "|---|---|---|---|---|---|---|",
        *rows,
        "",
    ]


def draw(shown: dict[str, Any]) -> None:
    """Draw each way's images a second as a multiple of segserve's, a panel for each scenario, for 1 and 8 callers."""
    ways = [way for way in WAYS if any(way in of["ways"] for of in shown.values())][::-1]
    names = [f"{way.replace('`', '')}{' (no server)' if way in NO_SERVER else ''}" for way in ways]
    with plot_style():
        figure = Figure(figsize=(2.6 + 1.7 * len(shown), 4.4), layout="constrained")
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, (title, of) in zip(panels, shown.items(), strict=True):
            for offset, callers, colour in ((0.2, "1", BLUE), (-0.2, "8", ORANGE)):
                ours = of["ways"][OURS][callers]["images_per_s"]
                known = [(at, of["ways"][way]) for at, way in enumerate(ways) if callers in of["ways"].get(way, {})]
                ratios = [found[callers]["images_per_s"] / ours for _, found in known]
                label = f"{callers} caller{'s' * (callers != '1')}"
                bars = axes.barh([at + offset for at, _ in known], ratios, 0.4, color=colour, label=label)
                axes.bar_label(bars, fmt="%.2f", fontsize=7, padding=2)
            axes.axvline(1, color="black", linewidth=0.8)
            axes.set_title(title.replace(", ", ",\n"), fontsize=9)
            axes.margins(x=0.25)
        panels[0].set_yticks(range(len(ways)), names)
        figure.supxlabel("images a second, segserve = 1", fontsize=9)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
        save_svg(figure, PLOT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="SCENARIO:CALLERS,...", help=f"scenarios: {', '.join(SCENARIOS)}")
    parser.add_argument("--folder", type=Path, default=ROOT / "out/versus")
    parser.add_argument("--rounds", type=int, default=sized(3, 1))
    parser.add_argument("--seconds", type=float, default=sized(2, 0.2))
    given = parser.parse_args()
    for run in given.runs:
        name, _, callers = run.partition(":")
        numbers = [int(number) for number in callers.split(",")]
        record(name, measure(name, numbers, given.folder, given.rounds, given.seconds))
    render(json.loads(OUT.read_text()))


if __name__ == "__main__":
    main()
