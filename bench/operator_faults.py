"""Kills of every component under load, of the operator around each of its writes, and faults of the API.

    PYTHONPATH=tests python -m bench.operator_faults [--go-on] [--only KIND ...] [--at-once N]

Runs on the tests' cluster, about two hours; writes bench/out/operator_faults.json, its tables in
bench/out/reliability.md and docs/images/kills.svg after each run. The exit status is 1 if a final state differs from
that of the undisturbed run. `--go-on` skips deaths and faults that ended as undisturbed, `--only` runs some of kills,
deaths and faults, and `--at-once` runs so many namespaces side by side.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any, Final, TypeAlias
from xml.etree import ElementTree

from matplotlib.figure import Figure
from rich.console import Console

from bench.platform import ROOT
from bench.smoke import output, sized
from bench.svg import BLUE, plot_style, save_svg
from fakes.cluster import Cluster, running_cluster
from fakes.crash_story import FAULTS, LONG_FAULT, LONG_FAULT_S, STAGES, Outcome, Point, Story, story

KILLS: Final = "tests/e2e/cluster/test_kills.py" + sized("", "::test_a_killed_operator_is_not_missed")
OUT: Final = output("bench/out/operator_faults.json")
DOCUMENT: Final = output("bench/out/reliability.md")
PLOT: Final = output("docs/images/kills.svg")
LABELS: Final = {
    "its agent is killed": "an agent is killed",
    "its agent is out of memory": "an agent is out of memory",
    "a killed operator is not missed": "the operator is killed",
    "an operator whose memory is used up is not missed": "the operator is out of memory",
    "an api server that hangs is not missed and an envoy that dies meanwhile comes back with the last plan": (
        "the API server hangs, an Envoy dies meanwhile"
    ),
    "a server that is deleted is replaced and no request fails": "a server pod is deleted",
    "a gateway that is deleted is replaced and no request fails[new connections]": (
        "a gateway pod is deleted, new connections"
    ),
    "a gateway that is deleted is replaced and no request fails[kept connections]": (
        "a gateway pod is deleted, kept connections"
    ),
    "a killed kubelet is not missed and then does what was to be done meanwhile": "the kubelet is killed",
}
"""Short names of tests in the table and in the plot."""
KINDS: Final = ("kills", "deaths", "faults")
Json: TypeAlias = dict[str, Any]


def moments(writes: int, stage: str) -> list[Point]:
    """Return all moments of a stage at which the operator is killed: before and after each write."""
    return [Point(stage, number, after) for number in range(1, writes + 1) for after in (False, True)]


@dataclass(frozen=True, slots=True)
class Run:
    """One stage with something going wrong."""

    kind: str
    stage: str
    name: str
    start: Callable[[Story], Outcome]


def all_runs(writes: dict[str, int]) -> Iterator[Run]:
    """Yield all runs; in one namespace each begins with the final state of the one before."""
    pairs = zip_longest(moments(writes["apply"], "apply"), moments(writes["delete"], "delete"))
    yield Run("faults", "apply", LONG_FAULT, partial(Story.endure, seconds=LONG_FAULT_S))
    for fault, stage in product(FAULTS, STAGES):
        yield Run("faults", stage, f"{fault}: {stage}", partial(Story.meet, fault=fault, stage=stage))
    for point in (*filter(None, chain.from_iterable(pairs)), *moments(writes["edit"], "edit")):
        yield Run("deaths", point.stage, str(point), partial(Story.die, point=point))


@dataclass
class Proof:
    """Runs that are still to be made, by several threads, and the results of all."""

    cluster: Cluster
    folder: Path
    results: Json
    undisturbed: dict[int | None, Json] = field(default_factory=dict)
    runs: deque[Run] = field(default_factory=deque)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def learn(self, kinds: Collection[str]) -> None:
        """Note how the stages end undisturbed, and list the runs of these kinds without a good result."""
        with story(self.cluster, self.folder) as undisturbed:
            undisturbed.learn()
        self.undisturbed, self.results["writes"] = undisturbed.undisturbed, undisturbed.writes
        runs = [run for run in all_runs(undisturbed.writes) if run.kind in kinds]
        runs = sized(runs, [runs[1], runs[-1]])  # the first one takes ten minutes
        self.runs.extend(run for run in runs if "error" in self.results[run.kind].get(run.name, {"error": ""}))

    def work(self, worker: int) -> None:
        """Make runs until none is left, in a new namespace after each that ended otherwise."""
        folder = self.folder / f"worker-{worker}"
        folder.mkdir()
        cluster = replace(self.cluster)  # with connections of its own
        while self.runs:
            with story(cluster, folder) as story_run:
                story_run.undisturbed, story_run.writes = self.undisturbed, self.results["writes"]
                while self.runs and self._make(self.runs.popleft(), story_run):
                    pass
        cluster.close()

    def _make(self, run: Run, story_run: Story) -> bool:
        try:
            story_run.reach(run.stage)
            outcome = run.start(story_run)
        except AssertionError as error:
            (self.folder / f"{run.name}.log").write_text(str(error))
            said = str(error).splitlines()[0][:1000]
            self._note(run, {"error": said}, f"ended otherwise: {said}")
            return False
        self._note(
            run,
            {"seconds": outcome.seconds, "hits": outcome.hits},
            f"as undisturbed after {outcome.seconds} s, {outcome.hits} hit",
        )
        return True

    def _note(self, run: Run, result: Json, words: str) -> None:
        with self.lock:
            self.results[run.kind][run.name] = result
            Console().print(f"{run.name}: {words}; {len(self.runs)} left")
            publish(self.results)


def prove(cluster: Cluster, folder: Path, results: Json, kinds: Collection[str], at_once: int) -> None:
    """Make all runs of these kinds that have no good result, and add their results."""
    proof = Proof(cluster, folder, results)
    proof.learn(kinds)
    with ThreadPoolExecutor(at_once) as pool:
        for done in [pool.submit(proof.work, worker) for worker in range(at_once)]:
            done.result()


def publish(results: Json) -> None:
    """Write the results and their tables."""
    OUT.write_text(json.dumps(results, indent=1) + "\n")
    text = DOCUMENT.read_text()
    for name, lines in TABLES.items():
        begin, end = f"<!-- {name}: written by make prove -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = "\n".join([head + begin, "", *lines(results), "", end + rest.split(end)[1]])
    DOCUMENT.write_text(text)
    draw(results["kills"])


def draw(kills: Json) -> None:
    """Plot the recovery time after each kill, with the number of failed requests."""
    with plot_style():
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        axes = figure.subplots()
        names = [LABELS.get(name, name) for name in map(_killed, kills)]
        axes.barh(names, [result["back_s"] for result in kills.values()], color=BLUE, height=0.6)
        for row, result in enumerate(kills.values()):
            label = f"{result['failed']} of {result['requests']} requests failed"
            axes.text(result["back_s"] + 0.4, row, label, va="center")
        axes.set(xlabel="seconds until full recovery", xlim=(0, 50))
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        save_svg(figure, PLOT)


def _killed(name: str) -> str:
    """Return what a test kills, from its name."""
    killed = re.search(r"(process|memory).*\[(.*)\]$", name)
    if killed is None:
        return name.removeprefix("test_").replace("_", " ")
    return f"{killed[2]} is killed" if killed[1] == "process" else f"{killed[2]} is out of memory"


def _of_kills(results: Json) -> Iterator[str]:
    yield "| what | requests | in flight | failed | failed otherwise | recovered after |"
    yield "|---|---|---|---|---|---|"
    for name, result in results["kills"].items():
        counts = " | ".join(str(result[key]) for key in ("requests", "on_their_way", "failed", "failed_otherwise"))
        yield f"| {LABELS.get(_killed(name), _killed(name))} | {counts} | {result['back_s']} s |"


def _of_deaths(results: Json) -> Iterator[str]:
    yield "| | writes undisturbed | moments | run | killed at | not reached | ended otherwise | slowest |"
    yield "|---|---|---|---|---|---|---|---|"
    for stage in STAGES:
        runs = [result for name, result in results["deaths"].items() if name.endswith(f"of the {stage}")]
        ended = [result for result in runs if "error" not in result]
        hit = [result for result in ended if result["hits"]]
        writes = results["writes"].get(stage, 0)
        counts = (writes, 2 * writes, len(runs), len(hit), len(ended) - len(hit), len(runs) - len(ended))
        slowest = max((result["seconds"] for result in hit), default=0)
        yield f"| {stage} | {' | '.join(map(str, counts))} | {slowest} s |"
    yield from ("", "| the operator dies | seconds until the end, by the number of the write |", "|---|---|")
    for stage, when in product(STAGES, ("before", "after")):
        ends = [results["deaths"].get(f"{when} write {n + 1} of the {stage}") for n in range(results["writes"][stage])]
        yield f"| {when} a write of the {stage} | {', '.join(map(_end, ends))} |"


def _end(result: Json | None) -> str:
    """Return what became of one death."""
    if result is None:
        return "-"
    if "error" in result:
        return "ended otherwise"
    return f"{result['seconds']:.0f}" if result["hits"] else "not reached"


def _of_faults(results: Json) -> Iterator[str]:
    if not results["faults"]:
        return
    yield "| fault | calls hit | ended otherwise | apply, edit, delete took |"
    yield "|---|---|---|---|"
    for fault in (*FAULTS, LONG_FAULT):
        names = [f"{fault}: {stage}" for stage in STAGES] if fault in FAULTS else [fault]
        runs = [results["faults"].get(name, {}) for name in names]
        if any(runs):
            took = ", ".join(str(run.get("seconds", "not ended" if run else "not run")) for run in runs)
            hits, otherwise = sum(run.get("hits", 0) for run in runs), sum("error" in run for run in runs)
            yield f"| {fault} | {hits or ''} | {otherwise} | {took} s |"


TABLES: Final = {"kills": _of_kills, "deaths": _of_deaths, "faults": _of_faults}


def kills(folder: Path) -> Json:
    """Run the tests that kill components under load, and return the properties that each records."""
    report = folder / "kills.xml"
    options = ["-o", "junit_family=xunit1", "--junitxml", str(report)]  # the default family has no properties of tests
    subprocess.run([sys.executable, "-m", "pytest", KILLS, *options], cwd=ROOT, check=True)
    cases = ElementTree.parse(report).iter("testcase")
    return {case.attrib["name"]: json.loads(each.attrib["value"]) for case in cases for each in case.iter("property")}


def main() -> None:
    """Run kills, deaths and faults; the exit status is 1 if one ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--go-on", action="store_true")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--at-once", type=int, default=1)
    chosen = parser.parse_args()
    results: Json = {"kills": {}, "writes": {}, "deaths": {}, "faults": {}}
    if OUT.exists() and (chosen.go_on or set(chosen.only) != set(KINDS)):
        kept = json.loads(OUT.read_text())
        results |= kept if chosen.go_on else {kind: kept[kind] for kind in kept if kind not in chosen.only}
    with tempfile.TemporaryDirectory() as name, running_cluster() as cluster:
        if "kills" in chosen.only:
            results["kills"] = kills(Path(name))
        if set(chosen.only) - {"kills"}:
            prove(cluster, Path(name), results, chosen.only, chosen.at_once)
    otherwise = [name for kind in ("deaths", "faults") for name, result in results[kind].items() if "error" in result]
    if otherwise:
        sys.exit("\n".join(["ended otherwise:", *otherwise]))


if __name__ == "__main__":
    main()
