"""Measures the operator; all parts by default.

    PYTHONPATH=tests python -m bench.operator [--sizes 1,100,1000] [--go-on] [PART ...]

The parts are applying, weights, many, fleet and looks.

Writes bench/out/operator.json and the table of bench/out/operator.md. Only what is named is measured again; the
rest of the file stays.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil

from bench.operator.looks import looks
from bench.operator.report import WEIGHT_GOALS_MS, write_table
from bench.operator.scenarios import applying, fleet, many
from bench.operator.weights import weights
from bench.smoke import output, sized
from cluster.node import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OUT: Final = output("bench/out/operator.json")
A_POOL: Final = {1: 1, 100: 100}
LARGE_POOL: Final = 1000
REST_AT: Final = sized(1000, 1)
"""The size of which an hour at rest is shown."""

FLEET_S: Final = sized(60.0, 5.0)
FLEET: Final = sized((10_000, 50, 8), (4, 2, 1))
"""Models, models of a pool, and how many of these are rolled out at once."""
KEPT: Final = Path("/dev/shm/segserve-bench-fleet")
"""The cluster's objects while a fleet is measured: in memory, since it is the operator that is measured."""
SIZES: Final = sized((1, 100, 1000, 10_000), (1,))


def main(arguments: list[str]) -> None:
    """Measure, print, and write the files."""
    parser = argparse.ArgumentParser(prog="python -m bench.operator", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of {', '.join(PARTS)}; all by default")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, metavar="N,N", help="how many models there are")
    parser.add_argument("--fleet", type=_sizes, default=FLEET, metavar="N,N,N", help="models, of a pool, rolled out")
    parser.add_argument(
        "--go-on", action="store_true", help="continue with a fleet whose measurement was ended, instead of a new one"
    )
    parser.add_argument(
        "--rest-seconds", type=float, default=sized(130.0, 5.0), help="how long the operator is watched at rest"
    )
    told = parser.parse_args(arguments)
    if unknown := set(told.parts) - PARTS.keys():
        parser.error(f"unknown parts {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))  # servers are ended in any case
    found: dict[str, Any] = json.loads(OUT.read_text()) if OUT.is_file() else {}
    if not told.parts or "machine" not in found:
        found["machine"] = _machine()
    for part in told.parts or PARTS:
        began_s = time.monotonic()
        PARTS[part](found, told)
        print(f"{part}: {time.monotonic() - began_s:.0f} s", flush=True)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    write_table(found)


def _applying(found: dict[str, Any], told: argparse.Namespace) -> None:
    found["applying"] = _shown(applying())


def _many(found: dict[str, Any], told: argparse.Namespace) -> None:
    known: dict[str, Any] = found.setdefault("many", {})
    for models in told.sizes:
        rest_s = told.rest_seconds if models == REST_AT else 0.0
        row = _shown(many(models, A_POOL.get(models, LARGE_POOL), rest_s))
        if "rest_hour" in row:
            found["rest_hour"] = {"models": models, **row.pop("rest_hour")}
        known[str(models)] = row


def _weights(found: dict[str, Any], told: argparse.Namespace) -> None:
    known: dict[str, Any] = found.setdefault("weights", {})
    for models in (size for size in told.sizes if str(size) in WEIGHT_GOALS_MS):
        known[str(models)] = _shown(weights(models))


def _fleet(found: dict[str, Any], told: argparse.Namespace) -> None:
    models, a_pool, rollouts = told.fleet
    known = found.get("fleet", {}) if told.go_on else {}
    if known and (known["models"], known["rollouts"]) != (models, models // a_pool * rollouts):
        raise SystemExit(f"the fleet to go on with has {known['models']} models and {known['rollouts']} rollouts")
    if not told.go_on:
        shutil.rmtree(KEPT, ignore_errors=True)
    for measured in fleet(models, a_pool, rollouts, FLEET_S, KEPT, known):
        found["fleet"] = _shown(measured)
        OUT.write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(KEPT)


def _looks(found: dict[str, Any], told: argparse.Namespace) -> None:
    models, a_pool, rollouts = told.fleet
    load = round(os.getloadavg()[0], 1)
    found["looks"] = _shown(looks(models // a_pool * rollouts, rollouts, a_pool) | {"load": load})


PARTS: Final[Mapping[str, Callable[[dict[str, Any], argparse.Namespace], None]]] = {
    "applying": _applying,
    "weights": _weights,
    "many": _many,
    "fleet": _fleet,
    "looks": _looks,
}


def _shown(result: dict[str, Any]) -> dict[str, Any]:
    print(json.dumps(result), flush=True)
    return result


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _machine() -> dict[str, Any]:
    """Return what the figures depend on; a high load at the start says that others were at work."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "api_server": f"kube-apiserver {VERSION}, etcd in memory",
        "load_at_start": round(os.getloadavg()[0], 1),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
