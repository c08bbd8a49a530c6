"""A real MLflow tracking server as a process, and what is registered in it over its own HTTP API."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from bench.ports import free_port
from tools import PEERS

MLFLOW = PEERS / "mlflow"
_PATIENCE_S = 480.0


@dataclass(frozen=True)
class MlflowServer:
    """A server at `url` that gives out artifacts itself."""

    url: str

    def register(self, name: str, files: Mapping[str, bytes], source: str | None = None) -> str:
        """Log files as a run's and register them, or what is at `source`; returns the version."""
        run = self._post("runs/create", experiment_id="0")["run"]["info"]["run_id"]
        folder = f"0/{run}/artifacts/net"
        for path, content in files.items():
            url = f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{folder}/{quote(path)}"
            httpx.put(url, content=content).raise_for_status()
        httpx.post(f"{self.url}/api/2.0/mlflow/registered-models/create", json={"name": name})
        made = self._post(
            "model-versions/create", name=name, run_id=run, source=source or f"mlflow-artifacts:/{folder}"
        )
        return str(made["model_version"]["version"])

    def register_logged_model(self, name: str, files: Mapping[str, bytes]) -> str:
        """Log files as MLflow 3's own kind of model, as `log_model` does, and register that; returns the version."""
        model = self._post("logged-models", experiment_id="0", name="net")["model"]["info"]
        folder = model["artifact_uri"].removeprefix("mlflow-artifacts:/")
        for path, content in files.items():
            url = f"{self.url}/api/2.0/mlflow-artifacts/artifacts/{folder}/{quote(path)}"
            httpx.put(url, content=content).raise_for_status()
        httpx.post(f"{self.url}/api/2.0/mlflow/registered-models/create", json={"name": name})
        number = model["model_id"]
        made = self._post("model-versions/create", name=name, source=f"models:/{number}", model_id=number)
        return str(made["model_version"]["version"])

    def alias(self, name: str, alias: str, version: str) -> None:
        self._post("registered-models/alias", name=name, alias=alias, version=version)

    def _post(self, path: str, **said: str) -> Any:
        return httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=said).raise_for_status().json()


@contextmanager
def mlflow_server(folder: Path) -> Iterator[MlflowServer]:
    """Run a server whose records and files are below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [
        *(str(MLFLOW), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--serve-artifacts"),
        *("--backend-store-uri", f"sqlite:///{folder}/db.sqlite", "--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    log = folder / "log"
    with log.open("wb") as out:
        # A session of its own: the server starts others, which end with it this way.
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        server = MlflowServer(f"http://127.0.0.1:{port}")
        _wait(server, process, log)
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(server: MlflowServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline_s = time.monotonic() + _PATIENCE_S
    while True:
        try:
            if httpx.get(f"{server.url}/health").is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > deadline_s:
            raise RuntimeError(f"mlflow does not start: {log.read_text()[-500:]}")
        time.sleep(0.1)
