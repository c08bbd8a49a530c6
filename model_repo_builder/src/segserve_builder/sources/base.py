"""What a source of artifacts is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from segserve_builder.sources.access import Access


class Stream(Protocol):
    """Bytes as they arrive."""

    @property
    def start(self) -> int:
        """The place of the first byte: the one that was asked for, or 0 where the source cannot resume."""
        ...

    @property
    def size(self) -> int | None:
        """How many bytes there are in all; None where the source does not say."""
        ...

    @property
    def identity(self) -> str | None:
        """What changes with the bytes, such as an ETag; None where there is nothing, so that nothing is resumed."""
        ...

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none once all were read. Raises `OSError` where they break off."""
        ...


class Source(Protocol):
    """One way to read the bytes that a URI names."""

    def open(self, uri: str, access: Access, start: int = 0) -> AbstractContextManager[Stream]:
        """Open the bytes at `uri` from the byte `start` on.

        Raises `SourceDeniedError` for what `access` does not allow, before anything was sent; `ArtifactMissingError`
        where nothing is there, or its server does not answer (`retryable` says whether that may pass).
        """
        ...


@runtime_checkable
class FolderSource(Source, Protocol):
    """A source that can name the files of a folder."""

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of all files below the folder `uri`, relative to it; raises as `open` does."""
        ...
