"""What a failed test says and whether it counts: the machine's load beside the failure, and the quarantine.

A plugin of pytest. A test that `quarantine.txt` lists runs and never blocks: it is expected to fail, and may pass.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

import pytest

MACHINE_SECTION: Final = "Machine when it failed"
_PRESSURE: Final = Path("/proc/pressure/cpu")


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A test that failed without a cause in the change, since when it is listed, and what is known of the cause."""

    nodeid: str
    since: date
    cause: str


def quarantined(root: Path) -> list[Quarantined]:
    """Return what `tests/quarantine.txt` lists: an id, a date and a cause a line; ValueError for any other line."""
    path = root / "tests/quarantine.txt"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        if line and not line.startswith("#"):
            try:
                nodeid, since, cause = line.rsplit(" | ", 2)
                found.append(Quarantined(nodeid, date.fromisoformat(since), cause))
            except ValueError as error:
                raise ValueError(f"{path}: {line!r} is not `id | YYYY-MM-DD | cause`") from error
    return found


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the failures of quarantined tests pass."""
    listed = {each.nodeid: each for each in quarantined(config.rootpath)}
    for item in items:
        if (entry := listed.get(item.nodeid)) is not None:
            item.add_marker(pytest.mark.xfail(reason=f"quarantined since {entry.since}: {entry.cause}", strict=False))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[Any]:
    """Add to a failure how busy the machine was."""
    report = yield
    if report.failed:
        load = " ".join(f"{average:.1f}" for average in os.getloadavg())
        pressure = ""
        with contextlib.suppress(OSError):
            pressure = f"; CPU pressure: {_PRESSURE.read_text().splitlines()[0]}"
        report.sections.append((MACHINE_SECTION, f"load {load} on {os.cpu_count()} cores{pressure}"))
    return report
