"""The sources `file` and `pvc`: files of this machine, and of claims that a pool's servers mount (pvc://claim/path)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final
from urllib.parse import unquote, urlsplit

from segserve_builder.errors import ArtifactMissingError, SourceDeniedError
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream

_CLAIM: Final = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


class LocalFiles:
    """Base of sources of local files: regular files whose path `allowed` returns."""

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the file, or raise `ArtifactMissingError` if it is not a regular file that can be read."""
        path = self.allowed(uri, access)
        if not path.is_file():
            kind = "a folder" if path.is_dir() else "nothing" if not path.exists() else "a special file"
            raise ArtifactMissingError(f"{uri!r} names {kind}; an artifact is a regular file")
        try:
            file = path.open("rb")
        except OSError as error:
            raise ArtifactMissingError(f"{uri!r} cannot be read: {error.strerror}") from error
        with file:
            yield FileStream(file, start)

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the paths of everything below `uri` except folders, relative to it."""
        folder = self.allowed(uri, access)
        if not folder.is_dir():
            raise ArtifactMissingError(f"{uri!r} is not a folder")
        for path in sorted(folder.rglob("*")):
            if path.is_symlink() or not path.is_dir():
                yield path.relative_to(folder).as_posix()

    def allowed(self, uri: str, access: Access) -> Path:
        """Return the path that `uri` names, with its links followed; nothing is opened.

        Raises `SourceDeniedError` if `access` does not allow it; the error does not reveal whether anything is there.
        """
        raise NotImplementedError


class FileSource(LocalFiles):
    """Files by their path. Symbolic links are followed: the digest pins the bytes that are read through them."""

    def allowed(self, uri: str, access: Access) -> Path:
        """Return the path if it is below a folder that `access` allows."""
        access.check_uri("file", "")
        path = self.path(uri)
        if access.folders is None:
            return path
        real = path.resolve()
        if not any(real.is_relative_to(folder.resolve()) for folder in access.folders):
            allowed = ", ".join(map(str, access.folders)) or "none"
            raise SourceDeniedError(f"{uri!r} is not below a folder that is allowed; allowed: {allowed}")
        return real

    def path(self, uri: str) -> Path:
        """Return the absolute path that `uri` names."""
        try:
            parts = urlsplit(uri)
        except ValueError as error:
            raise ArtifactMissingError(f"{uri!r} is not a file: URI: {error}") from error
        if parts.netloc not in ("", "localhost"):
            raise ArtifactMissingError(f"{uri!r} names the host {parts.netloc!r}; file: reads this machine only")
        path = Path(unquote(parts.path)) if parts.scheme else Path(uri)
        if not path.is_absolute():
            raise ArtifactMissingError(f"{uri!r} is relative; expected an absolute path or file: URI")
        return path


class PvcSource(LocalFiles):
    """Files of claims. Symbolic links are followed within their claim, and refused if they lead out of it."""

    def allowed(self, uri: str, access: Access) -> Path:
        """Return the path if it is in a claim of the pool."""
        claim, _, rest = uri.partition("://")[2].partition("/")
        access.check_uri("pvc", claim)
        root = _root(claim, access)
        parts = unquote(rest).split("/")
        if any(part == ".." or "\0" in part for part in parts):
            raise SourceDeniedError(f"{uri!r} leaves its claim; a path has no '..' and no NUL")
        path = root.joinpath(*parts).resolve()
        if not path.is_relative_to(root):
            raise SourceDeniedError(f"{uri!r} leaves its claim by a symbolic link")
        return path


def _root(claim: str, access: Access) -> Path:
    if access.claims is None:
        raise SourceDeniedError(
            "no claims are mounted here; pvc: is read by the servers of a pool whose spec.artifacts.claims lists the "
            "claim. On one machine, name the file by its path, or make the folder claims/NAME in ~/.config/segserve"
        )
    root = (access.claims / claim).resolve()
    if not _CLAIM.fullmatch(claim) or not root.is_dir():
        there = sorted(path.name for path in access.claims.iterdir()) if access.claims.is_dir() else []
        raise SourceDeniedError(
            f"the claim {claim!r} is not one of the pool's; spec.artifacts.claims names: {', '.join(there) or 'none'}"
        )
    return root


class FileStream:
    """An open file. It has no identity: copying it again is cheap."""

    identity: str | None = None

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        self.size: int | None = os.fstat(file.fileno()).st_size
        self.start = file.seek(start if start < self.size else 0)
        self.read = file.read
