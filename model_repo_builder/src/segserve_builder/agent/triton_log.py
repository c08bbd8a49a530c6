"""Finds in Triton's log why a model would not load: its API often says no more than that it would not."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

TAIL_BYTES: Final = 256 * 1024
_ERROR: Final = re.compile(r"^E\d{4} \S+ +\d+ \S+\] (?P<text>.*)$")


def position(log: Path) -> int:
    """Return the log's size now, to read from later."""
    try:
        return log.stat().st_size
    except OSError:
        return 0


def reason(log: Path, name: str, since: int) -> str | None:
    """Return the text of the last error about the model `name` logged after `since`; None without one."""
    found = [text for text in _errors(log, since) if name in text]
    return found[-1] if found else None


def _errors(log: Path, since: int) -> list[str]:
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            # A log that was cut short meanwhile is read from its start.
            file.seek(max(since if since <= size else 0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    matches = (_ERROR.match(line) for line in text.splitlines())
    return [match["text"].strip('"') for match in matches if match]
