"""`make bench-client`: cost of the client, compared with raw libraries that do the same.

    python -m bench.client [--calls 400] [--rounds 5] [--at-once]

Each library calls the example's instance model through a real gateway, and a server that responds at once with a
recorded response, where all the time is the client's. Libraries alternate in one run, and all must get the same masks.
Writes bench/out/client.json and the tables of bench/out/client.md. With --at-once only the calls that are
answered at once, with a made-up response of 24 masks: prints them, and needs no Triton.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from bench.client import memory
from bench.client.canned import Recording, serve
from bench.client.decoding import answer, decoding, masks
from bench.client.importing import importing
from bench.client.peers import MODEL, REQUEST, Address
from bench.client.report import lines, write_tables
from bench.client.timing import many_at_once, one_by_one
from bench.platform import MODELS, platform
from bench.smoke import output, sized

AT_GATEWAY: Mapping[int, int] = sized({1: 24, 8: 64, 64: 128}, {1: 2, 8: 8, 64: 64})
AT_ONCE: Mapping[int, int] = sized({1: 320, 8: 640, 64: 640}, AT_GATEWAY)


def run(calls: int, rounds: int) -> dict[str, Any]:
    """Return all results."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder))
        with platform(MODELS) as running:
            gateway = Address(running.url, running.url)
            recording.record(running.url, REQUEST)
            calls_at_gateway = one_by_one(gateway, calls)
            rates_at_gateway = many_at_once(gateway, AT_GATEWAY, rounds)
        with serve(recording) as urls:
            canned = Address(*urls)
            return {
                "machine": machine(),
                "calls": {"gateway": calls_at_gateway, "at once": one_by_one(canned, 2 * calls)},
                "many": {
                    "at the gateway": rates_at_gateway,
                    "answered at once": many_at_once(canned, AT_ONCE, rounds),
                },
                "memory": memory.measure(canned.http),
                "decoding": decoding(rounds),
                "importing_ms": importing(rounds),
            }


def run_at_once(calls: int, rounds: int) -> dict[str, Any]:
    """Return the results that need no Triton."""
    with tempfile.TemporaryDirectory() as folder:
        recording = Recording(Path(folder))
        recording.make_up(MODEL, answer(masks(count=24, height=303, width=384, largest=40)))
        with serve(recording) as urls:
            canned = Address(*urls)
            return {
                "machine": machine(),
                "calls": one_by_one(canned, calls),
                "many": many_at_once(canned, AT_ONCE, rounds) if rounds else {},
            }


def machine() -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "load": [round(each, 1) for each in psutil.getloadavg()]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=sized(400, 20), help="calls of each library at the gateway")
    parser.add_argument(
        "--rounds", type=int, default=sized(5, 1), help="rounds of everything that is not a single call"
    )
    parser.add_argument("--at-once", action="store_true", help="only calls that are answered at once, without Triton")
    arguments = parser.parse_args()
    if arguments.at_once:
        print(json.dumps(run_at_once(arguments.calls, arguments.rounds), indent=2))
        return
    results = run(arguments.calls, arguments.rounds)
    print("\n".join(lines(results)))
    output("bench/out/client.json").write_text(json.dumps(results, indent=2) + "\n")
    write_tables(results)


if __name__ == "__main__":
    main()
