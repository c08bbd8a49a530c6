"""Kills of every component under load, of the operator around each of its writes, and faults of the API.

    PYTHONPATH=tests python -m bench.operator_faults [--go-on]

Runs on the tests' cluster, about an hour; writes bench/out/operator_faults.json, and the tables and the plot of
docs/evidence/reliability.md after each run. Stops at the first run whose final state differs from that of the
undisturbed run. `--go-on` skips deaths and faults that have a result.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from matplotlib.figure import Figure
from rich.console import Console

from bench.platform import ROOT
from bench.svg import BLUE, plot_style, save_svg
from cluster.images import ENVOY_IMAGE, OPERATOR_IMAGE, SERVER_IMAGE, images
from cluster.node import default_node
from fakes.cluster import Cluster, ImageNames
from fakes.crash_story import FAULTS, STAGES, Outcome, Point, Story, story

KILLS: Final = "tests/e2e/cluster/test_kills.py"
OUT: Final = ROOT / "bench/out/operator_faults.json"
DOCUMENT: Final = ROOT / "docs/evidence/reliability.md"
PLOT: Final = ROOT / "docs/images/kills.svg"
LABELS: Final = {
    "its agent is killed": "an agent is killed",
    "a killed operator is not missed": "the operator is killed",
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
Json = dict[str, Any]


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Use the running cluster, or start one for the duration of the block."""
    node = default_node()
    was_up = node.is_up
    if not was_up:
        node.start()
    try:
        node.load(images())
        names = ImageNames(SERVER_IMAGE, OPERATOR_IMAGE, ENVOY_IMAGE)
        cluster = Cluster(node.kubeconfig, node.kubectl, names, "", node)
        cluster.install_crds()
        yield cluster
    finally:
        if not was_up:
            node.stop()


def moments(story_run: Story, stage: str) -> list[Point]:
    """Return all moments of a stage at which the operator is killed: before and after each write."""
    return [Point(stage, number, after) for number in range(1, story_run.writes[stage] + 1) for after in (False, True)]


def all_runs(story_run: Story) -> Iterator[tuple[str, str, str, Callable[[], Outcome]]]:
    """Yield the kind, stage, name and function of each run; each begins with the final state of the one before."""
    pairs = zip_longest(moments(story_run, "apply"), moments(story_run, "delete"))
    for point in (*filter(None, chain.from_iterable(pairs)), *moments(story_run, "edit")):
        yield "deaths", point.stage, str(point), partial(story_run.die, point)
    for fault, stage in product(FAULTS, STAGES):
        yield "faults", stage, f"{fault}: {stage}", partial(story_run.meet, fault, stage)


def prove(story_run: Story, results: Json) -> None:
    """Do all runs without a result, and add their results; raises `AssertionError` if a final state differs."""
    story_run.learn()
    results["writes"] = story_run.writes
    for kind, stage, name, run in all_runs(story_run):
        if name in results[kind]:
            continue
        story_run.reach(stage)
        outcome = run()
        results[kind][name] = {"seconds": outcome.seconds, "hits": outcome.hits}
        Console().print(f"{name}: as undisturbed after {outcome.seconds} s, {outcome.hits} hit")
        publish(results)


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
    killed = re.search(r"process.*\[(.*)\]$", name)
    return f"{killed[1]} is killed" if killed else name.removeprefix("test_").replace("_", " ")


def _of_kills(results: Json) -> Iterator[str]:
    yield "| what | requests | in flight | failed | failed otherwise | recovered after |"
    yield "|---|---|---|---|---|---|"
    for name, result in results["kills"].items():
        counts = " | ".join(str(result[key]) for key in ("requests", "on_their_way", "failed", "failed_otherwise"))
        yield f"| {LABELS.get(_killed(name), _killed(name))} | {counts} | {result['back_s']} s |"


def _of_deaths(results: Json) -> Iterator[str]:
    yield "| | writes undisturbed | moments | killed at | not reached | ended otherwise | slowest |"
    yield "|---|---|---|---|---|---|---|"
    for stage in STAGES:
        runs = [result for name, result in results["deaths"].items() if name.endswith(f"of the {stage}")]
        if len(runs) < 2 * results["writes"][stage]:
            continue  # a stage is published when all its moments have a result
        hit = [result for result in runs if result["hits"]]
        counts = (results["writes"][stage], 2 * results["writes"][stage], len(hit), len(runs) - len(hit), 0)
        slowest = max((result["seconds"] for result in hit), default=0)
        yield f"| {stage} | {' | '.join(map(str, counts))} | {slowest} s |"


def _of_faults(results: Json) -> Iterator[str]:
    if not results["faults"]:
        return
    yield "| fault | calls hit | ended otherwise | apply, edit, delete took |"
    yield "|---|---|---|---|"
    for fault in FAULTS:
        runs = [results["faults"][name] for stage in STAGES if (name := f"{fault}: {stage}") in results["faults"]]
        if runs:
            took = ", ".join(str(result["seconds"]) for result in runs)
            yield f"| {fault} | {sum(result['hits'] for result in runs) or ''} | 0 | {took} s |"


TABLES: Final = {"kills": _of_kills, "deaths": _of_deaths, "faults": _of_faults}


def kills(folder: Path) -> Json:
    """Run the tests that kill components under load, and return the properties that each records."""
    report = folder / "kills.xml"
    options = ["-o", "junit_family=xunit1", "--junitxml", str(report)]  # the default family has no properties of tests
    subprocess.run([sys.executable, "-m", "pytest", KILLS, *options], cwd=ROOT, check=True)
    cases = ElementTree.parse(report).iter("testcase")
    return {case.attrib["name"]: json.loads(each.attrib["value"]) for case in cases for each in case.iter("property")}


def main() -> None:
    """Run all kills, deaths and faults."""
    results: Json = {"kills": {}, "writes": {}, "deaths": {}, "faults": {}}
    if "--go-on" in sys.argv and OUT.exists():
        results |= json.loads(OUT.read_text())
    with tempfile.TemporaryDirectory() as name, a_cluster() as cluster:
        results["kills"] = kills(Path(name))
        with story(cluster, Path(name)) as story_run:
            prove(story_run, results)


if __name__ == "__main__":
    main()
