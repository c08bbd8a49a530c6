"""Everything killed under load, the operator before and after every write of its own, and every fault of the API.

    PYTHONPATH=tests python -m bench.operator_faults [--go-on]

Runs on the tests' cluster, about an hour; writes bench/out/operator_faults.json, and the tables and plot of
docs/evidence/reliability.md after each run. Ends at the first whose final state is not that of the undisturbed one.
`--go-on` leaves out the deaths and faults that were run before.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from functools import partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

from matplotlib.figure import Figure
from rich.console import Console

from bench.platform import ROOT
from bench.svg import BLUE, plot_style, save_svg
from cluster.images import ENVOY_IMAGE, OPERATOR_IMAGE, SERVER_IMAGE, images
from cluster.node import default_node
from fakes.cluster import Cluster, ImageNames
from fakes.crash_story import FAULTS, STAGES, Outcome, Point, Story, story

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KILLS: Final = "tests/e2e/cluster/test_kills.py"
OUT: Final = ROOT / "bench/out/operator_faults.json"
DOCUMENT: Final = ROOT / "docs/evidence/reliability.md"
PLOT: Final = ROOT / "docs/images/kills.svg"
LABELS: Final = {
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
    """Use the cluster that is up, or start it for the time of the block."""
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


def moments(told: Story, stage: str) -> list[Point]:
    """Return every moment of a stage at which the operator can die."""
    return [Point(stage, number, after) for number in range(1, told.writes[stage] + 1) for after in (False, True)]


def runs(told: Story) -> Iterator[tuple[str, str, str, Callable[[], Outcome]]]:
    """Yield the kind, stage and name of each run, and what makes it: each begins where the one before has ended."""
    pairs = zip_longest(moments(told, "apply"), moments(told, "delete"))
    for point in (*filter(None, chain.from_iterable(pairs)), *moments(told, "edit")):
        yield "deaths", point.stage, str(point), partial(told.die, point)
    for fault, stage in product(FAULTS, STAGES):
        yield "faults", stage, f"{fault}: {stage}", partial(told.meet, fault, stage)


def prove(told: Story, found: Json) -> None:
    """Make all runs that are not among what was found, and add them; AssertionError where one ends otherwise."""
    told.learn()
    found["writes"] = told.writes
    for kind, stage, name, run in runs(told):
        if name in found[kind]:
            continue
        told.reach(stage)
        outcome = run()
        found[kind][name] = {"seconds": outcome.seconds, "hits": outcome.hits}
        Console().print(f"{name}: as undisturbed after {outcome.seconds} s, {outcome.hits} hit")
        publish(found)


def publish(found: Json) -> None:
    """Write what was found, and the tables of it."""
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    text = DOCUMENT.read_text()
    for name, lines in TABLES.items():
        begin, end = f"<!-- {name}: written by make prove -->", f"<!-- end of {name} -->"
        head, rest = text.split(begin)
        text = "\n".join([head + begin, "", *lines(found), "", end + rest.split(end)[1]])
    DOCUMENT.write_text(text)
    draw(found["kills"])


def draw(kills: Json) -> None:
    """Draw how long the platform took to be whole again after each kill, with the requests that failed."""
    with plot_style():
        figure = Figure(figsize=(8.5, 3.6), layout="constrained")
        axes = figure.subplots()
        names = [LABELS.get(name, name) for name in map(_killed, kills)]
        axes.barh(names, [seen["back_s"] for seen in kills.values()], color=BLUE, height=0.6)
        for row, seen in enumerate(kills.values()):
            axes.text(seen["back_s"] + 0.4, row, f"{seen['failed']} of {seen['requests']} requests failed", va="center")
        axes.set(xlabel="seconds until everything was whole again", xlim=(0, 45))
        axes.grid(visible=False, axis="y")
        axes.invert_yaxis()
        save_svg(figure, PLOT)


def _killed(name: str) -> str:
    """Return what a test killed, from the test's name."""
    killed = re.search(r"process.*\[(.*)\]$", name)
    return f"{killed[1]} is killed" if killed else name.removeprefix("test_").replace("_", " ")


def _of_kills(found: Json) -> Iterator[str]:
    yield "| what | requests | in flight | failed | failed otherwise | whole again after |"
    yield "|---|---|---|---|---|---|"
    for name, seen in found["kills"].items():
        counts = " | ".join(str(seen[key]) for key in ("requests", "on_their_way", "failed", "failed_otherwise"))
        yield f"| {LABELS.get(_killed(name), _killed(name))} | {counts} | {seen['back_s']} s |"


def _of_deaths(found: Json) -> Iterator[str]:
    yield "| | writes undisturbed | moments | killed at | not reached | ended otherwise | slowest |"
    yield "|---|---|---|---|---|---|---|"
    for stage in STAGES:
        mine = [seen for name, seen in found["deaths"].items() if name.endswith(f"of the {stage}")]
        if len(mine) < 2 * found["writes"][stage]:
            continue  # a stage is published once all of its moments were run
        hit = [seen for seen in mine if seen["hits"]]
        counts = (found["writes"][stage], 2 * found["writes"][stage], len(hit), len(mine) - len(hit), 0)
        slowest = max((seen["seconds"] for seen in hit), default=0)
        yield f"| {stage} | {' | '.join(map(str, counts))} | {slowest} s |"


def _of_faults(found: Json) -> Iterator[str]:
    if not found["faults"]:
        return
    yield "| fault | calls hit | ended otherwise | apply, edit, delete took |"
    yield "|---|---|---|---|"
    for fault in FAULTS:
        mine = [found["faults"][name] for stage in STAGES if (name := f"{fault}: {stage}") in found["faults"]]
        if mine:
            took = ", ".join(str(seen["seconds"]) for seen in mine)
            yield f"| {fault} | {sum(seen['hits'] for seen in mine) or ''} | 0 | {took} s |"


TABLES: Final = {"kills": _of_kills, "deaths": _of_deaths, "faults": _of_faults}


def kills(folder: Path) -> Json:
    """Run the tests that kill things under load, and return what each has seen; an error where one fails."""
    report = folder / "kills.xml"
    options = ["-o", "junit_family=xunit1", "--junitxml", str(report)]  # the other family has no properties of tests
    subprocess.run([sys.executable, "-m", "pytest", KILLS, *options], cwd=ROOT, check=True)
    cases = ElementTree.parse(report).iter("testcase")
    return {case.attrib["name"]: json.loads(seen.attrib["value"]) for case in cases for seen in case.iter("property")}


def main() -> None:
    """Run all."""
    found: Json = {"kills": {}, "writes": {}, "deaths": {}, "faults": {}}
    if "--go-on" in sys.argv and OUT.exists():
        found |= json.loads(OUT.read_text())
    with tempfile.TemporaryDirectory() as name, a_cluster() as cluster:
        found["kills"] = kills(Path(name))
        with story(cluster, Path(name)) as told:
            prove(told, found)


if __name__ == "__main__":
    main()
