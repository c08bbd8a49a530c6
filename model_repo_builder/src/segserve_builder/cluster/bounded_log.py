"""A log file of limited size, which loses its beginning when it is full."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segserve_common.files import replace_file

MAX_BYTES: Final = 20 * 2**20


class BoundedLog:
    """Appends to a file; no other process may write to it."""

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append data; if the file exceeds its limit, keep about half of it."""
        self._file.write(data)
        if self._file.tell() > self._max_bytes:
            self._cut()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut(self) -> None:
        with self._path.open("rb") as old:
            old.seek(-(self._max_bytes // 2), 2)
            old.readline()  # the rest of a line whose beginning is cut off
            end = old.read()
        replace_file(self._path, end)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
