"""Signals that end a command."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def ends_on_signals() -> Iterator[None]:
    """Let SIGTERM, SIGHUP and a terminal's Ctrl-C raise in the block.

    Signals that the parent process ignores stay ignored, as `nohup` requires, except a Ctrl-C meant only for this
    process: a shell without job control ignores it for everything it starts in the background, with the input closed,
    and these processes pass that on.
    """

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    ours: dict[int, Callable[[int, FrameType | None], object]] = {
        number: end for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL
    }
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and _has_the_terminal():
        ours[signal.SIGINT] = signal.default_int_handler
    former = {number: signal.signal(number, handler) for number, handler in ours.items()}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _has_the_terminal() -> bool:
    """Return whether input typed at a terminal goes to this process."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # the input is not a terminal
        return False
