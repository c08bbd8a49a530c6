"""A further embedded Triton without an agent: with the hand-written model, or with a copy of ours."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

from segserve_builder.agent import secret
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime
from segserve_operator.adapters.local.triton import LOOPBACK, triton_command

MODEL = "coins-monolith"
START_S = 120.0
SECRET = "bench"


@dataclass(frozen=True, slots=True)
class EmbeddedTriton:
    """A running Triton: its gRPC address, its URL, its process, and the URL of its metrics."""

    grpc: str
    url: str
    pid: int
    metrics_url: str


@contextmanager
def monolith(artifact: Path) -> Iterator[str]:
    """Serve bench/monolith with the ONNX file `artifact`, and yield its gRPC address."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        shutil.copytree(Path(__file__).parent / "monolith", model)
        shutil.copyfile(artifact, model / "1" / "model.onnx")
        with embedded_triton(Path(folder), MODEL) as server:
            yield server.grpc


@contextmanager
def embedded_triton(
    repository: Path,
    model: str,
    *,
    traces_url: str | None = None,
    variables: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[EmbeddedTriton]:
    """Serve a model of a repository with an embedded Triton; its environment has the `variables` as well."""
    http, grpc, metrics = _free_ports(3)
    prefix = f"segserve-bench-{http}-"
    command = triton_command(
        ensure_runtime(cache_folder(), print),
        repository,
        ports=Ports(http, grpc, metrics),
        shm_prefix=prefix,
        api_secret=SECRET,
        traces_url=traces_url,
    )
    environment = command.environment | dict(variables)
    url = f"http://{LOOPBACK}:{http}"
    with (repository / "triton.log").open("w") as log:
        argv = (*command.argv, *secret.server_arguments(SECRET))
        # Of its own session, as segserve's processes: the kernel shares processors between sessions.
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        _load(url, model)
        yield EmbeddedTriton(f"{LOOPBACK}:{grpc}", url, process.pid, f"http://{LOOPBACK}:{metrics}/metrics")
    finally:
        process.terminate()
        process.wait()
        sweep_shm(prefix)


def _load(url: str, model: str) -> None:
    deadline = time.monotonic() + START_S
    with httpx.Client(base_url=url, trust_env=False, timeout=START_S) as client:
        while True:
            try:
                client.get("/v2/health/live").raise_for_status()
                break
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        headers = {secret.KEY: SECRET}
        client.post(f"/v2/repository/models/{model}/load", json={}, headers=headers).raise_for_status()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((LOOPBACK, 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
