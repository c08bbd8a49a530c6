"""A second embedded Triton, which serves only the hand-written model."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from segserve_builder.agent import secret
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime
from segserve_operator.adapters.local.triton import LOOPBACK, triton_command

MODEL = "coins-monolith"
START_S = 120.0
SECRET = "bench"


@contextmanager
def monolith(artifact: Path) -> Iterator[str]:
    """Serve bench/monolith with the ONNX file `artifact`, and yield its gRPC address."""
    runtime = ensure_runtime(cache_folder(), print)
    prefix = f"segserve-bench-{os.getpid()}-"
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / MODEL
        shutil.copytree(Path(__file__).parent / "monolith", model)
        shutil.copyfile(artifact, model / "1" / "model.onnx")
        http, grpc, metrics = _free_ports(3)
        ports = Ports(http, grpc, metrics)
        command = triton_command(runtime, Path(folder), ports=ports, shm_prefix=prefix, api_secret=SECRET)
        with (Path(folder) / "triton.log").open("w") as log:
            process = subprocess.Popen(command.argv, env=dict(command.environment), stdout=log, stderr=log)
        try:
            _load(f"http://{LOOPBACK}:{http}")
            yield f"{LOOPBACK}:{grpc}"
        finally:
            process.terminate()
            process.wait()
            sweep_shm(prefix)


def _load(url: str) -> None:
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
        client.post(f"/v2/repository/models/{MODEL}/load", json={}, headers=headers).raise_for_status()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind((LOOPBACK, 0))
    ports: list[int] = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
