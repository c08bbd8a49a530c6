"""A golden set of labelled pictures."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.golden_pictures import Pictures


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    found = Pictures(tmp_path / "golden")
    found.write()
    return found
