"""Protocols of sources of artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from segserve_builder.sources.access import Access


class Stream(Protocol):
    """Bytes of a file from some offset on."""

    @property
    def start(self) -> int:
        """Offset of the first byte in the file: the requested one, or 0 if the source cannot resume."""

    @property
    def size(self) -> int | None:
        """Size of the whole file in bytes; None if the source does not report it."""

    @property
    def identity(self) -> str | None:
        """A value that changes with the file, such as an ETag; without one (None) nothing is resumed."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end. Raises `OSError` if they break off."""


class ArtifactSource(Protocol):
    """A way to read the files that URIs of a scheme name."""

    def open(self, uri: str, access: Access, start: int = 0) -> AbstractContextManager[Stream]:
        """Open the file at `uri` from the byte `start` on.

        Raises `SourceDeniedError` if `access` does not allow it, before anything is sent; `ArtifactMissingError` if
        there is no such file, and its subclass `SourceUnavailableError` if its server does not answer now.
        """


@runtime_checkable
class FolderSource(ArtifactSource, Protocol):
    """A source that can list the files of a folder."""

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of all files below the folder `uri`, relative to it; raises as `open` does."""
