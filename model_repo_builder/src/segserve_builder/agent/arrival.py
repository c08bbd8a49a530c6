"""Says in words how much of a large file has arrived, seldom enough for a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

LARGE_BYTES: Final = 64 * 10**6
"""Smaller files are here before anybody reads about them."""

_SHARES: Final = 20
_UNSIZED_BYTES: Final = 256 * 10**6


class DownloadProgress:
    """The progress of one fetch; `say` hears of each further twentieth, or quarter of a gigabyte."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._said: tuple[int | None, int] | None = None

    def __call__(self, done: int, size: int | None) -> None:
        """Take down that `done` of `size` bytes are here."""
        if (size or done) < LARGE_BYTES:
            return
        reached = (size, done * _SHARES // size if size else done // _UNSIZED_BYTES)
        if reached == self._said:
            return
        self._said = reached
        whole = f" of {size / 1e6:.0f}" if size else ""
        self._say(f"{done / 1e6:.0f}{whole} MB of the artifact are here")
