"""The tables of bench/out/decisions.md; figures that miss goals are bold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

from bench.rollout.conditions import CONDITIONS
from bench.rollout.faults import FAULTS
from bench.rollout.figures import TOLERATED, Results
from bench.rollout.ours import ALPHA, PACES
from bench.rollout.peers import PEERS
from bench.smoke import output

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from bench.rollout.figures import Compared, Row

DOCUMENT: Final = output("bench/out/decisions.md")
NOTHING: Final = "–"
LEAST_HARM: Final = 0.01
"""Excess bad requests that count as none, where ratios are formed."""


def write_tables(found: Mapping[str, Any]) -> None:
    """Put each table between its marks."""
    results = Results.of(found)
    tables = {
        "healthy": healthy_table(results),
        "documented": documented_table(results),
        "rules": rules_table(results),
        "faults": faults_table(results, steady=True),
        "traffic": faults_table(results, steady=False),
        "promotion": promotion_table(results),
        "losses": losses(results),
        "run": run_text(found),
    }
    put_into_document(tables)


def put_into_document(tables: Mapping[str, str]) -> None:
    """Put tables between the marks of their names."""
    text = DOCUMENT.read_text()
    for name, table in tables.items():
        text = between(text, name, table)
    DOCUMENT.write_text(text)


def between(text: str, name: str, table: str) -> str:
    """Return a text with something new between the marks of that name; ValueError where they are missing."""
    begin, end = f"<!-- {name}: written by make bench-rollout -->", f"<!-- end of {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no marks {begin!r} and {end!r}")
    before, rest = text.split(begin)
    return f"{before}{begin}\n{table}\n{end}{rest.split(end)[1]}"


def healthy_table(results: Results) -> str:
    """Return how many of 100 healthy rollouts were rolled back."""
    head = ("traffic", "rps", *(f"ours, {pace}" for pace in PACES), *PEERS)
    return markdown_table(head, map(_healthy_row, results.healthy()))


def documented_table(results: Results) -> str:
    """Return the same for the peers' own examples."""
    head = ("traffic", "rps", *PEERS)
    return markdown_table(
        head,
        (
            (*_about(row), *(_false(row["peers"]["documented"][peer]["rolled_back"]) for peer in PEERS))
            for row in results.healthy()
        ),
    )


def rules_table(results: Results) -> str:
    """Return what each tuned rule amounts to over all faults: nobody knows beforehand which fault it will be."""
    rows = [row for row in results.faulty(steady=True) if row["fault"] not in TOLERATED and not _of_quality(row)]
    head = ("rule", "harm / segserve's: all faults", "worst fault", "cells with less harm", "worst false rollbacks")
    return markdown_table(head, (_rule_row(results, rows, peer) for peer in PEERS)) if rows else ""


def _rule_row(results: Results, rows: Sequence[Row], peer: str) -> Sequence[str]:
    ratios = [_harm(row["peers"]["tuned"][peer]) / _harm(row["ours"]["evidence"]) for row in rows]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    less = sum(ratio < 1 for ratio in ratios)
    worst = max(row["peers"]["tuned"][peer]["rolled_back"][0] for row in results.healthy())
    return peer, f"{mean:.3g}x", f"{max(ratios):.3g}x", f"{less} of {len(ratios)}", f"{100 * worst:.1f} %"


def _harm(figures: Mapping[str, Any]) -> float:
    return max(float(figures["excess"][0]), LEAST_HARM)


def _of_quality(row: Row) -> bool:
    return FAULTS[row["fault"]].of_quality


def faults_table(results: Results, *, steady: bool) -> str:
    """Return what was made of each fault, ours beside the best tuned peer."""
    head: tuple[str, ...] = ("fault", "rps", "ours: missed", "p50; p90", "excess bad")
    head += ("along the schedule", "best peer within 1 %", "missed", "p50; p90", "excess bad", "ours / peer")
    where = () if steady else ("traffic",)
    rows = (
        _fault_row(results.compared(row), results.compared(row, "steps"), steady)
        for row in results.faulty(steady=steady)
    )
    return markdown_table((*where, *head), rows)


def promotion_table(results: Results) -> str:
    """Return how long healthy rollouts take, and how many are neither promoted nor rolled back."""
    head = ("traffic", "rps", *(f"ours, {pace}: p50; p90" for pace in PACES), "undecided", "Flagger: p50; p90")
    return markdown_table(
        head,
        (
            (
                *_about(row),
                *(_times(row["ours"][pace]["promotion_s"]) for pace in PACES),
                _percent(row["ours"]["evidence"]["undecided"]),
                _times(row["peers"]["tuned"]["Flagger"]["promotion_s"]),
            )
            for row in results.healthy()
        ),
    )


def losses(results: Results) -> str:
    """Return where goals were missed, one line each."""
    lines = [*_false_losses(results), *_harm_losses(results)]
    return "\n".join(f"- {line}" for line in lines) or "None in the cells that were run."


def run_text(found: Mapping[str, Any]) -> str:
    """Return what was run."""
    rows = found["cells"]
    runs = sum(part["runs"] for row in rows for part in row["ours"].values() if isinstance(part, dict))
    return (
        f"{len(rows)} cells, {runs:,} rollouts of ours and as many of each peer, {found['cpu_minutes']:g} minutes of "
        f"one core; code {found['versions']['ours']} (ours) and {found['versions']['peers']} (peers)."
    )


def _false_losses(results: Results) -> Iterator[str]:
    for row in results.healthy():
        for pace in PACES:
            share = row["ours"][pace]["rolled_back"]
            if share[1] > ALPHA:
                yield f"False rollbacks above alpha, {_where(row)}, {pace}: {_percent(share)} %."


def _harm_losses(results: Results) -> Iterator[str]:
    for steady in (True, False):
        for row in results.faulty(steady=steady):
            compared = results.compared(row)
            if compared.lost:
                ours, peer = row["ours"]["evidence"]["excess"][0], row["peers"]["tuned"][compared.best]["excess"][0]
                yield (
                    f"{_says(row)}, {_where(row)}: {ours:.3g} excess bad requests, {compared.best} "
                    f"{peer:.3g} ({compared.factor:.3g}x; the goal is {compared.allowed:g}x)."
                )


def _where(row: Row) -> str:
    return f"{CONDITIONS[row['condition']].says}, {row['rate']:g} rps, SLO {row['slo_ms']:g} ms"


def _healthy_row(row: Row) -> Sequence[str]:
    shares = [row["ours"][pace]["rolled_back"] for pace in PACES]
    return (*_about(row), *map(_false, shares), *(_false(row["peers"]["tuned"][peer]["rolled_back"]) for peer in PEERS))


def _fault_row(ours: Compared, steps: Compared, steady: bool) -> Sequence[str]:
    row, mine, theirs = ours.row, ours.row["ours"]["evidence"], ours.row["ours"]["steps"]
    says = _says(row)
    where = () if steady else (_about(row)[0],)
    schedule = f"{_missed(theirs)}; {_times(theirs['detection_s'], one=True)}; {_number(theirs['excess'])}"
    found = (*where, says, f"{row['rate']:g}", _missed(mine), _times(mine["detection_s"]))
    found += (_number(mine["excess"]), schedule)
    if not ours.best:
        return (*found, "none", NOTHING, NOTHING, NOTHING, NOTHING)
    peer = row["peers"]["tuned"][ours.best]
    factor = f"{ours.factor:.3g}x"
    shown = f"**{factor}**" if ours.lost else factor
    return (
        *found,
        ours.best,
        _missed(peer),
        _times(peer["detection_s"]),
        _number(peer["excess"]),
        shown,
    )


def _missed(figures: Mapping[str, Any]) -> str:
    """Return how many were promoted, and how many were not decided where that is more than a few."""
    undecided = figures["undecided"][0]
    return f"{_percent(figures['promoted'])} %" + (f", {100 * undecided:.3g} % undecided" if undecided > 0.001 else "")


def _says(row: Row) -> str:
    return FAULTS[row["fault"]].says + (" (tolerated)" if row["fault"] in TOLERATED else "")


def _about(row: Row) -> tuple[str, str]:
    tight = "" if row["slo_ms"] > 300 else ", SLO 300 ms"
    return f"{CONDITIONS[row['condition']].says}{tight}", f"{row['rate']:g}"


def _false(share: Sequence[float]) -> str:
    shown = _percent(share)
    return f"**{shown}**" if share[1] > ALPHA else shown


def _percent(share: Sequence[float]) -> str:
    middle, low, high = (100 * each for each in share)
    return f"{_short(middle)} ({_short(low)}–{_short(high)})"


def _short(percent: float) -> str:
    return f"{percent:.1f}" if percent >= 1 and percent < 99.95 else f"{percent:.2g}" if percent < 1 else "100"


def _number(values: Sequence[float]) -> str:
    return f"{values[0]:.3g} ({values[1]:.3g}–{values[2]:.3g})"


def _times(quantiles: Sequence[Sequence[float]] | None, *, one: bool = False) -> str:
    if quantiles is None:
        return NOTHING
    shown = [f"{middle:g} s ({low:g}–{high:g})" for middle, low, high in quantiles]
    return shown[0] if one else "; ".join(shown)


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
