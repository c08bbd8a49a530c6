"""Latency of sequential calls and throughput of concurrent ones, by alternating libraries."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from bench.client.peers import HTTPX, OURS, OURS_GRPC, TRITON, TRITON_GRPC, Address, check, many_calls, one_call
from bench.closed_loop import measure

PAIRS: Final = ((OURS, HTTPX), (OURS, TRITON), (OURS_GRPC, TRITON_GRPC))
IN_FLIGHT: Final = (1, 8, 64)


def one_by_one(address: Address, calls: int) -> dict[str, Any]:
    """Return the median milliseconds of a call by each library, and the ratios over alternating rounds."""
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
    }


def many_at_once(address: Address, images: Mapping[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Return images per second by library and number in flight, as medians of alternating rounds.

    `images` is the number of images in a round, by number in flight.
    """
    runs = many_calls(address)
    rates: dict[str, dict[str, float]] = {name: {} for name in runs}
    for in_flight, count in images.items():
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                if not run(count, in_flight):
                    raise SystemExit(f"{name} got nothing")
                if turn:  # the first round opens connections
                    seconds[name].append(time.perf_counter() - start)
        for name, each in seconds.items():
            rates[name][str(in_flight)] = round(count / float(np.median(each)), 1)
    return rates
