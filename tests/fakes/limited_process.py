"""A child process with little address space: what takes too much memory in it fails, and nothing else does."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from typing import Any

MIB = 2**20


def run_within(memory_bytes: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call a function of a module in a new process; AssertionError if it raises there, or needs more memory."""
    child = multiprocessing.get_context("spawn").Process(
        target=_limited, args=(memory_bytes, function, arguments), daemon=True
    )
    child.start()
    child.join()
    assert child.exitcode == 0, f"{function.__name__} ended with {child.exitcode}; its traceback is above"


def _limited(memory_bytes: int, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    function(*arguments)
