"""Runs the real Envoy as a gateway for tests."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.ports import free_ports
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings


@dataclass
class EnvoyProcess:
    """An Envoy that a test has started."""

    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def kill(self) -> None:
        """End Envoy without notice."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(HANG_S)


@dataclass
class RunningGateway(EnvoyProcess):
    """An Envoy process and the adapter that steers it."""

    folder: Path
    traffic: EnvoyTraffic
    gateway: EnvoySettings

    @property
    def authority(self) -> str:
        """Host and port."""
        return f"{self.gateway.host}:{self.gateway.port}"

    @property
    def internal(self) -> str:
        """Host and port of the internal listener."""
        return f"{self.gateway.host}:{self.gateway.internal_port}"

    @property
    def rss_mib(self) -> float:
        """Resident memory of Envoy."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    async def start(self) -> None:
        """Start Envoy and wait until it follows a plan."""
        self._arguments = self.traffic.command()
        await self.resume()

    async def resume(self) -> None:
        """Start Envoy again, as a container is: with the same files, that nobody writes anew."""
        self.process = process = subprocess.Popen(self._arguments, stderr=subprocess.DEVNULL)

        async def follows() -> bool:
            assert process.poll() is None, self.traffic.log.read_text()
            return (await self.traffic.observe()).plan is not None

        await eventually(follows, "Envoy follows a plan")

    async def in_flight(self, wanted: dict[tuple[str, str], int]) -> None:
        """Return once so many requests are under way, by model and group."""

        async def reached() -> bool:
            return (await self.traffic.observe()).active == wanted

        await eventually(reached, f"in flight are {wanted}")

    async def latencies_are_merged(self) -> None:
        """Return once Envoy's threads have put together the latencies of all that has ended before this call.

        They do so at every flush of statistics, and the uptime is written after it. The first flush that is seen may
        have begun before this call, the second has not.
        """
        for _ in range(2):
            former = await self._uptime()

            async def flushed(former: str = former) -> bool:
                return await self._uptime() != former

            await eventually(flushed, "a flush of Envoy's statistics")

    async def metrics(self) -> list[str]:
        """Return the lines of Envoy's metrics."""
        return (await self.traffic.metrics()).decode().splitlines()

    async def _uptime(self) -> str:
        """Return the line of Envoy's uptime at its last flush."""
        return next(line for line in await self.metrics() if line.startswith("envoy_server_uptime"))


def gateway_of(folder: Path, *, timeout_s: float = 60.0, **settings: Any) -> RunningGateway:
    """Return a gateway in `folder` that does not run yet, on free ports; `settings` are fields of EnvoySettings."""
    port, internal_port = free_ports(2)
    plain = {"host": "127.0.0.1", "max_request_bytes": 2**21, "access_log_file": folder / "access.log"}
    gateway = EnvoySettings(port=port, internal_port=internal_port, **(plain | settings))
    return RunningGateway(folder, EnvoyTraffic(folder, gateway, timeout_s=timeout_s), gateway)


@asynccontextmanager
async def running_gateway(folder: Path, **options: Any) -> AsyncIterator[RunningGateway]:
    """Run a gateway; the options are those of `gateway_of`."""
    running = gateway_of(folder, **options)
    try:
        await running.start()
        yield running
    finally:
        running.kill()
