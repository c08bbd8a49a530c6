"""Where the time of many requests in flight goes: rates, processor time and batches with 8 and with 64 in flight.

    python -m bench.archive.in_flight [--rounds 6]

Both numbers take turns in each round, with segserve's client and with tritonclient: measured one after the other, they
would meet different loads of the machine. Prints the figures and writes bench/out/in_flight.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx
import numpy as np
import psutil

from bench.client.peers import OURS, Address, threads_call, tritonclient_tasks_call
from bench.platform import KINDS, MODELS, ROOT, Running, platform

OUT: Final = ROOT / "bench/out/in_flight.json"
IN_FLIGHT: Final = (8, 64)
IMAGES: Final = 128


def cpu_s(running: Running) -> dict[str, float]:
    """Return the processor time that the platform's processes have taken until now, by kind."""
    taken: dict[str, float] = {}
    for process in running.processes():
        try:
            words, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        kind = next((kind for kind, part in KINDS.items() if part in words), "other")
        taken[kind] = taken.get(kind, 0.0) + times.user + times.system
    return taken


def network_counts(url: str) -> tuple[int, int, float]:
    """Return how many images and batches Triton's network steps have run until now, and for how many seconds."""
    stats = httpx.get(f"{url}/v2/models/stats", trust_env=False).raise_for_status().json()["model_stats"]
    networks = [each for each in stats if each["name"].startswith(KINDS["network"])]
    # Each batch counts once for this time, whereas those of `inference_stats` count it for every request in it.
    busy_ns = sum(size["compute_infer"]["ns"] for each in networks for size in each["batch_stats"])
    return (
        sum(each["inference_count"] for each in networks),
        sum(each["execution_count"] for each in networks),
        busy_ns / 1e9,
    )


def measure(running: Running, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each kind of caller and number in flight, with medians over the rounds."""
    ports = json.loads((running.state / "groups/main/ports.json").read_text())
    triton = f"http://127.0.0.1:{ports['http']}"
    gateway = Address(running.url, running.url)
    calls = {OURS: threads_call(gateway), "tritonclient, asyncio": tritonclient_tasks_call(gateway)}
    rows: dict[tuple[str, int], list[dict[str, float]]] = {(name, each): [] for name in calls for each in IN_FLIGHT}
    for turn in range(rounds + 1):
        for (name, in_flight), kept in rows.items():
            before, counted = cpu_s(running), network_counts(triton)
            start, own = time.perf_counter(), time.process_time()
            calls[name](IMAGES, in_flight)
            wall_s, own_s = time.perf_counter() - start, time.process_time() - own
            images, batches, busy_s = np.subtract(network_counts(triton), counted)
            after = cpu_s(running)
            if turn:  # the first round opens connections
                kinds = {kind: 1000 * (after[kind] - before.get(kind, 0.0)) / IMAGES for kind in after}
                shares = {"batch": images / batches, "network busy": busy_s / wall_s}
                kept.append({"images/s": IMAGES / wall_s, "caller": 1000 * own_s / IMAGES, **shares, **kinds})
    for (name, in_flight), kept in rows.items():
        medians = {key: round(float(np.median([each.get(key, 0.0) for each in kept])), 2) for key in kept[0]}
        slowed = [
            row["images/s"] / other["images/s"] for row, other in zip(kept, rows[name, IN_FLIGHT[0]], strict=True)
        ]
        yield {"caller": name, "in_flight": in_flight, "rate": round(float(np.median(slowed)), 2), "medians": medians}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with platform(MODELS) as running:
        rows = list(measure(running, arguments.rounds))
    for row in rows:
        print(json.dumps(row))
    machine = {"cpus": os.cpu_count(), "load": [round(each, 1) for each in psutil.getloadavg()]}
    OUT.write_text(json.dumps({"machine": machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
