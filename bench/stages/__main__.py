"""Measures all cases, or those of the named groups: `python -m bench.stages [paste nms ...]`.

The allocator keeps freed memory, because page faults would blur the results, and everything has one thread. Ours and
the peer alternate, so that changes of the machine's load affect both.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from bench import stages
from bench.smoke import output, sized
from bench.stages._plot import draw
from bench.stages.case import Case, Peer

RESULT: Final = output("bench/out/stages.json")
DOCUMENT: Final = output("bench/out/stages.md")
PLOT: Final = output("docs/images/stage-ratios.svg")
BEGIN: Final = "<!-- stages: written by make bench-stages -->"
END: Final = "<!-- end of stages -->"
WARM: Final = {
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "2000000000",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
}
TURN_S: Final = sized(4.0, 0.0)
MIN_TURNS: Final = sized(5, 2)
MAX_TURNS: Final = 40
OURS_PER_TURN_S: Final = 0.02
MAX_OURS_PER_TURN: Final = sized(9, 1)


def main() -> None:
    if any(os.environ.get(name) != value for name, value in WARM.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.stages", *sys.argv[1:]], os.environ | WARM)
    _one_thread()
    names = sorted(module.name for module in pkgutil.iter_modules(stages.__path__) if not module.name.startswith("_"))
    groups = [name for name in names if name != "case"]
    unknown = set(sys.argv[1:]) - set(groups)
    if unknown:
        sys.exit(f"unknown groups: {', '.join(sorted(unknown))}; known: {', '.join(groups)}")
    rows = [] if not sys.argv[1:] else [row for row in _stored() if row["group"] not in sys.argv[1:]]
    for group in sys.argv[1:] or groups:
        rows += [{"group": group} | row for row in _measured(importlib.import_module(f"bench.stages.{group}").cases())]
    rows.sort(key=lambda row: groups.index(row["group"]))
    RESULT.write_text(json.dumps(rows, indent=1) + "\n")
    _write_table(rows)
    draw(rows, PLOT)


def _one_thread() -> None:
    import cv2
    import torch

    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def _stored() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.is_file() else []
    return rows


def _measured(cases: Iterator[Case]) -> Iterator[dict[str, Any]]:
    for case in cases:
        for peer in case.peers:
            exact = peer.agrees()
            yield _row(case, peer, exact, *_in_turns(case.ours, peer.run))


def _in_turns(ours: Callable[[], object], theirs: Callable[[], object]) -> tuple[list[float], list[float]]:
    """Return the seconds of both, after one warm-up run of each; ours runs several times per turn if it is short."""
    _timed(ours)
    repeated = max(1, min(MAX_OURS_PER_TURN, int(OURS_PER_TURN_S / _timed(ours))))
    turns = min(MAX_TURNS, max(MIN_TURNS, int(TURN_S / _timed(theirs))))
    own, other = [], []
    for _ in range(turns):
        own += [_timed(ours) for _ in range(repeated)]
        other.append(_timed(theirs))
    return own, other


def _timed(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    there = run()
    return there if isinstance(there, float) else time.perf_counter() - started


def _row(case: Case, peer: Peer, exact: str, own: list[float], other: list[float]) -> dict[str, Any]:
    ours_ms, peer_ms = statistics.median(own) * 1000, statistics.median(other) * 1000
    ratio = peer_ms / ours_ms
    row = {
        "case": case.name,
        "worst": case.worst,
        "peer": peer.name,
        "peer_version": peer.version,
        "ours_ms": round(ours_ms, 4),
        "peer_ms": round(peer_ms, 3),
        "ratio": round(ratio, 2),
        "p90_ratio": round(_p90(other) / _p90(own), 2),
        "goal": peer.goal,
        "exact": exact,
    }
    goal = "" if peer.goal is None else f" (goal {peer.goal:g})"
    print(f"{case.name} / {peer.name}: {ours_ms:.3f} ms, {peer_ms:.2f} ms, {ratio:.1f}x{goal}; {exact}", flush=True)
    return row


def _p90(seconds: list[float]) -> float:
    return statistics.quantiles(seconds, n=10, method="inclusive")[-1]


def _write_table(rows: list[dict[str, Any]]) -> None:
    lines = ["| case | peer | ours, ms | peer, ms | ratio | at p90 | goal | answers |", "|---|" + "---|" * 7]
    for row in rows:
        case = f"{row['case']} (worst case)" if row["worst"] else row["case"]
        goal = "" if row["goal"] is None else f"{row['goal']:g}x"
        ratio = f"{row['ratio']:.3g}x"
        shown = ratio if row["goal"] is None or row["ratio"] >= row["goal"] else f"**{ratio}**"
        lines.append(
            f"| {case} | {row['peer']} {row['peer_version']} | {row['ours_ms']:.3g} | {row['peer_ms']:.3g} | {shown} "
            f"| {row['p90_ratio']:.3g}x | {goal} | {row['exact']} |"
        )
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


if __name__ == "__main__":
    main()
