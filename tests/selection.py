"""How tests are chosen and spread, and what a run says of those that it left out.

Property tests repeat themselves: the same examples each time. `make fuzz` gives them fresh seeds.
"""

from __future__ import annotations

import gc
import os
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings

from tools import TOOLS

# How long examples take, and take to be made, is the machine's matter.
settings.register_profile(
    "repeatable",
    max_examples=50,
    derandomize=True,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("fuzz", settings.get_profile("repeatable"), max_examples=100, derandomize=False)
settings.register_profile("edits", settings.get_profile("fuzz"), max_examples=400)
settings.load_profile("repeatable")

MUST_RUN_ALL: Final = "SEGSERVE_TEST_ALL"
"""Where it is set, a skipped test fails the run: this machine has what every test needs."""

_LEFT_OUT: Final = pytest.StashKey[Counter[str]]()
_BEGAN_S: Final = pytest.StashKey[float]()
_DISTANCES: Final = pytest.StashKey[dict[str, int]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the command that runs what this one leaves out."""
    parser.addoption("--rest-by", metavar="COMMAND", help="say at the end which tests are left to this command")
    parser.addoption(
        "--not-run", metavar="FILE", type=Path, help="append what did not run, for several runs to end with"
    )
    parser.addoption("--needs", metavar="TOOL", action="append", default=[], help="skip all tests without this tool")
    parser.addoption("--changed", metavar="COMMIT", help="run what meets the changes since a commit, nearest first")
    parser.addoption("--within-s", metavar="SECONDS", type=float, help="begin no test later than this")


def pytest_configure(config: pytest.Config) -> None:
    """Count what is left out from the start, and find out what a change meets."""
    config.stash[_LEFT_OUT] = Counter()
    config.stash[_BEGAN_S] = time.monotonic()
    if commit := config.getoption("changed"):
        from impact import changed_files, distances

        config.stash[_DISTANCES] = distances(config.rootpath, changed_files(config.rootpath, commit))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave files alone that meet no change."""
    distances = config.stash.get(_DISTANCES, None)
    if distances is None or not collection_path.name.startswith("test_"):
        return None
    return str(collection_path.relative_to(config.rootpath)) not in distances or None


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Let the collector of garbage pass over all that is there before the first test: it is a million objects."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a tool that is missing; several processes begin with the longest tests."""
    for item in items:
        for name in (*needs(item), *config.getoption("needs")):
            if not TOOLS[name].is_there():
                item.add_marker(pytest.mark.skip(reason=TOOLS[name].lack))
    if "PYTEST_XDIST_WORKER" in os.environ:
        longest_s = {item: max([0, *(mark.args[0] for mark in item.iter_markers("timeout"))]) for item in items}
        items.sort(key=lambda item: (item.get_closest_marker("platform") is None, -longest_s[item]))
    if distances := config.stash.get(_DISTANCES, None):
        items.sort(key=lambda item: distances[str(item.path.relative_to(config.rootpath))])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what would begin too late."""
    within_s = item.config.getoption("within_s")
    if within_s is not None and time.monotonic() - item.config.stash[_BEGAN_S] > within_s:
        pytest.skip(f"not begun within {within_s:.0f} s, nearer tests came first (`make test` runs it)")


def needs(item: pytest.Item) -> list[str]:
    """Return the names of the tools that a test needs."""
    return [name for marker in item.iter_markers("needs") for name in marker.args]


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what is left out by what it needs; `make same` has run what compares."""
    if items:
        left_out = [item for item in items if item.get_closest_marker("same") is None]
        items[0].config.stash[_LEFT_OUT].update(map(_requirement, left_out))


def _requirement(item: pytest.Item) -> str:
    if item.get_closest_marker("cluster"):
        return "Kubernetes"
    if named := needs(item):
        return TOOLS[named[0]].title
    if item.get_closest_marker("thorough"):
        return "more time"
    return "the real Triton and Envoy" if item.get_closest_marker("platform") else "nothing"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what this process left out to the one that reports; fail where all had to run."""
    config = session.config
    if hasattr(config, "workeroutput"):
        config.workeroutput["left out"] = dict(config.stash[_LEFT_OUT])
        return
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get(MUST_RUN_ALL) and reporter.stats.get("skipped") and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a process left out; all of them leave out the same."""
    if left_out := getattr(node, "workeroutput", {}).get("left out"):
        node.config.stash[_LEFT_OUT] = Counter(left_out)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say loudly what did not run, and why."""
    reports = terminalreporter.stats.get("skipped", ())
    skipped = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)
    lines = [f"{count} skipped: {reason}" for reason, count in skipped.most_common()]
    if skipped and os.environ.get(MUST_RUN_ALL):
        lines.append(f"{MUST_RUN_ALL} is set: a skipped test is a failure")
    if command := config.getoption("rest_by"):
        left_out = config.stash[_LEFT_OUT].most_common()
        lines += [f"{count} left to `{command}`: they need {what}" for what, count in left_out]
    if lines and (file := config.getoption("not_run")):
        with file.open("a", encoding="utf-8") as report:
            report.writelines(f"{line}\n" for line in lines)
    if lines:
        terminalreporter.section("NOT RUN HERE", sep="=", red=True, bold=True)
        for line in lines:
            terminalreporter.write_line(line)
