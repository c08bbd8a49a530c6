"""Functions that run in Debian's Python, the only one with a torchvision for the CPU, as if they were here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from oracles.worker import receive, send
from tools import DEBIAN_PYTHON as PYTHON

if TYPE_CHECKING:
    from types import TracebackType

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


class DebianError(Exception):
    """A function raised there; the text is its traceback."""


class Debian:
    """A process that calls the functions of one file; use it as a context."""

    def __init__(self, functions: Path) -> None:
        self._functions = functions

    def __enter__(self) -> Debian:
        if not PYTHON.is_file():
            raise FileNotFoundError(f"{PYTHON} is missing: `make oracles` makes it")
        self._process = subprocess.Popen(
            [str(PYTHON), str(Path(__file__).with_name("worker.py")), str(self._functions)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | ONE_THREAD,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cast("IO[bytes]", self._process.stdin).close()
        cast("IO[bytes]", self._process.stdout).close()
        self._process.wait(10)

    def call(self, name: str, *arguments: Any) -> Any:
        """Return what the function gives; tuples come back as lists, numpy scalars as numbers."""
        return self._ask(name, arguments)["result"]

    def again_s(self, name: str) -> float:
        """Call a function with the last call's arguments, and return how long it took there."""
        seconds: float = self._ask(name, None)["seconds"]
        return seconds

    def _ask(self, name: str, arguments: tuple[Any, ...] | None) -> dict[str, Any]:
        send(cast("Any", self._process.stdin), (name, arguments))
        answer: dict[str, Any] = receive(cast("Any", self._process.stdout))
        if "error" in answer:
            raise DebianError(answer["error"])
        return answer
