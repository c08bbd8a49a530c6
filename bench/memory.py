"""Memory and load time of 1 and of 20 models on one server.

    python -m bench.memory

Writes bench/out/memory.json. Every model is the example's U-Net under its own name: in a process of its own, and then
with steps of its own, as a model has whose network is exposed. Memory is the proportional set size (PSS): memory that
processes share counts once.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from bench.coins import variant, write
from bench.platform import ROOT, platform
from bench.smoke import output, sized
from segserve import Client

COUNTS: Final = sized((1, 20), (1, 2))
EXPOSED: Final = {"process": [], "steps": ["network"]}
"""What a model exposes, by what it has of its own."""
PHOTO: Final = (ROOT / "examples/coins/coins.png").read_bytes()


def measure(own: str, count: int) -> dict[str, object]:
    """Serve `count` models, send each one request, and return the memory and the time until all were ready."""
    with tempfile.TemporaryDirectory() as folder:
        models = [variant(name=f"coins-{number}", expose=EXPOSED[own]) for number in range(count)]
        path = write(Path(folder) / "models.yaml", *models)
        with platform() as running:
            started_s = time.monotonic()
            running.segserve("apply", "-f", str(path))
            running.segserve("wait", "--timeout", "300s", *(f"coins-{number}" for number in range(count)))
            ready_s = time.monotonic() - started_s
            with Client(running.url) as client:
                areas = {client.segment(PHOTO, model=f"coins-{number}").areas["coin"] for number in range(count)}
            if len(areas) != 1:
                raise AssertionError(f"equal models returned different areas: {areas}")
            kinds = running.memory_by_kind_mib()
            return {
                "own": own,
                "models": count,
                "ready_s": round(ready_s, 2),
                "mib": round(sum(kinds.values())),
                "by_kind_mib": kinds,
            }


def main() -> int:
    """Measure, write the results, and print them."""
    rows = [measure(own, count) for own in EXPOSED for count in COUNTS]
    output("bench/out/memory.json").write_text(json.dumps(rows, indent=1))
    table = Table("of its own", "models", "apply to ready, s", "memory, MiB", "of it", title="Models on one server")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
