"""Simulates rollouts: `python -m bench.rollout`; `--full` all cells, `--shard 1/4` a part of them, `--report` none.

Each cell's figures go to bench/out/rollout/<cell>.json and are kept while the code that made them stays; all of them
together are bench/out/rollout.json, the tables of bench/out/decisions.md, and the plots of docs/evidence/decisions.md.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import TYPE_CHECKING, Final

from bench.rollout.cells import chosen_cells, every_cell
from bench.rollout.plots import draw
from bench.rollout.report import write_tables
from bench.rollout.running import PARTS, collected, run
from bench.smoke import output, sized

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT: Final = output("bench/out/rollout.json")
CELLS: Final = output("bench/out/rollout")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the files."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__)
    parser.add_argument("--full", action="store_true", help="all cells instead of a choice")
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="only each Nth cell, from the Ith")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cells whose names have this in them")
    parser.add_argument("--part", choices=PARTS, help="only our figures, or only the peers'; both by default")
    parser.add_argument(
        "--share", type=float, default=sized(1.0, 0.01), help="so large a share of the rollouts, for a quick look"
    )
    parser.add_argument("--report", action="store_true", help="only write the tables and plots anew")
    told = parser.parse_args(arguments)
    cells = every_cell() if told.full else sized(chosen_cells(), chosen_cells()[::60])
    number, shards = told.shard
    wanted = [cell for cell in cells[number - 1 :: shards] if told.only in cell.name]
    began_s = time.monotonic()
    if not told.report:
        run(wanted, CELLS, (told.part,) if told.part else PARTS, told.share)
    minutes = (time.monotonic() - began_s) / 60
    print(f"{len(wanted)} cells: {minutes:.1f} minutes", flush=True)
    if told.part:
        return
    found = collected(every_cell(), CELLS, told.share)
    OUT.write_text(json.dumps(found, separators=(",", ":")).replace('{"cell"', '\n{"cell"') + "\n")
    write_tables(found)
    draw(found)


def _shard(text: str) -> tuple[int, int]:
    number, _, shards = text.partition("/")
    return int(number), int(shards)


if __name__ == "__main__":
    main()
