"""Rollouts whose stable has a past: `python -m bench.rollout.measured`, cell by cell, kept in its file.

The figures go to bench/out/rollout_measured.json and, beside those without a past and the peers' of
bench/out/rollout.json, into bench/out/decisions.md. `--report` only writes the tables anew.
"""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bench.rollout.cells import DRAWN_NAME, Cell, our_part
from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.figures import WITHIN, Results
from bench.rollout.report import markdown_table, put_into_document
from bench.rollout.running import minutes_told, run_missing
from bench.smoke import output, sized

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

OUT: Final = output("bench/out/rollout_measured.json")
KNOWN: Final = output("bench/out/rollout.json")
HEALTHY_RUNS: Final = sized(500, 10)
FAULTY_RUNS: Final = sized(150, 10)
DRAWN_RUNS: Final = sized(250, 10)
_RATES: Final = (100.0, 10.0, 1000.0)
_FAULTS: Final = (
    *("errors+1", "errors+2", "errors+5", "errors+100", "latency-x1.25", "latency-x1.5", "latency-x2", "latency-x3"),
    *("tail", "delayed", "leak"),
)
_NEW: Final = ("pauses", "bursts-30s", "cold-30s")


def cells() -> Iterator[Cell]:
    """Yield the cells, the most telling first."""
    for rate in _RATES:
        yield from (Cell(rate, name) for name in (*_NEW, STEADY))
    for rate in _RATES:
        yield from (Cell(rate, STEADY, fault) for fault in _FAULTS)
    drawn = [name for name in CONDITIONS if name.startswith(DRAWN_NAME)]
    named = [name for name in CONDITIONS if name not in (*drawn, *_NEW, STEADY)]
    yield from (Cell(100.0, name) for name in drawn)
    for rate in (100.0, 10.0):
        yield from (Cell(rate, name) for name in named)
    yield from (Cell(10.0, name) for name in drawn)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing until the time is over, and write the tables."""
    named = ((cell.name, partial(_figures, cell)) for cell in cells())
    found = run_missing(named, OUT, minutes_told("python -m bench.rollout.measured", __doc__, arguments))
    before = Results.of(json.loads(KNOWN.read_text()))
    put_into_document(
        {
            "measured": healthy_table(found, before),
            "measured faults": faults_table(found, before),
            "drawn": drawn_text(found),
        }
    )


def _figures(cell: Cell) -> dict[str, Any]:
    drawn = cell.condition.startswith(DRAWN_NAME)
    runs = DRAWN_RUNS if drawn else HEALTHY_RUNS if cell.fault == NONE else FAULTY_RUNS
    return dict(our_part(cell, runs, ("evidence",))["evidence"])


def healthy_table(found: Mapping[str, Any], before: Results) -> str:
    """Return how many of 100 healthy candidates were rolled back, and when the others were promoted."""
    rows = []
    for cell in cells():
        if cell.name not in found or cell.fault != NONE or cell.condition.startswith(DRAWN_NAME):
            continue
        mine, former = found[cell.name], before.cells.get((cell.rate, cell.condition, NONE, cell.slo_ms))
        rows.append(
            (
                CONDITIONS[cell.condition].says,
                f"{cell.rate:g}",
                _share(mine["rolled_back"]),
                _share(former["ours"]["evidence"]["rolled_back"]) if former else "",
                f"{100 * mine['promoted'][0]:.0f}",
                f"{mine['promotion_s'][0][0]:.0f} s" if mine["promotion_s"] else "",
            )
        )
    head = ("traffic", "rps", "rolled back, %", "without a past", "promoted in 30 min, %", "median")
    return markdown_table(head, rows)


def faults_table(found: Mapping[str, Any], before: Results) -> str:
    """Return the excess bad requests of each fault, beside those of the best peer within 1 % of false rollbacks."""
    rows = []
    for cell in cells():
        former = before.cells.get((cell.rate, cell.condition, cell.fault, cell.slo_ms))
        if cell.name not in found or cell.fault == NONE or former is None:
            continue
        compared, mine = before.compared(former), found[cell.name]["excess"]
        peer = former["peers"]["tuned"][compared.best]["excess"][0] if compared.best else 0.0
        rows.append(
            (
                FAULTS[cell.fault].says,
                f"{cell.rate:g}",
                f"{mine[0]:.3g} ({mine[1]:.3g} to {mine[2]:.3g})",
                f"{former['ours']['evidence']['excess'][0]:.3g}",
                f"{compared.best}: {peer:.3g}" if peer else f"none within {100 * WITHIN:g} %",
                f"{mine[0] / peer:.2f}x" if peer else "",
            )
        )
    return markdown_table(
        ("fault, steady traffic", "rps", "excess bad", "without a past", "best peer", "ours / peer"), rows
    )


def drawn_text(found: Mapping[str, Any]) -> str:
    """Return the worst of the worlds drawn at random, by rate."""
    lines = []
    for rate in (100.0, 10.0):
        of_rate = [cell for cell in cells() if cell.condition.startswith(DRAWN_NAME) and cell.rate == rate]
        seen = [cell for cell in of_rate if cell.name in found]
        if not seen:
            continue
        worst = max(seen, key=lambda cell: found[cell.name]["rolled_back"][0])
        shares = [found[cell.name]["rolled_back"][0] for cell in seen]
        runs = found[worst.name]["runs"]
        promoted = sorted(found[cell.name]["promoted"][0] for cell in seen)
        lines.append(
            f"- {rate:g} rps, {len(seen)} worlds of {runs} rollouts: worst {_share(found[worst.name]['rolled_back'])} %"
            f" rolled back ({CONDITIONS[worst.condition].says}); all together {100 * sum(shares) / len(shares):.2g} %,"
            f" none at all in {sum(share == 0 for share in shares)}. Promoted within half an hour: the median world"
            f" {100 * promoted[len(promoted) // 2]:.0f} %, the worst {100 * promoted[0]:.0f} %."
        )
    return "\n".join(lines)


def _share(share: Sequence[float]) -> str:
    return f"{100 * share[0]:.2g} ({100 * share[1]:.2g} to {100 * share[2]:.2g})"


if __name__ == "__main__":
    main()
