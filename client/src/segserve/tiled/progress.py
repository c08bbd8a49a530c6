"""Progress of a run: a bar on a terminal, or a function of the caller's."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeAlias

Tick: TypeAlias = Callable[[int, int], None]
Progress: TypeAlias = bool | Tick


def shown(progress: Progress, total: int) -> AbstractContextManager[Tick]:
    """Return a context with the function to call after each tile with the numbers done and total.

    `progress` False shows nothing, True a bar if standard error is a terminal; a function is called as it is.
    """
    if callable(progress):
        return nullcontext(progress)
    if not progress or not sys.stderr.isatty():
        return nullcontext(_silent)
    return _bar(total)


def _silent(_done: int, _total: int) -> None:
    pass


@contextmanager
def _bar(total: int) -> Iterator[Tick]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("tiles", total=total)
        yield lambda done, of: bar.update(task, completed=done, total=of)
