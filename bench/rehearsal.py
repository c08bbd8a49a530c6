"""Rehearsed rollouts beside live ones: whether `segserve rollout rehearse` would have said what then happened.

    PYTHONPATH=tests python -m bench.rehearsal [--only real|simulated] [--minutes 60] [--report]

`simulated`: 100 rollouts by the shipped engine on simulated requests, each live, live once more, and rehearsed.
`real`: the scenarios of bench.rollout_faults that have a live result are rehearsed by the command itself, on the real
Triton and Envoy. Writes bench/out/rehearsal.json after each, and a section of docs/evidence/decisions.md. What has a
result is not run again, unless it was simulated by other code; none begins after so many minutes.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import typer
from rich.console import Console

from bench.platform import ROOT
from bench.rollout.conditions import CONDITIONS
from bench.rollout.faults import FAULTS as FAULTS_BY_NAME
from bench.rollout.rehearsed import ROLLOUTS, Verdict, changes, compared, to_json
from bench.rollout.report import markdown_table, put_into_document
from bench.rollout.running import code, read
from bench.rollout_faults import OUT as LIVE
from faults.plan import Fault
from faults.rehearsal import rehearse
from faults.scenarios import AT_FIRST, FAULTS, HEALTHY, Scenario, change

OUT: Final = ROOT / "bench/out/rehearsal.json"
SPEEDS: Final = (1.0, 10.0)
REAL_SPEED: Final = 5.0
LIVE_VERDICTS: Final = {"Succeeded": "promoted", "RolledBack": "rolledBack", "held": "undecided"}
WORDS: Final = {"promoted": "promoted", "rolledBack": "rolled back", "undecided": "undecided"}
BY_OWN_CLOCK: Final = ("delayed", "leak")
NOT_RECORDED: Final = ("incident", "outage", "bad-server", "autocorrelation")
NAMES: Final = {"again": "a second rollout", "1": "a rehearsal, `--speed 1`", "10": "a rehearsal, `--speed 10`"}
Json = dict[str, Any]


class Part(StrEnum):
    """What is run."""

    REAL = "real"
    SIMULATED = "simulated"
    BOTH = "both"


def simulate(found: Json, deadline_s: float) -> None:
    """Simulate the changes that have no result by the present code."""
    if found["code"] != code("ours"):
        found |= {"code": code("ours"), "simulated": {}}
    for number, each in enumerate(changes()):
        if time.monotonic() >= deadline_s:
            return
        if str(number) not in found["simulated"]:
            found["simulated"][str(number)] = [to_json(one) for one in compared(number, each, SPEEDS)]
            _save(found)


def rehearse_live(found: Json, live: Json, deadline_s: float) -> None:
    """Rehearse the scenarios that have a live result, and none of a rehearsal."""
    for scenario in rehearsable():
        if time.monotonic() >= deadline_s:
            return
        if scenario.key not in live or scenario.key in found["real"]:
            continue
        fault = scenario.fault or Fault()
        # Live a fault begins with the first request of a caller, after golden images were scored.
        fault = fault if scenario.at_once else replace(fault, after=max(fault.after, AT_FIRST))
        with tempfile.TemporaryDirectory() as name:
            options = ("--rate", scenario.rate, "--speed", REAL_SPEED, "--timeout", f"{scenario.limit_s:.0f}s")
            _, report = rehearse(change(scenario, Path(name)), fault, Path(name) / "rehearsal", *options)
        found["real"][scenario.key] = {key: report[key] for key in ("verdict", "why", "harmed", "warnings")}
        _save(found)
        Console().print(f"{scenario.key}: {live[scenario.key]['outcome']}, rehearsed: {report['verdict']}")


def rehearsable() -> Iterator[Scenario]:
    """Yield the scenarios whose candidate, and nothing around it, is at fault, or is not."""
    for scenario in (*FAULTS, *HEALTHY):
        if scenario.event is None:
            yield from (scenario, scenario.shadowed())


def _save(found: Json) -> None:
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def simulated_text(rows: Sequence[Json], version: str) -> str:
    """Return how often a rollout's verdict was that of a second one, and of rehearsals, and where it was not."""
    if not rows:
        return "No rollout was simulated."
    verdicts = {"again": [row["again"] for row in rows]}
    verdicts |= {speed: [row["rehearsed"][speed] for row in rows] for speed in rows[0]["rehearsed"]}
    live = [row["live"] for row in rows]
    table = markdown_table(
        ("beside a rollout", "same verdict", "promotes what is rolled back", "rolls back what is promoted", "else"),
        [(NAMES[name], *_differences(each, live)) for name, each in verdicts.items()],
    )
    differ = Counter(
        (
            FAULTS_BY_NAME[row["fault"]].says,
            CONDITIONS[row["condition"]].says,
            f"{row['rate']:g}",
            row["live"],
            row["rehearsed"]["10"],
            _cause(row, rows),
        )
        for row in rows
        if row["live"] != row["rehearsed"]["10"]
    )
    head = ("rollouts", "fault", "traffic", "rps", "rollout", "rehearsal", "cause")
    details = markdown_table(head, [(str(count), *key) for key, count in sorted(differ.items())])
    summary = (
        f'<details markdown="1"><summary>Where a rehearsal at speed 10 differs</summary>\n\n{details}\n\n</details>'
    )
    return f"{len(rows)} of {ROLLOUTS} rollouts, by code {version}.\n\n{table}\n\n{summary}"


def _cause(row: Json, rows: Sequence[Json]) -> str:
    """Return why a rehearsal at speed 10 may have had another verdict than the rollout."""
    alike = [each for each in rows if all(each[name] == row[name] for name in ("fault", "condition", "rate"))]
    if len({verdict for each in alike for verdict in (each["live"], each["again"])}) > 1:
        return "chance: rollouts of this change differ among themselves"
    if row["fault"] in BY_OWN_CLOCK:
        return "the fault comes by the server's clock, ten times later by the rehearsal's"
    if row["condition"] in NOT_RECORDED:
        return "what befell the platform is not in a recording"
    if row["rehearsed"]["10"] == Verdict.UNDECIDED:
        return "without stable's past its pauses and bursts might be the cause"
    return "unknown"


def _differences(verdicts: Sequence[str], live: Sequence[str]) -> tuple[str, ...]:
    """Return how many verdicts are those of the rollouts, and how the others differ from these."""
    pairs = Counter(zip(verdicts, live, strict=True))
    same = sum(count for (one, other), count in pairs.items() if one == other)
    worse, better = pairs[Verdict.PROMOTED, Verdict.ROLLED_BACK], pairs[Verdict.ROLLED_BACK, Verdict.PROMOTED]
    return f"{same} of {len(live)}", str(worse), str(better), str(len(live) - same - worse - better)


def real_text(found: Json, live: Json) -> str:
    """Return the table of real rehearsals."""
    rows = []
    for scenario in rehearsable():
        if scenario.key in found and scenario.key in live:
            rehearsed, outcome = found[scenario.key], live[scenario.key]
            verdict = LIVE_VERDICTS[outcome["outcome"]]
            why = "; ".join([rehearsed["why"], *rehearsed["warnings"]])
            same = "" if verdict == rehearsed["verdict"] else why
            harmed = f"{outcome['bad_of_the_candidate']}", f"{rehearsed['harmed']}"
            rows.append((scenario.key, WORDS[verdict], WORDS[rehearsed["verdict"]], *harmed, same))
    head = (
        "candidate",
        "live",
        "rehearsed",
        "bad answers live",
        "harmed in the rehearsal",
        "what a rehearsal that differs says",
    )
    agree = sum(row[1] == row[2] for row in rows)
    return f"{agree} of {len(rows)} agree.\n\n{markdown_table(head, rows)}"


def main(only: Part = Part.BOTH, minutes: float = 60.0, report: bool = False) -> None:
    """Run what is missing, and write the tables."""
    found: Json = {"code": "", "simulated": {}, "real": {}, **read(OUT)}
    live = read(LIVE)
    deadline_s = time.monotonic() + 60.0 * minutes
    if only is not Part.REAL and not report:
        simulate(found, deadline_s)
    if only is not Part.SIMULATED and not report:
        rehearse_live(found, live, deadline_s)
    rows = [row for each in found["simulated"].values() for row in each]
    simulated = simulated_text(rows, found["code"])
    put_into_document({"rehearsals": simulated, "real rehearsals": real_text(found["real"], live)})


if __name__ == "__main__":
    typer.run(main)
