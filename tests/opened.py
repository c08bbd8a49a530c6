"""Which files of the project the tests open, themselves or by name in a command: a record is also of those.

A plugin of pytest. What a program that a test starts opens by itself is not seen: it is in the folders that a tier
covers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import pytest

_OPENED: Final = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the file to write to."""
    parser.addoption("--opened", metavar="FILE", type=Path, help="append the files of the project that tests opened")


def pytest_configure(config: pytest.Config) -> None:
    """Listen from the start: modules are opened as tests are collected."""
    if not config.getoption("opened"):
        return
    opened = config.stash[_OPENED] = set()
    root = f"{config.rootpath}{os.sep}"

    def listen(event: str, arguments: tuple[Any, ...]) -> None:
        paths: list[Any] = []
        if event == "open":
            paths = [arguments[0]]
        elif event == "subprocess.Popen":
            paths = arguments[1] if isinstance(arguments[1], list | tuple) else []
        for path in paths:
            if isinstance(path, str | Path) and str(path).startswith(root):
                opened.add(str(path)[len(root) :])

    sys.addaudithook(listen)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Append what this process opened; a compiled module stands for its source."""
    if (opened := config.stash.get(_OPENED, None)) is not None:
        sources = {
            str(path.parents[1] / f"{path.name.partition('.')[0]}.py") if path.suffix == ".pyc" else str(path)
            for path in map(Path, opened.copy())
        }
        # In one write: other processes of the run append as well.
        with config.getoption("opened").open("ab", buffering=0) as file:
            file.write("".join(f"{path}\n" for path in sorted(sources)).encode())
