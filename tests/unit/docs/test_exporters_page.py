"""The page about exporters is what the matrix of tests/e2e/test_exporters.py holds."""

from __future__ import annotations

import json
import os

import pytest

from fakes.docs import ROOT
from networks.exporter_files import page

PAGE = ROOT / "docs/reference/exporters.md"
PACKAGES = ("ultralytics", "rfdetr", "transformers", "segmentation_models_pytorch", "torch")


@pytest.mark.same
def test_the_page_lists_what_the_matrix_holds() -> None:
    lines = (ROOT / "tests/exporters.lock").read_text().splitlines()
    locked = dict(line.split("==") for line in lines if not line.startswith("#"))
    measured = json.loads((ROOT / "bench/out/exporters.json").read_text())
    text = page({name: locked[name] for name in PACKAGES}, measured)
    if os.environ.get("SEGSERVE_WRITE_GOLDEN"):
        PAGE.write_text(text)

    assert PAGE.read_text() == text
