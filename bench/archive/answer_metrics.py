"""What metrics of answers cost: a model that counts its answers beside one that does not, on one server, in turns.

    python -m bench.archive.answer_metrics [--rounds 40]

Prints latencies, their differences and CPU times of the steps a request, and writes bench/out/answer_metrics.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.closed_loop import Latencies, measure
from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from bench.request import addresses, as_jpeg, image_call

BASES = {"semantic": "coins", "instances": "coins-instances"}
COUNTED, UNCOUNTED = "counted", "uncounted"
CALLS = 8
STEP = re.compile(r'model_name: "(segserve--(?:pre|post)--\w+)"')


def models() -> list[dict[str, Any]]:
    """Return both of the example's models, each with metrics and without."""
    return [
        variant(model=base, name=f"{kind}-{name}", metrics={"answers": name == COUNTED})
        for kind, base in BASES.items()
        for name in (COUNTED, UNCOUNTED)
    ]


def cpu_s(running: Running, model: str) -> float:
    """Return the CPU time so far of a model's first and last step, which it shares with no other model here."""
    config = (running.state / "groups/main/repository" / model / "config.pbtxt").read_text()
    total = 0.0
    for process in running.processes():
        if any(step in " ".join(process.cmdline()) for step in STEP.findall(config)):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def compare(running: Running, kind: str, rounds: int) -> dict[str, Any]:
    """Return latencies and CPU times of a kind of model with metrics and without."""
    _, grpc, _ = addresses(running)
    names = [f"{kind}-{name}" for name in (COUNTED, UNCOUNTED)]
    targets = {name: image_call(grpc, name, as_jpeg()) for name in names}
    if kind == "instances":
        first, second = (targets[name]().as_numpy("MASKS").tolist() for name in names)
        if first != second:
            raise SystemExit("the answers differ")
    measure(targets, concurrency=1, rounds=2, calls=CALLS)
    before = {name: cpu_s(running, name) for name in names}
    found = measure(targets, concurrency=1, rounds=rounds, calls=CALLS)
    cpu_ms = {name: 1000 * (cpu_s(running, name) - before[name]) / (rounds * CALLS) for name in names}
    on, off = (found[name] for name in names)
    return {
        COUNTED: on.to_json() | {"cpu_ms": round(cpu_ms[names[0]], 3)},
        UNCOUNTED: off.to_json() | {"cpu_ms": round(cpu_ms[names[1]], 3)},
        "p50_ratio": round(on.median_ratio(off), 4),
        "p50_difference_ms": round(_difference_ms(on, off), 3),
        "cpu_difference_ms": round(cpu_ms[names[0]] - cpu_ms[names[1]], 3),
    }


def _difference_ms(one: Latencies, other: Latencies) -> float:
    """Return the median over rounds of the difference of their medians."""
    return float(np.median(np.subtract(one.medians_ms, other.medians_ms)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help=f"turns of {CALLS} calls of each model")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder) / "models.yaml", *models())
        with platform(file) as running:
            results = {kind: compare(running, kind, rounds) for kind in BASES}
    for kind, found in results.items():
        print(f"{kind}: p50 {found['p50_difference_ms']:+.3f} ms ({found['p50_ratio']:.3f}x)", end=", ")
        print(f"CPU of pre and post {found['cpu_difference_ms']:+.3f} ms a request")
        for name in (COUNTED, UNCOUNTED):
            print(f"  {name}: {found[name]}")
    out = ROOT / "bench/out"
    out.mkdir(exist_ok=True)
    written = {"machine": {"cpus": os.cpu_count()}, "results": results}
    (out / "answer_metrics.json").write_text(json.dumps(written, indent=2) + "\n")


if __name__ == "__main__":
    main()
