"""Runs cells in two processes, and keeps what was found of each in a file until its code changes."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from bench.rollout import tuning
from bench.rollout.cells import our_part, peers_part, version_of
from bench.smoke import sized

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from bench.rollout.cells import Cell
    from bench.rollout.peers import Tuning

PROCESSES: Final = 2
PARTS: Final = ("ours", "peers")


def run(
    cells: Sequence[Cell],
    folder: Path,
    parts: Sequence[str] = PARTS,
    share: float = 1.0,
    processes: int = PROCESSES,
) -> list[Cell]:
    """Simulate the cells whose files are missing or of other code; return those.

    `share` below 1 simulates fewer rollouts of each, for a quick look.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        code(part, share)  # before the processes start: what they run is what is there now
    missing = [cell for cell in cells if _missing(cell, folder, parts, share)]
    pairs = sorted({(cell.rate, cell.slo_ms) for cell in missing}) if "peers" in parts else ()
    with ProcessPoolExecutor(processes) as pool:
        for tuned in [pool.submit(_tune, rate, slo_ms, folder) for rate, slo_ms in pairs]:
            tuned.result()
        jobs = {pool.submit(simulate, cell, folder, parts, share): cell for cell in missing}
        for done, job in enumerate(as_completed(jobs), 1):
            print(f"{done} of {len(jobs)}: {jobs[job].name} in {job.result():.0f} s", flush=True)
    return missing


def minutes_told(program: str, description: str | None, arguments: Sequence[str] | None = None) -> float:
    """Return for how many minutes cells are to begin, by the command line; 0 to write the tables anew alone."""
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no cell after so many minutes")
    parser.add_argument("--report", action="store_true", help="only write the tables anew")
    told = parser.parse_args(arguments)
    return 0.0 if told.report else float(told.minutes)


def run_missing(
    named: Iterable[tuple[str, Callable[[], dict[str, Any]]]], path: Path, minutes: float
) -> dict[str, Any]:
    """Return the figures that a file has by name, after those of `named` that it lacks were made and written to it.

    None is begun after so many minutes.
    """
    began_s, found = time.monotonic(), read(path)
    for name, figures in islice(named, 0, None, sized(1, 40)):
        if time.monotonic() - began_s >= 60.0 * minutes:
            break
        if name in found:
            continue
        began_cell_s = time.process_time()
        found[name] = figures()
        found[name]["seconds"] = round(time.process_time() - began_cell_s, 1)
        path.write_text(json.dumps(found, separators=(",", ":")).replace("},", "},\n") + "\n")
        print(name, f"{time.monotonic() - began_s:.0f} s", flush=True)
    return found


def simulate(cell: Cell, folder: Path, parts: Sequence[str] = PARTS, share: float = 1.0) -> float:
    """Bring parts of one cell's file up to date; return the seconds that took."""
    began_s = time.monotonic()
    path = _path(cell, folder)
    found: dict[str, Any] = {"cell": cell.name, **read(path)}
    for part in parts:
        if found.get(part, {}).get("version") != code(part, share):
            made = _made(part, cell, folder, round(cell.runs * share))
            found[part] = {"version": code(part, share), **made}
    _write(path, found)
    return time.monotonic() - began_s


def collected(cells: Sequence[Cell], folder: Path, share: float = 1.0) -> dict[str, Any]:
    """Return the figures of all cells of one version, and what they depend on.

    The version is that of the present code; where no cell has it, the one that most cells have.
    """
    files = {cell: read(_path(cell, folder)) for cell in cells}
    versions = {part: _version(part, list(files.values()), share) for part in PARTS}
    rows = []
    for cell, found in files.items():
        if all(found.get(part, {}).get("version") == versions[part] for part in PARTS):
            about = {"rate": cell.rate, "condition": cell.condition, "fault": cell.fault, "slo_ms": cell.slo_ms}
            rows.append({**found, **about})
    seconds = sum(row[part]["seconds"] for row in rows for part in PARTS)
    tunings = {path.stem.removeprefix("tuning-"): read(path)["tuning"] for path in sorted(folder.glob("tuning-*.json"))}
    return {
        "versions": versions,
        "cores": os.cpu_count(),
        "cpu_minutes": round(seconds / 60, 1),
        "tuned": tunings,
        "cells": rows,
    }


def _made(part: str, cell: Cell, folder: Path, runs: int) -> dict[str, Any]:
    if part == "ours":
        return our_part(cell, runs)
    return peers_part(cell, _tune(cell.rate, cell.slo_ms, folder), runs)


def _version(part: str, files: Sequence[dict[str, Any]], share: float) -> str:
    seen = Counter(found[part]["version"] for found in files if part in found)
    now = code(part, share)
    return now if now in seen or not seen else seen.most_common(1)[0][0]


def read(path: Path) -> dict[str, Any]:
    """Return a file's values; none where it is missing or was not written to its end."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return found


def _tune(rate: float, slo_ms: float, folder: Path) -> Tuning:
    path, version = folder / f"tuning-{rate:g}-{slo_ms:g}.json", code("peers")
    known = read(path)
    if known.get("version") != version:
        known = {"version": version, "tuning": tuning.plain(tuning.tuned(rate, slo_ms, sized(tuning.RUNS, 100)))}
        _write(path, known)
    return tuning.read(known["tuning"])


def _missing(cell: Cell, folder: Path, parts: Sequence[str] = PARTS, share: float = 1.0) -> bool:
    known = read(_path(cell, folder))
    return any(known.get(part, {}).get("version") != code(part, share) for part in parts)


def _path(cell: Cell, folder: Path) -> Path:
    return folder / f"{cell.name}.json"


def _write(path: Path, values: dict[str, Any]) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(values) + "\n")
    fresh.replace(path)


@cache
def code(part: str, share: float = 1.0) -> str:
    """Return the version of a part's code that this process runs; fewer rollouts are another version."""
    return version_of(part) + ("" if share == 1 else f"-{share:g}")
