"""Rollouts with Shadow before the first step: `python -m bench.rollout.shadow`, cell by cell, kept in its file.

The figures go to bench/out/rollout_shadow.json and, beside those without Shadow and the peers' of the other two files
there, into bench/out/decisions.md. `--report` only writes the tables anew.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.rollout import measured
from bench.rollout.cells import DRAWN_NAME, HORIZON_S, SLO_MS, Cell
from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.figures import TOLERATED, WITHIN, Results
from bench.rollout.ours import PACES, PAST_S, outcomes_of
from bench.rollout.pairs import OWN, PairedWorld
from bench.rollout.quality import golden
from bench.rollout.report import markdown_table, put_into_document
from bench.rollout.running import minutes_told, run_missing
from bench.smoke import output, sized
from segserve_operator.api.rollout_policy import Shadow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    Found = Mapping[str, Any]

OUT: Final = output("bench/out/rollout_shadow.json")
HEALTHY_RUNS: Final = sized(400, 10)
MANY_RUNS: Final = sized(1000, 10)
"""Where some are rolled back, so that 400 do not bound the share."""
FAULTY_RUNS: Final = sized(100, 10)
DRAWN_RUNS: Final = sized(260, 10)
SHADOW: Final = Shadow()
"""As by default: half of the requests, at most 5 a second, for at most ten minutes."""
UNKNOWN_FAULTS: Final = ("errors+1", "errors+5", "errors+20", "errors+50", "errors+100", "latency-x1.5")
GOAL: Final = 0.5
"""Of the best peer's excess bad requests, in nine of ten cells..."""
LIMIT: Final = 1.0
"""...and of all."""
_RATES: Final = (10.0, 100.0, 1000.0)
_FAULTS: Final = (
    *("errors+1", "errors+2", "errors+5", "errors+20", "errors+100"),
    *("latency-x1.25", "latency-x1.5", "latency-x2", "latency-x3", "tail", "delayed", "leak"),
)
_FIRST: Final = (STEADY, "pauses", "bursts-30s", "cold-30s")


def cells() -> Iterator[Cell]:
    """Yield the cells, the most telling first."""
    for rate in _RATES:
        yield from (Cell(rate, STEADY, fault) for fault in _FAULTS)
    for rate in _RATES:
        yield from (Cell(rate, name) for name in _FIRST)
    for rate in (10.0, 100.0):
        for condition in ("diurnal", "incident", "outage", "bursts-0.02", "autocorrelation"):
            yield from (Cell(rate, condition, fault) for fault in ("errors+1", "errors+5", "latency-x1.25"))
    yield from (Cell(1.0, STEADY, fault) for fault in (NONE, "errors+5", "errors+20", "latency-x1.5", "latency-x3"))
    named = [name for name in CONDITIONS if not name.startswith(DRAWN_NAME) and name not in _FIRST]
    yield from (Cell(100.0, name) for name in named)
    yield from (Cell(100.0, name) for name in CONDITIONS if name.startswith(DRAWN_NAME))
    yield from (Cell(10.0, name) for name in named)


def figures_of(
    cell: Cell, runs: int, own: float = OWN, shadow: Shadow = SHADOW, past_s: float = PAST_S
) -> dict[str, Any]:
    """Return the figures of one cell, with the mean number of copies of a rollout; stable was watched for `past_s`."""
    # Callers' first request comes later by up to Shadow's length: what a fault does to them counts for as long.
    horizon_s = HORIZON_S + SHADOW.max_duration.total_seconds()
    seed = int.from_bytes(hashlib.sha256(f"shadow {cell.name}".encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    policy = PACES["evidence"].model_copy(update={"shadow": shadow})
    images = golden(cell.setting.fault, runs, policy, rng)
    world = PairedWorld(cell.setting, runs, rng, own=own)
    outcomes, copies = outcomes_of(world, policy, images, horizon_s, past_s)
    return {**outcomes.figures(FAULTS[cell.fault].onset_s), "copies": float(f"{copies.mean():.4g}")}


def unknown_cells() -> Iterator[Cell]:
    """Yield the cells of rollouts that know nothing of stable's past when they begin, the most telling first."""
    yield from (Cell(rate, name) for rate in (100.0, 10.0) for name in ("bursts-30s", "pauses", STEADY))
    yield from (Cell(rate, STEADY, fault) for rate in (10.0, 100.0) for fault in UNKNOWN_FAULTS)
    others = (name for name in CONDITIONS if not name.startswith(DRAWN_NAME))
    yield from (Cell(100.0, name) for name in others if name not in ("bursts-30s", "pauses", STEADY))


def unknown_name(cell: Cell) -> str:
    """Return the name of a cell's figures where nothing is known of stable's past at first."""
    return f"{cell.name}-without-past"


def _named() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    for cell in unknown_cells():
        yield unknown_name(cell), partial(figures_of, cell, _runs(cell), past_s=0.0)
    for cell in cells():
        yield cell.name, partial(figures_of, cell, _runs(cell))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the cells that are missing until the time is over, and write the tables."""
    found = run_missing(_named(), OUT, minutes_told("python -m bench.rollout.shadow", __doc__, arguments))
    before = Results.of(json.loads(measured.KNOWN.read_text()))
    tables = {
        "shadow": summary(found, before),
        "shadow healthy": healthy_table(found),
        "shadow faults": faults_table(found, before),
        "shadow unknown": unknown_text(found),
        "shadow drawn": drawn_text(found),
    }
    put_into_document(tables)


def _runs(cell: Cell) -> int:
    if cell.fault != NONE:
        return FAULTY_RUNS
    if cell.condition.startswith(DRAWN_NAME):
        return DRAWN_RUNS
    return MANY_RUNS if cell.condition == "bursts-30s" and cell.rate < 1000 else HEALTHY_RUNS


def compared(found: Found, before: Results) -> Iterator[tuple[Cell, str, float, float]]:
    """Yield the cells with a fault beyond tolerance that a peer knows, with the best one, its harm and ours by it."""
    for cell in cells():
        former = before.cells.get((cell.rate, cell.condition, cell.fault, SLO_MS))
        if cell.name not in found or cell.fault == NONE or cell.fault in TOLERATED or former is None:
            continue
        best = before.compared(former).best
        if best and (peer := former["peers"]["tuned"][best]["excess"][0]) > 0:
            yield cell, best, peer, found[cell.name]["excess"][0] / peer


def summary(found: Found, before: Results) -> str:
    """Return how many cells reach the goals, and what was run."""
    factors = [factor for *_, factor in compared(found, before)]
    healthy = [cell for cell in cells() if cell.name in found and cell.fault == NONE]
    shares = [found[cell.name]["rolled_back"] for cell in healthy]
    runs = sum(found[cell.name]["runs"] for cell in cells() if cell.name in found)
    minutes = sum(found[cell.name]["seconds"] for cell in cells() if cell.name in found) / 60
    return "\n".join(
        [
            f"- At most {GOAL:g}x the best peer's harm in {sum(each <= GOAL for each in factors)} of {len(factors)}"
            f" cells with a fault, more than {LIMIT:g}x in {sum(each > LIMIT for each in factors)}.",
            f"- Healthy candidates rolled back: at most {100 * max(share[0] for share in shares):.2g} % in any of"
            f" {len(shares)} cells, of which {sum(share[0] == 0 for share in shares)} had none; the upper end of the"
            f" interval is above 1.5 % in {sum(share[2] > WITHIN for share in shares)}.",
            f"- {runs:,} rollouts, {minutes:.0f} minutes of one core.",
        ]
    )


def healthy_table(found: Found) -> str:
    """Return how many of 100 healthy candidates were rolled back, when the others were promoted, and the copies."""
    rows = []
    for cell in cells():
        if cell.name not in found or cell.fault != NONE or cell.condition.startswith(DRAWN_NAME):
            continue
        mine = found[cell.name]
        low, middle, high = (f"{100 * each:.2g}" for each in np.array(mine["rolled_back"])[[1, 0, 2]])
        median = f"{mine['promotion_s'][0][0]:.0f} s" if mine["promotion_s"] else ""
        share = f"{100 * mine['promoted'][0]:.0f}"
        rows.append(
            (
                CONDITIONS[cell.condition].says,
                f"{cell.rate:g}",
                f"{middle} ({low} to {high})",
                share,
                median,
                f"{mine['copies']:,.0f}",
            )
        )
    return markdown_table(("traffic", "rps", "rolled back, %", "promoted in 40 min, %", "median", "copies"), rows)


def faults_table(found: Found, before: Results) -> str:
    """Return the excess bad requests of callers for each fault, beside those without Shadow and of the best peer."""
    unshadowed = json.loads(measured.OUT.read_text())
    rows = []
    for cell, best, peer, factor in compared(found, before):
        mine, alone = found[cell.name], unshadowed.get(cell.name)
        shown = f"{factor:.2f}x"
        rows.append(
            (
                FAULTS[cell.fault].says,
                CONDITIONS[cell.condition].says,
                f"{cell.rate:g}",
                f"{mine['excess'][0]:.3g} ({max(mine['excess'][1], 0.0):.3g} to {mine['excess'][2]:.3g})",
                f"{alone['excess'][0]:.3g}" if alone else "",
                f"{best}: {peer:.3g}",
                f"**{shown}**" if factor > GOAL else shown,
                f"{100 * mine['rolled_back'][0]:.0f}",
                f"{mine['detection_s'][0][0]:.0f} s" if mine["detection_s"] else "",
                f"{mine['copies']:,.0f}",
            )
        )
    head: tuple[str, ...] = ("fault", "traffic", "rps", "excess bad", "without Shadow", "best peer", "ours / peer")
    return markdown_table((*head, "rolled back, %", "median", "copies"), rows)


def unknown_text(found: Found) -> str:
    """Return what becomes of rollouts that know nothing of stable's past when they begin."""
    faulty, healthy = [], []
    for cell in unknown_cells():
        mine = found.get(unknown_name(cell))
        if mine is None:
            continue
        share, low, high = (f"{100 * each:.2g}" for each in mine["rolled_back"])
        rate, times = f"{cell.rate:g}", [f"{each[0]:.0f} s" for each in mine["detection_s"] or ()]
        if cell.fault != NONE:
            faulty.append((FAULTS[cell.fault].says, rate, share, *(times or ("", "")), f"{mine['excess'][0]:.3g}"))
            continue
        promoted = f"{100 * mine['promoted'][0]:.0f}"
        median = f"{mine['promotion_s'][0][0]:.0f} s" if mine["promotion_s"] else ""
        healthy.append((CONDITIONS[cell.condition].says, rate, f"{share} ({low} to {high})", promoted, median))
    return "\n\n".join(
        (
            markdown_table(("fault", "rps", "rolled back, %", "median", "90 %", "excess bad"), faulty),
            markdown_table(("traffic", "rps", "rolled back, %", "promoted in 40 min, %", "median"), healthy),
        )
    )


def drawn_text(found: Found) -> str:
    """Return the worst of the worlds drawn at random."""
    seen = [cell for cell in cells() if cell.condition.startswith(DRAWN_NAME) and cell.name in found]
    if not seen:
        return "No world drawn at random was run."
    worst = max(seen, key=lambda cell: found[cell.name]["rolled_back"][0])
    shares, high = [found[cell.name]["rolled_back"][0] for cell in seen], found[worst.name]["rolled_back"]
    return (
        f"{len(seen)} worlds drawn at random, {found[worst.name]['runs']} healthy rollouts each at {worst.rate:g}"
        f" requests a second: worst {100 * high[0]:.2g} ({100 * high[1]:.2g} to {100 * high[2]:.2g}) % rolled back"
        f" ({CONDITIONS[worst.condition].says}); all together {100 * sum(shares) / len(shares):.2g} %, none at all in"
        f" {sum(share == 0 for share in shares)}."
    )


if __name__ == "__main__":
    main()
