"""Latency of sequential calls and throughput of concurrent ones, by alternating libraries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from bench.client.peers import HTTPX, OURS, OURS_GRPC, TRITON, TRITON_GRPC, Address, check, many_calls, one_call
from bench.closed_loop import measure

PAIRS: Final = ((OURS, HTTPX), (OURS, TRITON), (OURS_GRPC, TRITON_GRPC))


def one_by_one(address: Address, calls: int) -> dict[str, Any]:
    """Return the median milliseconds of a call by each library, and the ratios over alternating rounds.

    Beside the latencies also the CPU time of this process, which others on the machine disturb less.
    """
    targets = one_call(address)
    check(targets)
    per_round = 20
    measure(targets, concurrency=1, rounds=2, calls=per_round)
    latencies = measure(targets, concurrency=1, rounds=calls // per_round, calls=per_round)
    return {
        "ms": {name: round(each.percentile(50), 3) for name, each in latencies.items()},
        "ratios": {
            f"{ours} / {other}": round(latencies[ours].median_ratio(latencies[other]), 3) for ours, other in PAIRS
        },
        "cpu_ms": {name: round(float(np.median(each.cpu_ms)), 3) for name, each in latencies.items()},
        "cpu_ratios": {
            f"{ours} / {other}": round(latencies[ours].cpu_ratio(latencies[other]), 3) for ours, other in PAIRS
        },
    }


def many_at_once(address: Address, images: Mapping[int, int], rounds: int) -> dict[str, Any]:
    """Return images per second and CPU time of this process for an image, as medians of alternating rounds.

    `images` is the number of images in a round, by number in flight. All numbers in flight take turns in each round:
    measured one after the other, they would meet different loads of the machine. The ratios compare the most in flight
    with the number before.
    """
    runs = many_calls(address)
    seconds: dict[tuple[str, int], list[float]] = {(name, in_flight): [] for name in runs for in_flight in images}
    cpu_s: dict[tuple[str, int], list[float]] = {key: [] for key in seconds}
    for turn in range(rounds + 1):
        for (name, in_flight), kept in seconds.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            if not runs[name](images[in_flight], in_flight):
                raise SystemExit(f"{name} got nothing")
            if turn:  # the first round opens connections
                kept.append((time.perf_counter() - start) / images[in_flight])
                cpu_s[name, in_flight].append((time.process_time() - cpu_start) / images[in_flight])
    *_, fewer, most = images
    return {
        "rates": {name: {str(n): round(1 / float(np.median(seconds[name, n])), 1) for n in images} for name in runs},
        "cpu_ms": {name: {str(n): round(1000 * float(np.median(cpu_s[name, n])), 3) for n in images} for name in runs},
        f"rate at {most} / {fewer}": {
            name: round(float(np.median(np.divide(seconds[name, fewer], seconds[name, most]))), 3) for name in runs
        },
    }
