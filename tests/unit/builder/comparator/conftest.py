from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Yield a folder whose path leaves room for the name of a socket: 107 characters in all."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
