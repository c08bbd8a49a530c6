"""Memory growth of a client's process: over thousands of calls, and at peak while it sends hundreds of large images.

python -m bench.client.memory URL   (in a separate process; prints JSON)
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import psutil

from bench.client.peers import MODEL, PHOTO
from bench.smoke import sized
from segserve import AsyncClient, Client

CALLS: Final = sized(2000, 20)
IMAGES: Final = sized(500, 16)
IN_FLIGHT: Final = 8
LARGE: Final = (1080, 1920, 3)


def rss_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def over_calls(client: Client) -> float:
    """Return the growth in MiB over `CALLS` calls, after as many calls to warm up."""
    for _ in range(CALLS):
        client.segment(PHOTO, model=MODEL)
    before = rss_mib()
    for _ in range(CALLS):
        client.segment(PHOTO, model=MODEL)
    return rss_mib() - before


def frames() -> Iterator[np.ndarray]:
    for number in range(IMAGES):
        yield np.full(LARGE, number % 256, np.uint8)


def peak(run: Callable[[], Any]) -> float:
    """Return the peak growth of the process in MiB during `run`."""
    before = most = rss_mib()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.005):
            most = max(most, rss_mib())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        run()
    finally:
        done.set()
        watching.join()
    return most - before


async def by_tasks(url: str) -> None:
    async with AsyncClient(url) as client:
        async for _ in client.segment_many(frames(), model=MODEL, in_flight=IN_FLIGHT):
            pass


def by_threads(client: Client) -> None:
    for _ in client.segment_many(frames(), model=MODEL, in_flight=IN_FLIGHT):
        pass


def measure(url: str) -> dict[str, Any]:
    """Return the figures, measured in a separate process."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.client.memory", url], capture_output=True, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def main(url: str) -> None:
    with Client(url) as client:
        growth = over_calls(client)
        threads = peak(lambda: by_threads(client))
    tasks = peak(lambda: asyncio.run(by_tasks(url)))
    figures = {"calls": growth, "threads": threads, "tasks": tasks}
    print(
        json.dumps(
            {
                "calls": CALLS,
                "images": IMAGES,
                "in_flight": IN_FLIGHT,
                "image_mib": round(np.prod(LARGE) / 2**20, 1),
                "grown_mib": {name: round(mib, 1) for name, mib in figures.items()},
            }
        )
    )


if __name__ == "__main__":
    main(sys.argv[1])
