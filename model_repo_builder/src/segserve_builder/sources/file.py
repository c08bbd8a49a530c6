"""The source `file`: files of this machine, by absolute path or `file:` URI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from segserve_builder.errors import ArtifactMissingError

if TYPE_CHECKING:
    from typing import BinaryIO


class FileSource:
    """Regular files; a symbolic link is followed, since the digest pins what is read through it."""

    def open(self, uri: str) -> BinaryIO:
        """Open the file, or raise `ArtifactMissingError` where no regular file can be read there."""
        path = self.path(uri)
        if not path.is_file():
            seen = "a folder" if path.is_dir() else "nothing" if not path.exists() else "a special file"
            raise ArtifactMissingError(f"{uri!r} names {seen}; an artifact is a regular file")
        try:
            return path.open("rb")
        except OSError as error:
            raise ArtifactMissingError(f"{uri!r} cannot be read: {error.strerror}") from error

    def path(self, uri: str) -> Path:
        """Return the absolute path that `uri` names."""
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise ArtifactMissingError(f"{uri!r} is no file: URI: {error}") from error
        if parts.netloc not in ("", "localhost"):
            raise ArtifactMissingError(f"{uri!r} names the host {parts.netloc!r}; file: reads this machine only")
        path = Path(unquote(parts.path)) if parts.scheme else Path(uri)
        if not path.is_absolute():
            raise ArtifactMissingError(f"{uri!r} is relative; by now it must be an absolute path or file: URI")
        return path
