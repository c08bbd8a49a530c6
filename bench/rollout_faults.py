"""Outcomes of rollouts: of candidates with every kind of fault, and of healthy ones on a disturbed platform.

    PYTHONPATH=tests python -m bench.rollout_faults [--go-on] [--only NAME]

Runs in real time on its own local platforms, about three hours; writes bench/out/rollout_faults.json and the tables of
docs/evidence/reliability.md after each run. Exits with 1 if an outcome is not one of those declared. `--go-on` skips
scenarios that have a result; `--only` runs those whose name and rate contain the text, and keeps other results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import typer
from rich.console import Console

from bench.platform import ROOT
from faults.scenarios import ALL, FAULTS, HEALTHY, Scenario, run

OUT: Final = ROOT / "bench/out/rollout_faults.json"
DOCUMENT: Final = ROOT / "docs/evidence/reliability.md"
Json = dict[str, Any]


def publish(results: Json) -> None:
    """Write the results and their tables."""
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    text = DOCUMENT.read_text()
    for name, scenarios in TABLES.items():
        begin, end = f"<!-- {name}: written by make prove -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = "\n".join([head + begin, "", *table(scenarios, results), "", end + rest.split(end)[1]])
    DOCUMENT.write_text(text)


def table(scenarios: Iterable[Scenario], results: Json) -> Iterator[str]:
    """Yield the lines of a table."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    for scenario in scenarios:
        if scenario.key in results:
            yield _line(scenario, results[scenario.key])


def _line(scenario: Scenario, result: Json) -> str:
    last = result["stages"][-1] if result["stages"] else {"second": 0, "phase": "Pending", "weight": 0, "reason": ""}
    at = f" at {last['weight']} % ({last['phase']})" if result["outcome"] == "held" else ""
    wrong = "" if result["outcome"] in scenario.wanted else " (**not as declared**)"
    zero_s = result.get("first_bad_to_weight_0_s")
    cells = (
        scenario.name,
        f"{scenario.rate:g}",
        f"{WORDS[result['outcome']]}{at}{wrong}",
        f"{last['second']:.0f} s",
        "" if zero_s is None else f"{zero_s:.1f} s",
        f"{result['bad_of_the_candidate']} of {result['of_the_candidate']}",
        f"{_ms(result['stable_p95_before_ms'])}, {_ms(result['stable_p95_during_ms'])}",
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


def prove(scenarios: Sequence[Scenario], results: Json) -> bool:
    """Run scenarios, and return whether each ended as declared."""
    as_declared = True
    for scenario in scenarios:
        result = run(scenario)
        results[scenario.key] = result
        publish(results)
        as_declared &= result["outcome"] in scenario.wanted
        times = {key: result[key] for key in result if key.endswith(("_s", "_ms"))}
        Console().print(f"{scenario.key}: {result['outcome']}, {result['bad_of_the_candidate']} bad answers, {times}")
    return as_declared


def main(go_on: bool = False, only: str = "") -> None:
    """Run all scenarios, or those whose name and rate contain a text, as in `hang, 10/s`."""
    results: Json = json.loads(OUT.read_text()) if (go_on or only) and OUT.exists() else {}
    chosen = [each for each in ALL if only in each.key and not (go_on and each.key in results)]
    sys.exit(0 if prove(chosen, results) else 1)


if __name__ == "__main__":
    typer.run(main)
