"""Five minutes of load from eight clients with an edit every 30 s: no failed request, memory flat.

    python -m bench.endurance [SECONDS]

Writes bench/out/endurance.json. Fails where a request failed, or memory or /dev/shm grew.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console

from bench.coins import variant, write
from bench.platform import ROOT, platform
from segserve import Client, SegserveError

if TYPE_CHECKING:
    from bench.platform import Running

CLIENTS: Final = 8
EDIT_EVERY_S: Final = 30.0
SAMPLE_EVERY_S: Final = 5.0
KEEP_PREVIOUS: Final = "8s"
PHOTO: Final = (ROOT / "examples/coins/coins.png").read_bytes()


@dataclass
class Tally:
    """What the clients saw."""

    revisions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


def load(url: str, transport: str, tally: Tally, stop: threading.Event) -> None:
    """Ask for the photograph's mask again and again, without retries, so that every failure shows."""
    with Client(url, transport=transport, retries=0) as client:
        while not stop.is_set():
            started_s = time.perf_counter()
            try:
                answer = client.segment(PHOTO, model="coins", encoding="rle")
            except SegserveError as error:
                tally.failures.append(f"{time.strftime('%H:%M:%S')} {transport} {type(error).__name__}: {error}")
                continue
            tally.latencies_ms.append(1000 * (time.perf_counter() - started_s))
            tally.revisions[answer.revision] += 1


def edited(folder: Path, number: int) -> Path:
    """Write the model with another smallest region: a new revision."""
    postprocess = [{"argmax": {}}, {"removeSmallRegions": {"minArea": 140 + number}}]
    return write(folder / "edited.yaml", variant(postprocess=postprocess, keepPrevious=KEEP_PREVIOUS))


def sample(running: Running) -> dict[str, float]:
    """Return memory and shared memory as they are now."""
    shm = [path.stat().st_size for path in Path("/dev/shm").glob("segserve-*") if path.exists()]
    groups = len(list((running.state / "groups").iterdir()))
    return {"memory_mib": running.memory_mib(), "shm_mib": sum(shm) / 2**20, "shm_regions": len(shm), "groups": groups}


def drive(running: Running, seconds: float) -> tuple[Tally, list[dict[str, float]], int]:
    """Load, edit and sample for some time."""
    tally, stop = Tally(), threading.Event()
    threads = [
        threading.Thread(target=load, args=(running.url, "grpc" if index % 2 else "http", tally, stop))
        for index in range(CLIENTS)
    ]
    for thread in threads:
        thread.start()
    samples, edits, started_s = [], 0, time.monotonic()
    try:
        while (passed_s := time.monotonic() - started_s) < seconds:
            if passed_s > (edits + 1) * EDIT_EVERY_S - EDIT_EVERY_S / 2:
                edits += 1
                running.segserve("apply", "-f", str(edited(running.state, edits)))
            samples.append({"second": round(passed_s), **sample(running)})
            time.sleep(SAMPLE_EVERY_S)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return tally, samples, edits


def at_rest(samples: list[dict[str, float]]) -> list[dict[str, float]]:
    """Return the samples with no candidate's group: what is flat must be compared like with like."""
    return [found for found in samples if found["groups"] == 1]


def main() -> int:
    """Run, write the result, and return the exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 300.0
    with tempfile.TemporaryDirectory() as folder, platform(edited(Path(folder), 0)) as running:
        tally, samples, edits = drive(running, seconds)
    resting = at_rest(samples)
    third = max(len(resting) // 3, 1)
    growth = {
        key: statistics.median(found[key] for found in resting[-third:])
        - statistics.median(found[key] for found in resting[:third])
        for key in ("memory_mib", "shm_mib", "shm_regions")
    }
    latencies = sorted(tally.latencies_ms)
    result = {
        "seconds": seconds,
        "clients": CLIENTS,
        "edits": edits,
        "requests": len(latencies),
        "failures": tally.failures,
        "revisions_that_answered": len(tally.revisions),
        "p50_ms": latencies[len(latencies) // 2],
        "p95_ms": latencies[len(latencies) * 95 // 100],
        "growth_at_rest": growth,
        "samples": samples,
    }
    out = ROOT / "bench/out/endurance.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1))
    flat = growth["memory_mib"] < 30 and growth["shm_regions"] <= 0
    Console().print({key: value for key, value in result.items() if key != "samples"})
    return 0 if not tally.failures and flat and len(tally.revisions) == edits + 1 else 1


if __name__ == "__main__":
    sys.exit(main())
