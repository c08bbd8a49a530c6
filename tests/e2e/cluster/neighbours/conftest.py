"""Programs of others that users have beside segserve, built from Go's modules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fakes.neighbours import build


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return the program of a folder beside this file, or that of a package."""
    return lambda name, package=".": build(name, tmp_path_factory.mktemp(name) / name, package)
