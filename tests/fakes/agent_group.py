"""One real Triton with its agent, as the supervisor starts them, and models small enough to hold by it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
import psutil
import pycocotools.mask
from onnx import TensorProto, helper
from PIL import Image

from bench.ports import free_ports
from fakes.waiting import HANG_S
from segserve_builder.agent import secret
from segserve_builder.agent.protocol import (
    HEARTBEAT_FILE,
    AssignedModel,
    Assignment,
    ModelReport,
    ModelState,
    Report,
)
from segserve_builder.agent.server import TritonServer
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_builder.sources import folder_digest
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.local.triton import runtime_environment, triton_command
from suite_run import shm_prefix

T = TypeVar("T")


def write_network(path: Path, threshold: float, *, outputs: int = 2, operator: str = "Conv") -> str:
    """Write a network that takes what is brighter than `threshold` for class 1; return the file's sha256."""
    weights = np.linspace(-1, 1, outputs, dtype=np.float32).reshape(outputs, 1, 1, 1)
    bias = -threshold * weights.reshape(outputs)
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
            helper.make_node(operator, ["real", "weights", "bias"], ["logits"]),
        ],
        "brightness",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, "h", "w"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", outputs, "h", "w"])],
        [onnx.numpy_helper.from_array(weights, "weights"), onnx.numpy_helper.from_array(bias, "bias")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assigned(model: str, artifact: Path, sha256: str, **more: Any) -> AssignedModel:
    """Return a two-class model of grey images over the file `artifact`."""
    pipeline = {
        "model": model,
        "artifactSha256": sha256,
        "family": "semantic-logits",
        "input": {"colour": "GREY"},
        "classes": [{"id": 0, "name": "dark"}, {"id": 1, "name": "bright"}],
        "preprocess": [{"decode": {}}, {"resize": {"mode": "keep"}}],
        "postprocess": [{"argmax": {}}],
        "output": {},
        "runtime": {"maxBatchSize": 4, "intraOpThreads": 1},
    }
    told = {"pipeline": pipeline, "artifact": {"uri": str(artifact), "sha256": sha256}}
    return AssignedModel.model_validate(told | more)


def picture() -> bytes:
    """Return a PNG whose left half is dark and whose right half is bright."""
    pixels = np.zeros((32, 48), np.uint8)
    pixels[:, 24:] = 200
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


@dataclass
class Group:
    """One Triton with its agent, as the supervisor starts them."""

    folder: Path
    runtime: RuntimeEnvironment
    prefix: str = field(default_factory=shm_prefix)
    ports: list[int] = field(default_factory=lambda: free_ports(3))
    triton: subprocess.Popen[bytes] | None = None
    agent: subprocess.Popen[bytes] | None = None

    def start_triton(self) -> None:
        self.repository.mkdir(exist_ok=True)
        word = secret.obtain(self.secret)
        command = triton_command(
            self.runtime, self.repository, ports=Ports(*self.ports), shm_prefix=self.prefix, api_secret=word
        )
        self.triton = self._start((*command.argv, *secret.server_arguments(word)), command.environment, "triton.log")
        (self.folder / "triton.json").write_text(ProcessRecord.of(self.triton.pid).to_json())

    def start_agent(self) -> None:
        argv = [
            *(str(self.runtime.python), "-m", "segserve_builder.agent"),
            *("--group-dir", str(self.folder), "--grpc", str(self.ports[1])),
            *("--cache", str(self.folder / "cache"), "--pid-file", str(self.folder / "triton.json")),
            *("--secret-file", str(self.secret)),
        ]
        self.agent = self._start(argv, runtime_environment(self.runtime), "agent.log")

    def _start(self, argv: Any, environment: Any, log: str) -> subprocess.Popen[bytes]:
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                argv, env=dict(environment), cwd=self.folder, stdout=file, stderr=file, start_new_session=True
            )

    def stop(self) -> None:
        for process in (self.agent, self.triton):
            if process is not None:
                end(process)
        sweep_shm(self.prefix)

    @property
    def repository(self) -> Path:
        return self.folder / "repository"

    @property
    def server(self) -> TritonServer:
        return TritonServer(self.ports[1], self.secret)

    @property
    def secret(self) -> Path:
        return self.folder / "secret"

    def assign(self, *models: AssignedModel) -> None:
        staging = self.folder / "assignment.new"
        staging.write_text(Assignment(models=models).model_dump_json(by_alias=True, exclude_none=True))
        staging.replace(self.folder / "assignment.json")

    def report(self) -> Report:
        return Report.model_validate_json((self.folder / "report.json").read_text())

    def of(self, told: AssignedModel) -> ModelReport | None:
        """Return what a report of a living agent says of a revision."""
        with contextlib.suppress(FileNotFoundError):
            report = self.report()
            if time.time() - (self.folder / HEARTBEAT_FILE).stat().st_mtime < 5 and report.server_ready:
                return next((model for model in report.models if model.revision == told.revision), None)
        return None

    def wait(self, told: AssignedModel, state: ModelState, reason: str | None = None) -> ModelReport:
        def reached() -> ModelReport | None:
            seen = self.of(told)
            return seen if seen and seen.state is state and reason in (None, seen.reason) else None

        return wait_for(reached, lambda: f"{state} {reason or ''}; {self.describe()}")

    def describe(self) -> str:
        tails = [(self.folder / name).read_text(errors="replace")[-3000:] for name in ("agent.log", "triton.log")]
        return "\n".join([str(self.of_all()), *tails])

    def of_all(self) -> list[tuple[str, str, str, str]]:
        report = self.report()
        return [(m.revision, m.state, m.reason, m.message) for m in report.models]

    def stubs(self) -> dict[str, psutil.Process]:
        """Return the living processes of Python steps by step."""
        found = {}
        for child in psutil.Process(self.triton.pid).children():
            # One that has just ended has no arguments any more.
            with contextlib.suppress(psutil.Error, IndexError):
                found[Path(child.cmdline()[1]).parent.parent.name] = child
        return found

    def bright_share(self, model: str) -> float:
        """Return the share of the picture that the served model takes for bright."""
        answer = self.server.infer(model, picture(), {}, 30.0)
        return float(answer["AREAS"][1]) / float(answer["AREAS"].sum())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all its children, whatever state they are in."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=8)
        for one in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait(HANG_S)


def wait_for(probe: Callable[[], T | None], told: Callable[[], str]) -> T:
    deadline = time.monotonic() + HANG_S
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"never saw {told()}")


def with_golden(told: AssignedModel, folder: Path, boundary: int) -> AssignedModel:
    """Return the model with a golden set that expects the picture to be bright from column `boundary` on."""
    bright = np.zeros((32, 48), np.uint8, order="F")
    bright[:, boundary:] = 1
    masks = [pycocotools.mask.encode(np.asfortranarray(mask))["counts"].decode() for mask in (1 - bright, bright)]
    folder.mkdir()
    (folder / "half.png").write_bytes(picture())
    case = {"image": "half.png", "expected": {"SIZE": [32, 48], "CLASSES": [0, 1], "MASKS": masks}}
    (folder / "golden.json").write_text(json.dumps({"cases": [case]}))
    pinned = {"uri": str(folder), "sha256": folder_digest(folder)}
    return AssignedModel.model_validate(told.model_dump(by_alias=True, exclude_none=True) | {"golden": pinned})
