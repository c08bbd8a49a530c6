"""What a source of artifacts is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class Stream(Protocol):
    """Bytes as they arrive."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none once all were read. Raises `OSError`."""
        ...


class Source(Protocol):
    """One way to read the bytes that a URI names."""

    def open(self, uri: str) -> AbstractContextManager[Stream]:
        """Open the bytes at `uri`, or raise `ArtifactMissingError`."""
        ...
