"""Runs the real Envoy as a gateway for tests."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fakes.agent_group import free_ports
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_listener import Gateway

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@dataclass
class RunningGateway:
    """An Envoy process and the adapter that steers it."""

    folder: Path
    traffic: EnvoyTraffic
    gateway: Gateway
    process: subprocess.Popen[bytes] | None = None

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
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    async def start(self) -> None:
        """Start Envoy and wait until it follows a plan."""
        self._arguments = self.traffic.command()
        await self.resume()

    async def resume(self) -> None:
        """Start Envoy again, as a container is: with the same files, that nobody writes anew."""
        self.process = subprocess.Popen(self._arguments, stderr=subprocess.DEVNULL)
        with suppress(TimeoutError):
            await self._wait(5)

    async def _wait(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while (await self.traffic.observe()).plan is None:
                assert self.process.poll() is None, self.traffic.log.read_text()
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """End Envoy without notice."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)


@asynccontextmanager
async def running_gateway(
    folder: Path, *, timeout_s: float = 60.0, max_request_bytes: int = 2**21
) -> AsyncIterator[RunningGateway]:
    """Run Envoy on a free port, in `folder`."""
    port, internal_port = free_ports(2)
    gateway = Gateway(port=port, max_request_bytes=max_request_bytes, internal_port=internal_port)
    running = RunningGateway(folder, EnvoyTraffic(folder, gateway, timeout_s=timeout_s), gateway)
    try:
        await running.start()
        yield running
    finally:
        running.kill()
