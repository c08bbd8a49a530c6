"""Five minutes of load from eight clients with an edit every 30 s: no request fails, memory does not grow.

    python -m bench.endurance [SECONDS]

Writes bench/out/endurance.json. Fails if a request failed, or if memory or /dev/shm grew.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from bench.coins import variant, write
from bench.platform import ROOT, Running, platform
from bench.smoke import is_smoke, output, sized
from segserve import Client, SegserveError

CLIENTS: Final = sized(8, 2)
EDIT_EVERY_S: Final = sized(30.0, 60.0)
SAMPLE_EVERY_S: Final = sized(5.0, 2.0)
KEEP_PREVIOUS: Final = "8s"
FLAT_MIB: Final = 16.0
PHOTO: Final = (ROOT / "examples/coins/coins.png").read_bytes()


@dataclass
class LoadResults:
    """Responses and failures of all clients."""

    revisions: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


def load(url: str, transport: str, results: LoadResults, stop: threading.Event) -> None:
    """Segment the photograph repeatedly, without retries, so that every failure is visible."""
    with Client(url, transport=transport, retries=0) as client:
        while not stop.is_set():
            started_s = time.perf_counter()
            try:
                answer = client.segment(PHOTO, model="coins", encoding="rle")
            except SegserveError as error:
                results.failures.append(f"{time.strftime('%H:%M:%S')} {transport} {type(error).__name__}: {error}")
                continue
            results.latencies_ms.append(1000 * (time.perf_counter() - started_s))
            results.revisions[answer.revision] += 1


def edited(folder: Path, number: int) -> Path:
    """Write the model with another minimum area of regions, which makes a new revision."""
    postprocess = [{"argmax": {}}, {"removeSmallRegions": {"minArea": 140 + number}}]
    return write(folder / "edited.yaml", variant(postprocess=postprocess, keepPrevious=KEEP_PREVIOUS))


def sample(running: Running) -> dict[str, Any]:
    """Return the current memory and shared memory."""
    shm = [path.stat().st_size for path in Path("/dev/shm").glob("segserve-*") if path.exists()]
    memory = running.memory_by_kind_mib()
    return {
        "groups": len(list((running.state / "groups").iterdir())),
        "memory_mib": round(sum(memory.values()), 1),
        "by_kind_mib": memory,
        "shm_mib": round(sum(shm) / 2**20, 1),
        "shm_regions": len(shm),
    }


def drive(running: Running, seconds: float) -> tuple[LoadResults, list[dict[str, Any]], int]:
    """Generate load, edit the model and take samples for `seconds`."""
    results, stop = LoadResults(), threading.Event()
    threads = [
        threading.Thread(target=load, args=(running.url, "grpc" if index % 2 else "http", results, stop))
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
    return results, samples, edits


def growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Return the growth of memory and shared memory over the last two thirds of the samples.

    Only samples without a candidate's group are comparable. The first third is left out, because ONNX Runtime's memory
    grows in one step with the first batch of the maximum size.
    """
    resting = [each for each in samples[len(samples) // 3 :] if each["groups"] == 1]
    before, after = resting[0], resting[-1]
    grown = {key: round(after[key] - before[key], 1) for key in ("memory_mib", "shm_mib", "shm_regions")}
    kinds = {kind: round(size - before["by_kind_mib"][kind], 1) for kind, size in after["by_kind_mib"].items()}
    return grown | {"by_kind_mib": kinds}


def summary(results: LoadResults, samples: list[dict[str, Any]], edits: int, seconds: float) -> dict[str, Any]:
    """Return the results as JSON."""
    latencies = sorted(results.latencies_ms)
    return {
        "seconds": seconds,
        "clients": CLIENTS,
        "edits": edits,
        "requests": len(latencies),
        "failures": results.failures,
        "revisions_that_answered": len(results.revisions),
        "p50_ms": round(latencies[len(latencies) // 2], 1),
        "p95_ms": round(latencies[len(latencies) * 95 // 100], 1),
        "growth": growth(samples),
    }


def main() -> int:
    """Run the test, write the results, and return the exit code."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else sized(300.0, 60.0)
    with tempfile.TemporaryDirectory() as folder, platform(edited(Path(folder), 0)) as running:
        results, samples, edits = drive(running, seconds)
    report = summary(results, samples, edits, seconds)
    output("bench/out/endurance.json").write_text(json.dumps({**report, "samples": samples}, indent=1) + "\n")
    Console().print(report)
    flat = report["growth"]["memory_mib"] < FLAT_MIB and report["growth"]["shm_regions"] == 0
    flat |= is_smoke()  # the revision before may be there for longer than a smoke run
    return 0 if not results.failures and flat and len(results.revisions) == edits + 1 else 1


if __name__ == "__main__":
    sys.exit(main())
