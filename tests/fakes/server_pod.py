"""What a server pod runs, as processes of this machine: the launcher with the embedded Triton, and the agent."""

from __future__ import annotations

import json
import subprocess
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import psutil

from bench.ports import free_ports
from fakes.agent_group import end
from fakes.waiting import HANG_S
from segserve_builder.agent.server import TritonServer
from segserve_builder.render.tritonserver import Ports, sweep_shm
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.local.triton import triton_command
from suite_run import shm_prefix


def status_of(url: str, method: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> int:
    """Return the status of an HTTP answer."""
    request = urllib.request.Request(url, data=body, method=method, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=HANG_S) as answer:
            return int(answer.status)
    except HTTPError as error:
        error.close()
        return error.code


@dataclass
class ServerPod:
    """One pod, its containers' environment as the operator and the image would set it."""

    folder: Path
    runtime: RuntimeEnvironment
    more: dict[str, str] = field(default_factory=dict)
    ports: list[int] = field(default_factory=lambda: free_ports(4))
    prefix: str = field(default_factory=shm_prefix)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, container: str) -> subprocess.Popen[bytes]:
        """Start the container `triton` or `agent`, again where it ran before."""
        with (self.folder / f"{container}.out").open("ab") as out:
            self.processes[container] = subprocess.Popen(
                [str(self.runtime.python), "-m", f"segserve_builder.cluster.{container}"],
                env=self._environment(),
                cwd=self.folder,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        return self.processes[container]

    def stop(self) -> None:
        for process in self.processes.values():
            end(process)
        sweep_shm(self.prefix)

    @property
    def word(self) -> str:
        return (self.folder / "secret").read_text()

    @property
    def triton(self) -> psutil.Process:
        return psutil.Process(int(json.loads((self.folder / "triton.process.json").read_text())["pid"]))

    def server(self, *, knows_the_word: bool = True) -> TritonServer:
        return TritonServer(self.ports[1], self.folder / "secret" if knows_the_word else None)

    def is_live(self) -> bool:
        try:
            return self.ask("GET", "/v2/health/live") == 200
        except OSError:
            return False

    def ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: bytes | None = None) -> int:
        """Return the status of the server's HTTP answer."""
        return status_of(f"http://127.0.0.1:{self.ports[0]}{path}", method, headers, body)

    def probe(self, path: str) -> tuple[int, str]:
        """Return the status and the text of the agent's answer; (0, why) where there is none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[3]}{path}", timeout=HANG_S) as answer:
                return int(answer.status), answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    def describe(self) -> str:
        tails = [path.read_text(errors="replace")[-3000:] for path in sorted(self.folder.glob("*.out"))]
        return "\n".join(tails)

    def _environment(self) -> dict[str, str]:
        http, grpc, metrics, agent = self.ports
        ports = Ports(http, grpc, metrics)
        started = triton_command(
            self.runtime, self.folder / "repository", ports=ports, shm_prefix=self.prefix, api_secret="unused"
        )
        told: dict[str, Any] = {
            "POD_NAME": "pod",
            "POD_NAMESPACE": "default",
            "POD_UID": "uid",
            "SEGSERVE_AGENT_PORT": agent,
            "SEGSERVE_BACKENDS": self.runtime.backends,
            "SEGSERVE_CACHE_FOLDER": self.folder / "cache",
            "SEGSERVE_EXIT_TIMEOUT_SECONDS": 5,
            "SEGSERVE_GROUP": "main-1",
            "SEGSERVE_POOL": "pool",
            "SEGSERVE_RUN_FOLDER": self.folder,
            "SEGSERVE_SHM_PREFIX": self.prefix,
            "SEGSERVE_TRITONSERVER": self.runtime.tritonserver,
            "SEGSERVE_TRITON_PORTS": f"{http},{grpc},{metrics}",
        }
        return {**started.environment, **{name: str(value) for name, value in told.items()}, **self.more}
