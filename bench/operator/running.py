"""The processes of a measurement and what is asked of them: the operator, the simulated cluster, users' writes."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import AbstractAsyncContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from bench.operator.api_server import OPERATOR, OTHERS, ApiServer, call
from bench.operator.watching import until_answered
from bench.platform import ROOT
from bench.ports import free_port
from segserve_common.api_errors import ConflictError
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import MODELS, POOLS, Json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

AT_ONCE: Final = 32
LEASES: Final = "bench-leases"
_READY: Final = re.compile(r'^segserve_models\{.*ready="(\w+)"\} ([0-9.]+)$', re.MULTILINE)
_PASSES: Final = re.compile(r'^segserve_reconcile_passes_total\{outcome="(\w+)"\} ([0-9.]+)$', re.MULTILINE)
_WEIGHTS: Final = re.compile(r"^segserve_rollout_weight\{.*\} ([0-9.]+)$", re.MULTILINE)
_LONG_S: Final = 7200.0


def namespace_of(number: int) -> str:
    """Return the namespace of a pool: each has its own, as teams do."""
    return f"bench-{number}"


def model_name(number: int) -> str:
    """Return the name of a model."""
    return f"model-{number:05}"


def pool_manifest(namespace: str) -> Json:
    """Return a pool with one server and one gateway."""
    metadata = {"name": "default", "namespace": namespace}
    return {
        "apiVersion": POOLS.api_version,
        "kind": POOLS.name,
        "metadata": metadata,
        "spec": {"gateway": {"replicas": 1, "workers": 1}},
    }


def model_manifest(namespace: str, number: int) -> Json:
    """Return a model as long as those of the examples."""
    return {
        "apiVersion": MODELS.api_version,
        "kind": MODELS.name,
        "metadata": {"name": model_name(number), "namespace": namespace},
        "spec": {
            "artifact": artifact(number, 0),
            "family": "semantic-logits",
            "classes": [{"id": each, "name": f"class {each}"} for each in range(4)],
            "keepPrevious": "0s",
            "preprocess": [{"decode": {}}, {"resize": {"mode": "letterbox", "size": 384}}],
            "postprocess": [{"argmax": {}}, {"removeSmallRegions": {"minArea": 64}}],
            "runtime": {"maxBatchSize": 8},
            "golden": {"uri": f"golden/{model_name(number)}/", "sha256": artifact(number, -1)["sha256"]},
        },
    }


def edited(number: int) -> Json:
    """Return a patch of a model that starts a rollout: another network, watched for as long as a measurement takes."""
    policy = {"steps": [{"weight": 5}], "gates": [{"gate": "errorRate"}], "minRequests": 10_000_000}
    return {"spec": {"artifact": artifact(number, 1), "rollout": policy}}


def artifact(number: int, edition: int) -> Json:
    """Return where a model's network lies; each edition is another network."""
    digest = hashlib.sha256(f"{number} {edition}".encode()).hexdigest()
    return {"uri": f"https://example.org/networks/{digest[:12]}.onnx", "sha256": digest}


@dataclass(frozen=True, slots=True)
class OperatorProcess:
    """A running operator."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def metrics(self) -> str:
        """Return what it counts; empty while it does not answer."""
        url = f"http://127.0.0.1:{self.port}/metrics"
        with suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:
            return str(answer.read().decode())
        if self.process.poll() is not None:
            raise RuntimeError(f"the operator ended: {self.log.read_text()[-2000:]}")
        return ""

    def ready_models(self) -> int:
        """Return how many models are Ready."""
        return sum(int(float(count)) for ready, count in _READY.findall(self.metrics()) if ready == "True")

    def rolling(self) -> int:
        """Return how many candidates have a weight in a rollout."""
        return sum(float(weight) > 0 for weight in _WEIGHTS.findall(self.metrics()))

    def passes(self) -> int:
        """Return how many passes it has made; those that failed do not count."""
        return sum(int(float(count)) for outcome, count in _PASSES.findall(self.metrics()) if outcome == "ok")

    def peak_mib(self) -> float:
        """Return the most memory that was resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None, "the kernel tells it of every process"
        return int(found[1]) / 1024

    def cpu_s(self) -> float:
        """Return the CPU time that it has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)


@contextmanager
def operator(server: ApiServer) -> Iterator[OperatorProcess]:
    """Run an operator for all namespaces; its Lease is let go at the end, so that the next one begins at once."""
    port, log = free_port(), server.folder / "operator.log"
    environment = os.environ | {
        "KUBECONFIG": str(server.kubeconfig(OPERATOR)),
        "SEGSERVE_NAMESPACES": "",
        "SEGSERVE_LEASE_NAMESPACE": LEASES,
        "SEGSERVE_HEALTH_PORT": str(port),
        "POD_NAME": "bench",
    }
    with log.open("ab") as said:
        command = [sys.executable, "-m", "segserve_operator"]
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        yield OperatorProcess(process, port, log)
    finally:
        _end(process)


@contextmanager
def agents(server: ApiServer, real_gateways: str = "", *, counts: bool = False) -> Iterator[None]:
    """Run the simulated cluster; with `counts` its gateways count a load."""
    arguments = [*(["--real-gateways", real_gateways] if real_gateways else []), *(["--counts"] if counts else [])]
    command = [sys.executable, "-m", "bench.operator.agents", *arguments]
    with (server.folder / "agents.log").open("ab") as said:
        environment = os.environ | {"KUBECONFIG": str(server.kubeconfig(OTHERS))}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=said, stderr=said)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def user_api(server: ApiServer) -> AbstractAsyncContextManager[AsyncKubeClient]:
    """Return the API as users have it: these requests are not counted."""
    return AsyncKubeClient.connect(server.kubeconfig(OTHERS))


def make_namespaces(server: ApiServer, count: int) -> None:
    """Make the namespaces of pools, and that of the Lease, where they are missing."""
    for name in (LEASES, *map(namespace_of, range(count))):
        metadata = {"name": name}
        with suppress(FileExistsError):
            call(server, "POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


async def apply_all(server: ApiServer, manifests: list[Json]) -> None:
    """Create pools and models that are missing, as many at a time as kubectl's users do together."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def create(api: AsyncKubeClient, manifest: Json) -> None:
        kind = POOLS if manifest["kind"] == POOLS.name else MODELS
        async with turns:
            with suppress(ConflictError):
                await until_answered(partial(api.create, kind, manifest["metadata"]["namespace"], manifest))

    async with user_api(server) as api:
        await asyncio.gather(*(create(api, manifest) for manifest in manifests))


def wait_until(what: str, holds: Callable[[], Any], pause_s: float, patience_s: float = _LONG_S) -> None:
    """Wait until something holds; RuntimeError where it does not in time."""
    deadline_s = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not within {patience_s:.0f} s: {what}")
        time.sleep(pause_s)
