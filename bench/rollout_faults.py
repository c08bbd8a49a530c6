"""Outcomes of rollouts: of candidates with every kind of fault, and of healthy ones on a disturbed platform.

    PYTHONPATH=tests python -m bench.rollout_faults [--shadow on|off|both] [--go-on] [--only NAME]

Runs in real time on its own local platforms, about seven hours, each scenario with Shadow before its steps and without;
writes bench/out/rollout_faults.json and the tables of bench/out/reliability.md after each run. Exits with 1 if an
outcome is not one of those declared. `--go-on` skips scenarios that have a result; `--only` runs those whose name and
rate contain the text, and keeps other results, as `--shadow on` and `--shadow off` do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, Final

import typer
from rich.console import Console

from bench.smoke import output, sized
from faults.scenarios import FAULTS, HEALTHY, Scenario, run

OUT: Final = output("bench/out/rollout_faults.json")
DOCUMENT: Final = output("bench/out/reliability.md")
SMOKE: Final = ("100 % errors, 10/s", "healthy, 10/s")
Json = dict[str, Any]


class ShadowChoice(StrEnum):
    """Whether the candidates are asked copies before their steps."""

    ON = "on"
    OFF = "off"
    BOTH = "both"


def publish(results: Json) -> None:
    """Write the results and their tables."""
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    text = DOCUMENT.read_text()
    for name, scenarios in TABLES.items():
        begin, end = f"<!-- {name}: written by make prove -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = "\n".join([head + begin, "", *table(scenarios, results), "", end + rest.split(end)[1]])
    DOCUMENT.write_text(text)


def table(scenarios: Iterable[Scenario], results: Json) -> Iterator[str]:
    """Yield the lines of a table, and what of it was not run."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{'---|' * len(COLUMNS)}"
    both = list(with_shadow(scenarios, ShadowChoice.BOTH))
    for scenario in both:
        if scenario.key in results:
            yield _line(scenario, results[scenario.key])
    missing = [scenario for scenario in both if scenario.key not in results]
    if missing:
        yield from ("", f"{len(both) - len(missing)} of {len(both)} were run.")
    for has_shadow, words in ((False, "without Shadow"), (True, "with Shadow")):
        rates: dict[str, list[str]] = {}
        for scenario in missing:
            if scenario.has_shadow is has_shadow:
                rates.setdefault(scenario.name, []).append(f"{scenario.rate:g}")
        if rates:
            shown = "; ".join(f"{name} ({', '.join(each)}/s)" for name, each in rates.items())
            yield from ("", f"Not run {words}: {shown}.")


def with_shadow(scenarios: Iterable[Scenario], shadow: ShadowChoice) -> Iterator[Scenario]:
    """Yield scenarios without Shadow, with it, or each in both ways."""
    for scenario in scenarios:
        if shadow is not ShadowChoice.ON:
            yield scenario
        if shadow is not ShadowChoice.OFF:
            yield scenario.shadowed()


def _line(scenario: Scenario, result: Json) -> str:
    last = result["stages"][-1] if result["stages"] else {"second": 0, "phase": "Pending", "weight": 0, "reason": ""}
    at = f" at {last['weight']} % ({last['phase']})" if result["outcome"] == "held" else ""
    wrong = "" if result["outcome"] in scenario.wanted else " (**not as declared**)"
    zero_s = result.get("first_bad_to_weight_0_s")
    cells = (
        scenario.name,
        f"{scenario.rate:g}",
        "on" if scenario.has_shadow else "off",
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
    "Shadow",
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


def main(go_on: bool = False, only: str = "", shadow: ShadowChoice = ShadowChoice.BOTH) -> None:
    """Run all scenarios, or those whose name and rate contain a text, as in `hang, 10/s`."""
    keeps = go_on or only or shadow is not ShadowChoice.BOTH
    results: Json = json.loads(OUT.read_text()) if keeps and OUT.exists() else {}
    scenarios = with_shadow((*FAULTS, *HEALTHY), shadow)
    chosen = [each for each in scenarios if only in each.key and not (go_on and each.key in results)]
    chosen = sized(chosen, [each for each in chosen if each.key in SMOKE])
    sys.exit(0 if prove(chosen, results) else 1)


if __name__ == "__main__":
    typer.run(main)
