"""Waits for states. A deadline here ends only what hangs: no test's claim depends on how long it is."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

T = TypeVar("T")

HANG_S: Final = 300.0
"""Longer than anything takes on a machine whose cores are busy with something else."""
_POLL_S: Final = 0.03


def until(look: Callable[[], T], what: str, *, within_s: float = HANG_S) -> T:
    """Return what `look` gives once that is true."""
    deadline_s = time.monotonic() + within_s
    while not (found := look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {found!r}")
        time.sleep(_POLL_S)
    return found


@contextmanager
def meanwhile(action: Callable[[threading.Event], None]) -> Iterator[None]:
    """Run `action` in a thread for the duration of the block; the event that it is given is set at the block's end."""
    ended = threading.Event()
    thread = threading.Thread(target=action, args=(ended,))
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


async def connections_are_closed() -> None:
    """Return once the loop that runs this has no connection open: one that ends takes some of its turns to do so."""
    selector = asyncio.get_running_loop()._selector  # type: ignore[attr-defined]  # nothing public tells

    async def only_its_own_pipe() -> bool:
        return len(selector.get_map()) <= 1

    await eventually(only_its_own_pipe, "no connection is open any more")


async def eventually(look: Callable[[], Awaitable[T]], what: str, *, within_s: float = HANG_S) -> T:
    """Return what `look` gives once that is true, in an event loop."""
    deadline_s = time.monotonic() + within_s
    while not (found := await look()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {found!r}")
        await asyncio.sleep(_POLL_S)
    return found
