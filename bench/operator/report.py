"""The table of bench/out/operator.md; figures that missed their goal are bold."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from bench.smoke import output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DOCUMENT: Final = output("bench/out/operator.md")
BEGIN: Final = "<!-- operator: written by make bench-operator -->"
END: Final = "<!-- end of operator -->"
WEIGHT_GOALS_MS: Final = {"1": 100, "100": 150, "1000": 300}
COLD_GOAL_S: Final = 600
MEMORY_GOAL_MIB: Final = 1024
REST_GOAL_PERCENT: Final = 5
LOOK_GOAL_S: Final = 2.0
RECORD_GOAL_S: Final = 60.0
ETCD_GOAL_MB: Final = 500
COMPACTION_S: Final = 300.0
"""An API server has etcd forget what is older, every 5 minutes."""
LARGEST: Final = "10000"


def write_table(found: Mapping[str, Any]) -> None:
    """Put the table of all that was measured between the marks."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    lines = ["| what | measured | goal |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in _rows(found))]
    DOCUMENT.write_text(before + BEGIN + "\n" + "\n".join(lines) + "\n" + END + after)


def _rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    if applying := found.get("applying"):
        yield "apply to Ready, a pool and its first model", f"{applying['pool_and_model_s']:.2f} s", ""
        yield "apply to Ready, one more model in a group of its own", f"{applying['second_model_s']:.2f} s", ""
    for size, row in found.get("many", {}).items():
        yield from _size_rows(f"{int(size):,}", row, goals=size == LARGEST)
    if hour := found.get("rest_hour"):
        yield _rest_row(hour)
    if fleet := found.get("fleet"):
        yield from _fleet_rows(fleet)
    if row := found.get("looks"):
        shown = f"{_missed(row['cpu_s'], LOOK_GOAL_S, 's')} of CPU; {row['one_by_one_cpu_s']:g} s one by one"
        what = f"decisions of a look at {row['rollouts']:,} rollouts, {row['a_pool']} at once (load {row['load']:g})"
        yield what, shown, f"{LOOK_GOAL_S:g} s"
    if row is not None and "pass_ms" in row:
        yield from _pass_rows(row)
    for size, row in found.get("weights", {}).items():
        goal = WEIGHT_GOALS_MS[size]
        shown = f"{_missed(row['ms'], goal, 'ms')}, worst of {row['flips']}: {row['worst_ms']:g} ms"
        what = f"from a weight in a status to the first request on the new group, {_models(size)}"
        yield what, f"{shown}; {row['plan_written_ms']:g} ms until the plan is written", f"{goal} ms"
    yield from _envoy_row(found.get("weights", {}))


def _size_rows(size: str, row: Mapping[str, Any], *, goals: bool) -> Iterator[tuple[str, str, str]]:
    models, pools = _models(size), row["pools"]
    among = models if pools == 1 else f"{models} in {pools} pools"
    first, cold, rest = row["first_start"], row["cold_start"], row["rest_pass"]
    yield f"from nothing until all are Ready: {among}", f"{first['ready_s']:g} s, {first['cpu_s']:g} s of CPU", ""
    yield (
        f"one pass at rest, pool of {_models(str(row['models'] // pools))}",
        f"{rest['ms']:g} ms ({rest['per_s']:g} per second)",
        "",
    )
    yield _cold_row(cold, among, goals=goals)


def _rest_row(hour: Mapping[str, Any]) -> tuple[str, str, str]:
    writes, renewals = _missed(hour["writes"], 0, "writes"), hour["lease_renewals"]
    shown = f"{writes}, {hour['reads']:,} reads, {renewals} Lease renewals, {hour['cpu_percent']:g} % of a core"
    return f"an hour at rest, {_models(str(hour['models']))} ({hour['watched_s']:g} s watched)", shown, "0 writes"


def _pass_rows(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    pools = row["rollouts"] // row["a_pool"]
    among = f"{row['rollouts']:,} rollouts in {pools} pools of {row['models_of_a_pool']} models"
    total = _missed(round(pools * row["pass_ms"] / 1e3, 2), LOOK_GOAL_S, "s")
    shown = f"{total} of CPU: {row['pass_ms']:g} ms a pool, {row['writing_pass_ms']:g} ms where all records are written"
    yield f"whole look at {among}, without the calls for counts (load {row['load']:g})", shown, f"{LOOK_GOAL_S:g} s"


def _fleet_rows(fleet: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yield the rows of those parts that were measured."""
    among = f"{fleet['models']:,} models in {fleet['pools']} pools"
    if first := fleet.get("first_start"):
        shown = f"{first['ready_s']:g} s, {first['cpu_s']:g} s of CPU, peak memory {first['peak_mib']} MiB"
        yield f"from nothing until all are Ready: {among}{_load(first)}", shown, ""
    if stored := fleet.get("stored"):
        yield f"etcd at rest: {among}", f"{stored['objects_mb']:g} MB of objects", ""
    if cold := fleet.get("cold_start"):
        yield _cold_row(cold, f"{among}{_load(cold)}", goals=True)
    if rest := fleet.get("rest"):
        cpu = _missed(rest["cpu_percent"], REST_GOAL_PERCENT, "%")
        shown = f"{cpu} of a core, {rest['passes']} passes, {rest['writes']} writes"
        yield f"at rest: {among}{_load(rest)}", shown, f"{REST_GOAL_PERCENT} %, 0 writes"
    if rolling := fleet.get("rolling"):
        yield from _rolling_rows(fleet, rolling, among)


def _cold_row(cold: Mapping[str, Any], among: str, *, goals: bool) -> tuple[str, str, str]:
    seconds = _missed(cold["seconds"], COLD_GOAL_S if goals else None, "s")
    memory = _missed(cold["peak_mib"], MEMORY_GOAL_MIB if goals else None, "MiB")
    requests = sum(cold["requests"].values())
    goal = f"{COLD_GOAL_S} s, {MEMORY_GOAL_MIB} MiB" if goals else ""
    shown = f"{seconds}, {cold['cpu_s']:g} s of CPU, peak memory {memory}, {requests} requests, 0 writes"
    return f"cold start with everything already served: {among}", shown, goal


def _rolling_rows(fleet: Mapping[str, Any], rolling: Mapping[str, Any], among: str) -> Iterator[tuple[str, str, str]]:
    looks, records = rolling["pass_every_s"], rolling["record_every_s"]
    recorded = "each record once" if records is None else f"a record every {_missed(records, RECORD_GOAL_S, 's')}"
    text = f"a look every {_missed(looks, LOOK_GOAL_S, 's')}, {recorded}"
    yield (
        f"{fleet['rollouts']:,} rollouts at once: {among}{_load(rolling)}",
        f"{text}, {rolling['cpu_percent']:g} % of a core",
        f"{LOOK_GOAL_S:g} s, {RECORD_GOAL_S:g} s",
    )
    started = f"{rolling['started_s']:g} s from the edits until all candidates have their weight"
    yield "their start", f"{started}, peak memory {rolling['peak_mib']} MiB", ""
    if records is None or "stored_rolling" not in fleet:
        return
    history = fleet["rollouts"] / records * COMPACTION_S * rolling["record_kb"] / 1e3
    size = fleet["stored_rolling"]["objects_mb"]
    total = _missed(round(size + history), ETCD_GOAL_MB, "MB")
    text = f"{total}: {size:g} MB of objects, {history:.0f} MB of their records' history of 5 min"
    yield "etcd with the rollouts", f"{text}; a record has {rolling['record_kb']:g} kB", f"{ETCD_GOAL_MB} MB"


def _envoy_row(sizes: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    one, most = (sizes.get(size, {}).get("envoy_mib") for size in ("1", "1000"))
    if one is not None and most is not None:
        yield "Envoy's memory", f"{(most - one) / 999:.2f} MiB per model, {one:.0f} MiB with one", ""


def _models(count: str) -> str:
    return f"{int(count.replace(',', '')):,} model{'' if count == '1' else 's'}"


def _load(part: Mapping[str, Any]) -> str:
    return f" (load {part['load']:g})"


def _missed(value: float, goal: float | None, unit: str) -> str:
    text = f"{value:g} {unit}"
    return text if goal is None or value <= goal else f"**{text}**"
