"""Memory of a further model on one server, with processes of its own and with shared ones.

    python -m bench.density [--counts 1 20 100] [--own 1 20]

Writes bench/out/density.json. Each model is the coins' U-Net under a name of its own and with weights of its own, so
that no network is shared. Memory is the proportional set size (PSS), measured once each model has answered; requests
are sent to all models in turn, and compared with those to the first model alone, in the same run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import numpy_helper
from rich.console import Console
from rich.table import Table

from bench.coins import variant, write
from bench.platform import MODELS, ROOT, Running, platform
from bench.smoke import output, sized
from segserve import Client

PHOTO: Final = (ROOT / "examples/coins/coins.png").read_bytes()
OUT: Final = output("bench/out/density.json")
ROUNDS: Final = sized(100, 2)
AT_ONCE: Final = 25
"""Models that are applied together: what waits for its proof must not wait longer than a command does."""


def models(folder: Path, count: int, processes: str) -> list[dict[str, Any]]:
    """Return models whose networks differ by one part in 100,000."""
    network = onnx.load(MODELS.parent / "coins-unet.onnx")
    weights = network.graph.initializer[0]
    values = numpy_helper.to_array(weights)
    found = []
    for number in range(count):
        changed = (values * np.float32(1 + number / 1e5)).astype(np.float32)
        network.graph.initializer[0].CopyFrom(numpy_helper.from_array(changed, weights.name))
        data = network.SerializeToString()
        path = folder / f"{number:04}.onnx"
        path.write_bytes(data)
        model = variant(name=f"coins-{number}", expose=[], golden=None, processes=processes)
        model["spec"]["artifact"] |= {"uri": path.as_uri(), "sha256": hashlib.sha256(data).hexdigest()}
        found.append(model)
    return found


def measure(count: int, processes: str) -> dict[str, object]:
    """Serve `count` models, ask each, and return memory, times of requests and the time of one more model."""
    with tempfile.TemporaryDirectory() as temporary, platform() as running:
        folder = Path(temporary)
        known = models(folder, count + 1, processes)
        for first in range(0, count, AT_ONCE):
            _apply(running, folder, known[first : min(first + AT_ONCE, count)])
        names = [model["metadata"]["name"] for model in known[:count]]
        with Client(running.url, timeout_s=60) as client:
            revisions = {client.segment(PHOTO, model=name).revision for name in names}
            if len(revisions) != count:
                raise AssertionError(f"{count} models answered with {len(revisions)} revisions")
            kinds = running.memory_by_kind_mib()
            alone, spread = [], []
            for number in range(ROUNDS):
                alone.append(_ask(client, names[0]))
                spread.append(_ask(client, names[number % count]))
        one_more_s = _apply(running, folder, known[count:])
        return {
            "processes": processes,
            "models": count,
            "mib": round(sum(kinds.values())),
            "by_kind_mib": kinds,
            "one_more_s": round(one_more_s, 2),
            "first_p50_ms": round(statistics.median(alone), 2),
            "all_in_turn_p50_ms": round(statistics.median(spread), 2),
        }


def _apply(running: Running, folder: Path, given: list[dict[str, Any]]) -> float:
    path = write(folder / "models.yaml", *given)
    started_s = time.monotonic()
    running.segserve("apply", "-f", str(path))
    running.segserve("wait", "--timeout", "600s", *(model["metadata"]["name"] for model in given))
    return time.monotonic() - started_s


def _ask(client: Client, model: str) -> float:
    started_s = time.perf_counter()
    client.segment(PHOTO, model=model)
    return 1000 * (time.perf_counter() - started_s)


def main() -> int:
    """Measure, write the results, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--counts", type=int, nargs="*", default=sized([1, 20, 100], [1, 2]), help="numbers of models that share"
    )
    parser.add_argument(
        "--own", type=int, nargs="*", default=sized([1, 20], [1, 2]), help="numbers of models that do not"
    )
    given = parser.parse_args()
    rows = []
    table = Table("processes", "models", "MiB", "each further one, MiB", "one more, s", "p50 of the first, of all, ms")
    for processes, counts in (("own", given.own), ("shared", given.counts)):
        first: dict[str, Any] | None = None
        for count in counts:
            row: dict[str, Any] = measure(count, processes)
            first = first or row
            further = count - first["models"]
            each = (row["mib"] - first["mib"]) / further if further else None
            rows.append(row | {"further_mib": None if each is None else round(each, 2)})
            OUT.write_text(json.dumps(rows, indent=1) + "\n")
            times = f"{row['first_p50_ms']}, {row['all_in_turn_p50_ms']}"
            table.add_row(
                processes, str(count), str(row["mib"]), f"{each:.1f}" if each else "", str(row["one_more_s"]), times
            )
            Console().print(json.dumps(rows[-1]))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
