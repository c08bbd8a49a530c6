"""What copies of callers' requests for a comparator cost the callers.

    python -m bench.archive.gateway_mirror

Writes bench/out/gateway_mirror.json. A real Envoy in front of a stand-in for a server that answers at once, and one
caller who asks for a request after another, over HTTP, and the processor time that Envoy needs for each: without a
mirror; with a mirror of all requests, whose copies somebody takes and drops; with one of all requests and 5 per second,
as by default, which the real comparator asks two groups; and with a comparator that takes connections and reads
nothing. In turns, so that whatever else the machine does concerns all of them; the load average is written beside the
figures.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final, TypeAlias

import psutil

from bench.archive.gateway_guards import Caller, standing_server
from bench.platform import ROOT
from bench.ports import free_ports
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_listener import EnvoySettings
from segserve_operator.core.traffic import Endpoint, Mirror, Route, Share, TrafficPlan

OUT: Final = ROOT / "bench/out/gateway_mirror.json"
ROUNDS: Final = 7
SIZES: Final = {"40 kB": 40_000, "2 MB": 2_000_000}
CALLS: Final = {"40 kB": 1000, "2 MB": 200}
DEFAULT_PER_S: Final = 5.0
_ALL: Final = Mirror("main", "coins-b", 100, 1e6)
_PROCESSES: Final = multiprocessing.get_context("spawn")

Comparing: TypeAlias = Callable[[ComparatorFolder, int], AbstractContextManager[None]]


def _take(path: str) -> None:
    """Take copies at a socket, and answer each at once."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
                writer.write(b"HTTP/1.1 204 Taken\r\n\r\n")
        writer.close()

    async def run() -> None:
        await (await asyncio.start_unix_server(answer, path, limit=2**22)).serve_forever()

    asyncio.run(run())


@contextmanager
def _taken(folder: ComparatorFolder, _: int) -> Iterator[None]:
    process = _PROCESSES.Process(target=_take, args=(str(folder.copies),))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


@contextmanager
def _deaf(folder: ComparatorFolder, _: int) -> Iterator[None]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(folder.copies))
        listening.listen(512)
        yield


@contextmanager
def _compared(folder: ComparatorFolder, internal_port: int) -> Iterator[None]:
    asked = [str(folder.path), "--gateway", f"http://127.0.0.1:{internal_port}"]
    process = subprocess.Popen([sys.executable, "-m", "segserve_builder.comparator", *asked])
    try:
        yield
    finally:
        process.terminate()
        process.wait()


WAYS: Final[Mapping[str, tuple[Mirror | None, Comparing]]] = {
    "no mirror": (None, lambda *_: nullcontext()),
    "all copied, and dropped": (_ALL, _taken),
    "5 per second compared": (Mirror("main", "coins-b", 100, DEFAULT_PER_S), _compared),
    "all copied to one that never reads": (_ALL, _deaf),
}


@asynccontextmanager
async def _gateway(
    folder: Path, server: Endpoint, mirror: Mirror | None, comparing: Comparing
) -> AsyncIterator[tuple[int, psutil.Process]]:
    """Run Envoy, and what takes the copies, and yield Envoy's port and process."""
    port, internal_port = free_ports(2)
    traffic = EnvoyTraffic(folder, EnvoySettings(port=port, internal_port=internal_port))
    shares = (Share("main", "coins-a", 100, (server,)), Share("coins-b", "coins-b", 0, (server,)))
    traffic.prepare(TrafficPlan((Route("coins", shares, mirror=mirror),), (server,)))
    traffic.comparator.path.mkdir(exist_ok=True)
    process = subprocess.Popen(traffic.command(), stderr=subprocess.DEVNULL)
    try:
        with comparing(traffic.comparator, internal_port):
            while mirror is not None and not traffic.comparator.copies.exists():
                await asyncio.sleep(0.05)
            while (await traffic.observe()).plan is None:
                await asyncio.sleep(0.05)
            yield port, psutil.Process(process.pid)
    finally:
        process.kill()
        process.wait()


async def measure() -> dict[str, dict[str, dict[str, float]]]:
    """Return, by size of the body and by what is compared, the caller's times: medians of the rounds' quantiles."""
    took: dict[tuple[str, str], list[list[float]]] = {}
    used: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as parent, standing_server(0) as server:
        for turn in range(ROUNDS):
            for number, (name, (mirror, comparing)) in enumerate(WAYS.items()):
                async with _gateway(Path(parent) / f"{turn}-{number}", server, mirror, comparing) as (port, envoy):
                    for size, length in SIZES.items():
                        caller, body = Caller(port), bytes(length)
                        for _ in range(50):
                            await caller.call(body)
                        before_s = processor_s(envoy)
                        outcomes = [await caller.call(body) for _ in range(CALLS[size])]
                        used.setdefault((size, name), []).append((processor_s(envoy) - before_s) / CALLS[size])
                        assert {status for status, _ in outcomes} == {200}, name
                        took.setdefault((size, name), []).append([1e3 * spent_s for _, spent_s in outcomes])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (size, name), rounds in took.items():
        found.setdefault(size, {})[name] = summary(rounds, statistics.median(used[size, name]))
    return found


def summary(rounds_ms: list[list[float]], envoy_s: float) -> dict[str, float]:
    """Return the medians of the rounds' quantiles, and Envoy's processor time for a request."""
    quantiles = [statistics.quantiles(each, n=100) for each in rounds_ms]
    named = {f"p{at}_ms": round(statistics.median(each[at - 1] for each in quantiles), 3) for at in (50, 99)}
    return {**named, "envoy_us": round(1e6 * envoy_s)}


def processor_s(process: psutil.Process) -> float:
    """Return the processor time that a process has used."""
    times = process.cpu_times()
    return float(times.user + times.system)


def publish(measure: Callable[[], Coroutine[Any, Any, Any]], file: Path) -> None:
    """Measure, print, and write the file, with the load of the machine before and after."""
    before = os.getloadavg()[0]
    found = {"times": asyncio.run(measure()), "load_average": [round(before, 1), round(os.getloadavg()[0], 1)]}
    text = json.dumps(found, indent=2)
    print(text)
    file.write_text(text + "\n")


if __name__ == "__main__":
    publish(measure, OUT)
