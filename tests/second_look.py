"""Results of a run of pytest, read from its report log, and a second look at what failed.

A test that failed is run again alone, once, in a fresh process, after all others have ended. If it passes then, it is
flaky: the run is green, and says so loudly. If it fails, the run is red. There is no second look at what is more than
a few plain failures: errors of the collection, a process that was lost, more failures than `MOST_TESTS`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from verdicts import MACHINE_SECTION

MOST_TESTS: Final = 5
MOST_S: Final = 300.0
_OF_A_LOST_PROCESS: Final = "???"  # what pytest-xdist calls the phase in which a worker ended
_STOPPED: Final = 2
# Exit statuses of pytest with results: tests failed, or the run stopped after some failures.
_RED: Final = (1, _STOPPED)


@dataclass(slots=True)
class Results:
    """Outcomes by test id: passed, failed, skipped, xfailed or xpassed; seconds by test id; failures in words."""

    outcomes: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    """What is wrong with the run itself, so that no second look helps."""
    flaky: dict[str, str] = field(default_factory=dict)
    """The first failure of each test that passed alone."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Why each test was skipped that was."""

    def having(self, *outcomes: str) -> list[str]:
        """Return the tests with one of these outcomes."""
        return [test for test, outcome in self.outcomes.items() if outcome in outcomes]

    def add(self, other: Results) -> None:
        """Take over the results of another run of the same tests; a failure in either is a failure."""
        failed = self.having("failed")
        self.outcomes |= other.outcomes | dict.fromkeys(failed, "failed")
        self.failures = other.failures | self.failures
        self.skipped |= other.skipped
        self.broken += other.broken
        for test, seconds in other.seconds.items():
            self.seconds[test] = self.seconds.get(test, 0.0) + seconds


def run(command: Sequence[str], timeout_s: float | None = None) -> Results:
    """Run pytest by a command, with its output shown, and return its results."""
    with tempfile.TemporaryDirectory(prefix="segserve-report-") as folder:
        log = Path(folder, "report.jsonl")
        # As one word: a worker of pytest-xdist takes a second one for a path, whose folders decide the root folder.
        command = [*command, f"--report-log={log}"]
        try:
            status = subprocess.run(command, check=False, timeout=timeout_s).returncode
        except subprocess.TimeoutExpired:
            status = None
        results = _read(log)
    if status is None:
        results.broken.append(f"not done after {timeout_s:.0f} s")
    elif status == _STOPPED and len(results.having("failed")) <= MOST_TESTS:
        results.broken.append("pytest was interrupted")
    elif status not in (0, *_RED) or (status in _RED and not results.having("failed", "skipped")):
        results.broken.append(f"pytest ended with exit status {status}")
    return results


def _read(log: Path) -> Results:
    results = Results()
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        report = json.loads(line)
        match report["$report_type"]:
            case "CollectReport" if report["outcome"] == "failed":
                results.broken.append(f"{report['nodeid']} cannot be collected")
            case "TestReport":
                _add(results, report)
    return results


def _add(results: Results, report: Mapping[str, Any]) -> None:
    test, outcome = report["nodeid"], report["outcome"]
    results.seconds[test] = results.seconds.get(test, 0.0) + report["duration"]
    if report["when"] == _OF_A_LOST_PROCESS:
        results.broken.append(str(report["longrepr"]))
    if "wasxfail" in report:
        outcome = {"skipped": "xfailed", "passed": "xpassed"}[outcome]
    if outcome == "skipped":
        results.skipped[test] = str(report["longrepr"][2]).removeprefix("Skipped: ")
    if outcome == "failed":
        results.failures.setdefault(test, _in_words(report))
    # One of three phases: what failed or was skipped in one of them did so on the whole.
    if outcome == "passed":
        results.outcomes.setdefault(test, outcome)
    elif results.outcomes.get(test) != "failed":
        results.outcomes[test] = outcome


def _in_words(report: Mapping[str, Any]) -> str:
    text = report["longrepr"]
    if isinstance(text, dict):
        crash = text["reprcrash"]
        text = f"{crash['path']}:{crash['lineno']}: {crash['message']}"
    machine = [content for title, content in report["sections"] if title == MACHINE_SECTION]
    return "\n".join([f"in {report['when']}: {text}", *machine])


def look_again(results: Results, command: Sequence[str]) -> None:
    """Run what failed again, each test alone by `command`; what passes becomes flaky."""
    failed = results.having("failed")
    if not failed or results.broken or len(failed) > MOST_TESTS:
        return
    print("================ SECOND LOOK: each alone, in a fresh process ================", flush=True)
    end_s = time.monotonic() + MOST_S
    for test in failed:
        left_s = end_s - time.monotonic()
        again = run([*command, test], timeout_s=left_s) if left_s > 0 else Results()
        results.seconds[test] += again.seconds.get(test, 0.0)
        if again.outcomes.get(test) == "passed" and not again.broken:
            results.outcomes[test] = "passed"
            results.flaky[test] = results.failures.pop(test)
