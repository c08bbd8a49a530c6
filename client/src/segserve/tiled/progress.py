"""A bar for people who watch; nothing where nobody does."""

from __future__ import annotations

import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    Tick: TypeAlias = "Callable[[int, int], None]"
    Progress: TypeAlias = "bool | Tick"


def shown(progress: Progress, total: int) -> AbstractContextManager[Tick]:
    """Return what is told after each tile how many of how many are done.

    `progress` False shows nothing, True a bar where standard error is a terminal; a function is called itself.
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
