"""Compiles kernels into their cache, on all processors."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import Any, Final

from segserve_builder.kernels import cache
from segserve_builder.kernels.sources import module_imports, with_imports

MOST_PROCESSES: Final = 8
"""Each takes some 300 MB, and more would only wait for the longest modules."""


def compile_module(name: str) -> None:
    """Compile the kernels of a module: they have explicit signatures, so that importing it does that."""
    importlib.import_module(f"{__package__}.{name}")


def compile_modules(
    names: Collection[str] | None = None, report: Callable[[int, int], None] = lambda done, total: None
) -> None:
    """Compile modules, or all if there are no names, each once the modules that it imports can be loaded.

    `report` is called with the number of modules that are compiled and the number of all that will be. Raises
    `ValueError` for a name that is not a module of kernels, and what a module raises.
    """
    imports = module_imports(cache.FOLDER)
    if unknown := sorted(set(names or ()) - imports.keys()):
        raise ValueError(f"there is no module of kernels {', '.join(unknown)}; there are: {', '.join(sorted(imports))}")
    wanted = imports.keys() if names is None else with_imports(names, imports)
    order = TopologicalSorter({name: imports[name] for name in wanted})
    order.prepare()
    done = 0
    # Unlike `multiprocessing.Pool`, this one notices that a process was killed.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(multiprocessing.cpu_count(), MOST_PROCESSES), spawn) as pool:
        running: dict[Future[Any], str] = {}
        while order.is_active():
            running |= {pool.submit(compile_module, name): name for name in sorted(order.get_ready(), key=_shortness)}
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                order.done(running.pop(future))
                done += 1
                report(done, len(wanted))
    if names is None:
        cache.mark_complete()


def _shortness(name: str) -> int:
    return -(cache.FOLDER / f"{name}.py").stat().st_size
