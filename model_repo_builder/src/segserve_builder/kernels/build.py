"""Compiles all kernels into their cache, on all processors."""

from __future__ import annotations

import importlib
import multiprocessing
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import Any, Final

from segserve_builder.kernels import cache
from segserve_builder.kernels.sources import module_imports

MOST_PROCESSES: Final = 8
"""Each takes some 300 MB, and more would only wait for the longest modules."""


def compile_module(name: str) -> None:
    """Compile the kernels of a module: they have explicit signatures, so that importing it does that."""
    importlib.import_module(f"{__package__}.{name}")


def compile_all() -> None:
    """Compile every module, each once those that it imports are there to be loaded; raises what that raises."""
    order = TopologicalSorter(module_imports(cache.FOLDER))
    order.prepare()
    # Unlike `multiprocessing.Pool`, this one notices that a process was killed.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(multiprocessing.cpu_count(), MOST_PROCESSES), spawn) as pool:
        running: dict[Future[Any], str] = {}
        while order.is_active():
            running |= {pool.submit(compile_module, name): name for name in sorted(order.get_ready(), key=_shortness)}
            for done in wait(running, return_when=FIRST_COMPLETED).done:
                done.result()
                order.done(running.pop(done))
    cache.mark_complete()


def _shortness(name: str) -> int:
    return -(cache.FOLDER / f"{name}.py").stat().st_size
