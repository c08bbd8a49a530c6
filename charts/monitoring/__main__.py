"""Writes the chart's alerts and dashboards: `python -m charts.monitoring` from the repository's root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

from charts.monitoring.dashboards import DASHBOARDS
from charts.monitoring.rules import rules

FILES: Final = Path(__file__).parent.parent / "segserve/files"


def written() -> Iterator[tuple[Path, str]]:
    """Yield each file with its text."""
    head = "# Written by `make dashboards` from charts/monitoring/rules.py.\n"
    yield FILES / "alerts.yaml", head + yaml.safe_dump(rules(), sort_keys=False, width=120)
    for dashboard in DASHBOARDS:
        yield FILES / f"dashboards/{dashboard.name}.json", dashboard.text()


if __name__ == "__main__":
    for path, text in written():
        path.write_text(text)
