"""Candidates that go wrong in every way, and healthy ones in a bad world: what a rollout makes of them.

    PYTHONPATH=tests python -m bench.rollout_faults [--go-on] [--only NAME]

Runs in real time on local platforms of its own, about three hours; writes bench/out/rollout_faults.json and the tables
of docs/evidence/reliability.md after each run. Exits with 1 where an outcome is not one of those declared. `--go-on`
leaves out what was run before; `--only` runs what has the words in its name and rate, and keeps the other results.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console

from bench.platform import ROOT
from faults.scenarios import ALL, FAULTS, HEALTHY, Scenario, run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OUT: Final = ROOT / "bench/out/rollout_faults.json"
DOCUMENT: Final = ROOT / "docs/evidence/reliability.md"
Json = dict[str, Any]


def publish(found: Json) -> None:
    """Write what was found, and the tables of it."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    text = DOCUMENT.read_text()
    for name, scenarios in TABLES.items():
        begin, end = f"<!-- {name}: written by make prove -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = "\n".join([head + begin, "", *table(scenarios, found), "", end + rest.split(end)[1]])
    DOCUMENT.write_text(text)


def table(scenarios: Iterable[Scenario], found: Json) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for scenario in scenarios:
        if scenario.key in found:
            yield _line(scenario, found[scenario.key])


def _line(scenario: Scenario, seen: Json) -> str:
    last = seen["stages"][-1] if seen["stages"] else {"second": 0, "phase": "Pending", "weight": 0, "reason": ""}
    at = f" at {last['weight']} % ({last['phase']})" if seen["outcome"] == "held" else ""
    wrong = "" if seen["outcome"] in scenario.wanted else " (**not as declared**)"
    zero_s = seen.get("first_bad_to_weight_0_s")
    cells = (
        scenario.name,
        f"{scenario.rate:g}",
        f"{WORDS[seen['outcome']]}{at}{wrong}",
        f"{last['second']:.0f} s",
        "" if zero_s is None else f"{zero_s:.1f} s",
        f"{seen['bad_of_the_candidate']} of {seen['of_the_candidate']}",
        f"{_ms(seen['stable_p95_before_ms'])}, {_ms(seen['stable_p95_during_ms'])}",
    )
    return f"| {' | '.join(cells)} |"


def _ms(number: float | None) -> str:
    return "none" if number is None else f"{number:.0f} ms"


COLUMNS: Final = (
    "candidate",
    "requests/s",
    "outcome",
    "after",
    "first bad answer to weight 0",
    "bad answers",
    "stable's p95 before, during",
)
WORDS: Final = {"RolledBack": "rolled back", "Succeeded": "promoted", "Cancelled": "cancelled", "held": "held"}
TABLES: Final = {"rollouts of faulty candidates": FAULTS, "rollouts of healthy candidates": HEALTHY}


def prove(scenarios: Sequence[Scenario], found: Json) -> bool:
    """Run scenarios, and tell whether each ended as declared."""
    right = True
    for scenario in scenarios:
        seen = run(scenario)
        found[scenario.key] = seen
        publish(found)
        right &= seen["outcome"] in scenario.wanted
        times = {key: seen[key] for key in seen if key.endswith(("_s", "_ms"))}
        Console().print(f"{scenario.key}: {seen['outcome']}, {seen['bad_of_the_candidate']} bad answers, {times}")
    return right


def main(go_on: bool = False, only: str = "") -> None:
    """Run all, or those that have some words in their name and rate, as in `hang, 10/s`."""
    found: Json = json.loads(OUT.read_text()) if (go_on or only) and OUT.exists() else {}
    chosen = [each for each in ALL if only in each.key and not (go_on and each.key in found)]
    sys.exit(0 if prove(chosen, found) else 1)


if __name__ == "__main__":
    typer.run(main)
