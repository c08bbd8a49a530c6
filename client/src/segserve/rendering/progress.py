"""The bar of work in pieces, tiles or images, on a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import AbstractContextManager, aclosing, closing, contextmanager, nullcontext
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Tick: TypeAlias = Callable[[int, int], None]
"""Called after each piece with the numbers done and total; the total is 0 if it is unknown."""
Progress: TypeAlias = bool | Tick


def shown(progress: Progress, total: int, what: str) -> AbstractContextManager[Tick]:
    """Return a context with the function to call after each piece with the numbers done and total.

    `progress` False shows nothing; True a bar in a notebook, and on standard error if that is a terminal; a function is
    called as it is.
    """
    if callable(progress):
        return nullcontext(progress)
    return _bar(total, what) if progress else nullcontext(lambda _done, _total: None)


@contextmanager
def _bar(total: int, what: str) -> Iterator[Tick]:
    from rich.console import Console

    console = Console(stderr=True)
    if not (console.is_jupyter or console.is_terminal):
        yield lambda _done, _total: None
        return
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
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(what, total=total or None)
        yield lambda done, of: bar.update(task, completed=done, total=of or None)


def counted(results: Generator[T, None, None], progress: Progress, total: int) -> Generator[T, None, None]:
    """Yield results with the progress of their number; closing the generator closes theirs."""
    with closing(results), shown(progress, total, "images") as tick:
        for done, result in enumerate(results, 1):
            tick(done, total)
            yield result


async def counted_async(results: AsyncGenerator[T, None], progress: Progress, total: int) -> AsyncGenerator[T, None]:
    """Yield results as `counted` does."""
    async with aclosing(results):
        with shown(progress, total, "images") as tick:
            done = 0
            async for result in results:
                done += 1
                tick(done, total)
                yield result
