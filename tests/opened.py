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
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the file to write to."""
    parser.addoption("--opened", metavar="FILE", type=Path, help="append the files of the project that tests opened")


def pytest_configure(config: pytest.Config) -> None:
    """Listen from the start, as tests are collected by files; append what was opened and imported at the end."""
    if not config.getoption("opened"):
        return
    root, plain, start = f"{config.rootpath}{os.sep}", io.open, subprocess.Popen.__init__
    found: set[str] = set()

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

    def append() -> None:
        patch.undo()
        add(getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
        # In one write: other processes of the run append as well.
        with config.getoption("opened").open("ab", buffering=0) as file:
            file.write("".join(f"{path}\n" for path in sorted(found)).encode())

    patch = pytest.MonkeyPatch()
    for module in (builtins, io):
        patch.setattr(module, "open", opened)
    patch.setattr(subprocess.Popen, "__init__", started)
    config.add_cleanup(append)
