"""A log file that never grows beyond a limit: its beginning goes, its end stays."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from segserve_common.files import replace_file

MOST_BYTES: Final = 20 * 2**20


class BoundedLog:
    """Appends to a file. Its only writer."""

    def __init__(self, path: Path, most_bytes: int = MOST_BYTES) -> None:
        self._path = path
        self._most_bytes = most_bytes
        self._file = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append; half of what is there is cut off where it is too much."""
        self._file.write(data)
        if self._file.tell() > self._most_bytes:
            self._cut()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut(self) -> None:
        with self._path.open("rb") as old:
            old.seek(-(self._most_bytes // 2), 2)
            old.readline()
            kept = old.read()
        replace_file(self._path, kept)
        self._file.close()
        self._file = self._path.open("ab", buffering=0)
