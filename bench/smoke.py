"""Smoke runs: a bench with the least load, its answers checked as in a whole run.

`make bench-tiled SMOKE=folder` and SEGSERVE_BENCH_SMOKE=folder make one. What it writes goes into the folder, by its
path in the project, and not into `bench/out` and the documentation.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

VARIABLE: Final = "SEGSERVE_BENCH_SMOKE"
_PROJECT: Final = Path(__file__).parent.parent


def is_smoke() -> bool:
    """Return whether this is a smoke run."""
    return bool(os.environ.get(VARIABLE))


def sized(whole: T, smoke: T) -> T:
    """Return the size of something in a whole run, or in a smoke run if this is one."""
    return smoke if is_smoke() else whole


def output(name: str) -> Path:
    """Return the path of a file that a bench writes. A page, of which only tables are written, is there before."""
    if not (folder := os.environ.get(VARIABLE)):
        return _PROJECT / name
    path = Path(folder).resolve() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".md" and not path.exists():
        shutil.copyfile(_PROJECT / name, path)
    return path
