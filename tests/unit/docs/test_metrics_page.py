"""The page of metrics names every metric of answers as steps tell it, and a real promtool reads its queries."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
import yaml

from fakes.docs import ROOT
from segserve_builder.steps.answer_metrics import METRIC_FAMILIES, MOST_PIXELS

PAGE: Final = (ROOT / "docs/reference/metrics.md").read_text()
QUERIES: Final = re.findall(r"```promql\n(.+?)```", PAGE, re.DOTALL)
NAMES: Final = {name for family in METRIC_FAMILIES for name in family.counters}


@pytest.mark.same
def test_the_page_has_every_metric_with_its_labels_and_help() -> None:
    rows = {
        f"| `{family.name}` | {', '.join(f'`{label}`' for label in family.labels)} | " for family in METRIC_FAMILIES
    }

    plain = PAGE.replace("|  |", "| |")
    assert {row for row in rows if row.replace("|  |", "| |") not in plain} == set()
    told = plain.replace("Histogram: ", "").replace("`", "").lower()
    assert {family.name for family in METRIC_FAMILIES if family.help.lower() not in told} == set()


@pytest.mark.same
def test_the_page_has_the_edges_of_every_histogram() -> None:
    for family in METRIC_FAMILIES:
        if family.edges:
            (edges,) = re.findall(rf"^\| .*`{family.name}`.* \| ([-\d., ]+) \|$", PAGE, re.MULTILINE)
            assert json.loads(f"[{edges}]") == list(family.edges)
    assert f"{MOST_PIXELS:,}" in PAGE


@pytest.mark.same
def test_every_metric_has_an_example_and_no_other_is_asked_for() -> None:
    asked = set(re.findall(r"segserve_\w+", " ".join(QUERIES)))

    assert asked <= NAMES
    shown = {family.name for family in METRIC_FAMILIES if asked.intersection(family.counters)}
    assert {family.name for family in METRIC_FAMILIES} == shown


@pytest.mark.needs("prometheus")
def test_promtool_reads_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"example:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": rules}]}))

    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
