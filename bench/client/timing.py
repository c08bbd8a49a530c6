"""Calls one by one and many at once: time of each, and images a second, by libraries that take turns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.client.peers import HTTPX, OURS, OURS_GRPC, TRITON, TRITON_GRPC, check, many_calls, one_call
from bench.closed_loop import measure

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.client.peers import Address

PAIRS: Final = ((OURS, HTTPX), (OURS, TRITON), (OURS_GRPC, TRITON_GRPC))
IN_FLIGHT: Final = (1, 8, 64)


def one_by_one(address: Address, calls: int) -> dict[str, Any]:
    """Return the median milliseconds of a call by each library, and the ratios of rounds that took turns."""
    targets = one_call(address)
    check(targets)
    per_round = 20
    measure(targets, concurrency=1, rounds=2, calls=per_round)
    found = measure(targets, concurrency=1, rounds=calls // per_round, calls=per_round)
    return {
        "ms": {name: round(each.percentile(50), 3) for name, each in found.items()},
        "ratios": {f"{ours} / {other}": round(found[ours].median_ratio(found[other]), 3) for ours, other in PAIRS},
    }


def many_at_once(address: Address, images: Mapping[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """Return images a second by library and by how many are in flight, the median of rounds that took turns.

    `images` is how many a round sends, by how many are in flight.
    """
    runs = many_calls(address)
    found: dict[str, dict[str, float]] = {name: {} for name in runs}
    for in_flight, count in images.items():
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for turn in range(rounds + 1):
            for name, run in runs.items():
                start = time.perf_counter()
                if not run(count, in_flight):
                    raise SystemExit(f"{name} got nothing")
                if turn:  # the first opens connections
                    seconds[name].append(time.perf_counter() - start)
        for name, each in seconds.items():
            found[name][str(in_flight)] = round(count / float(np.median(each)), 1)
    return found
