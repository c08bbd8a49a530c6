"""The real Envoy for many hostile tests at once, in front of one stand-in for Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from fakes.gateway import RunningGateway, gateway_of
from fakes.gateway_clients import LIMIT, served
from fakes.hostile_caller import INFER
from fakes.triton import StubTriton
from fakes.waiting import HANG_S
from segserve_operator.adapters.traffic.envoy_listener import CallerTimeouts

PATIENT = CallerTimeouts()


@dataclass(frozen=True)
class Guarded:
    """A gateway whose one model, `coins`, is answered by `triton`."""

    running: RunningGateway
    triton: StubTriton

    @property
    def port(self) -> int:
        """Port of the public listener."""
        return self.running.gateway.port

    @property
    def peak_mib(self) -> float:
        """The most memory that Envoy has ever held."""
        status = Path(f"/proc/{self.running.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024

    def serves(self) -> bool:
        """Tell whether somebody else's request is answered."""
        return httpx.post(f"{self.running.traffic.url}{INFER}", content=b"x", timeout=HANG_S).status_code == 200


@contextmanager
def guarded_gateway(
    folder: Path,
    *,
    max_request_bytes: int = LIMIT,
    heap_bytes: int = 2**31,
    waits: CallerTimeouts = PATIENT,
    **settings: Any,
) -> Iterator[Guarded]:
    """Run Envoy on a free port, in `folder`; `settings` are further fields of EnvoySettings."""
    own = {"max_request_bytes": max_request_bytes, "heap_bytes": heap_bytes, "timeouts": waits}
    running = gateway_of(folder, **own, **settings)

    async def start(triton: StubTriton) -> None:
        await running.start()
        await running.traffic.apply(served(triton))

    with StubTriton("old") as triton:
        try:
            asyncio.run(start(triton))
            yield Guarded(running, triton)
        finally:
            running.kill()
