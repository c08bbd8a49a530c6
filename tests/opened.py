"""Which files of the project the tests open, themselves or by name in a command: a record is also of those.

A plugin of pytest. What a program that a test starts opens by itself is not seen: it is in the folders that a tier
covers. Python's audit events would show more, and make each `id()` several times as slow.
"""

from __future__ import annotations

import builtins
import io
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import pytest

_FOUND: Final = pytest.StashKey[set[str]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the file to write to."""
    parser.addoption("--opened", metavar="FILE", type=Path, help="append the files of the project that tests opened")


def pytest_configure(config: pytest.Config) -> None:
    """Listen from the start: tests are collected by files."""
    if not config.getoption("opened"):
        return
    found = config.stash[_FOUND] = set()
    root, plain, start = _root(config), io.open, subprocess.Popen.__init__

    def add(paths: Iterable[Any]) -> None:
        for path in paths:
            if isinstance(path, str | Path) and str(path).startswith(root):
                found.add(str(path)[len(root) :])

    def opened(file: Any, *arguments: Any, **options: Any) -> Any:
        add([file])
        return plain(file, *arguments, **options)

    def started(process: Any, args: Any, *arguments: Any, **options: Any) -> None:
        add(args if isinstance(args, list | tuple) else [])
        start(process, args, *arguments, **options)

    def restore() -> None:
        builtins.open = io.open = plain
        subprocess.Popen.__init__ = start  # type: ignore[method-assign]

    builtins.open = io.open = opened
    subprocess.Popen.__init__ = started  # type: ignore[assignment, method-assign]
    config.add_cleanup(restore)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Append what this process opened and imported."""
    if (found := config.stash.get(_FOUND, None)) is not None:
        files = (getattr(module, "__file__", None) or "" for module in tuple(sys.modules.values()))
        root = _root(config)
        imported = {file.removeprefix(root) for file in files if file.startswith(root)}
        # In one write: other processes of the run append as well.
        with config.getoption("opened").open("ab", buffering=0) as file:
            file.write("".join(f"{path}\n" for path in sorted(found | imported)).encode())


def _root(config: pytest.Config) -> str:
    return f"{config.rootpath}{os.sep}"
