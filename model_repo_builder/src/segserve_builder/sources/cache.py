"""The artifact cache: objects named by the digest that was verified before they got their name."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from segserve_builder.durable import sync_folder, writing
from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    DigestMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from segserve_builder.sources.base import Stream

CHUNK_BYTES: Final = 1024 * 1024
ABANDONED_S: Final = 3600.0


def object_path(cache: Path, sha256: str) -> Path:
    """Return where the file of that digest is, once it was fetched."""
    return cache / "sha256" / sha256


def folder_path(cache: Path, sha256: str) -> Path:
    """Return where the folder of that digest is, once it was fetched."""
    return cache / "folders" / sha256


def partial_path(cache: Path) -> Path:
    """Return the folder for what is still arriving, clear of what a killed process left there."""
    partial = cache / "partial"
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.iterdir():
        # Another process may be writing here: only what nobody has touched for long is abandoned.
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > ABANDONED_S:
                _delete(leftover)
    return partial


def store(stream: Stream, uri: str, sha256: str, cache: Path, max_bytes: int) -> Path:
    """Write `stream` into the cache under its digest; nothing of it stays where that is another one."""
    target = object_path(cache, sha256)
    partial = partial_path(cache)
    with writing(target), _partial_file(partial) as file:
        actual = copy_hashed(stream, file, uri, max_bytes)
        if actual != sha256:
            raise DigestMismatchError(uri, sha256, actual)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fsync(file.fileno())
        target.parent.mkdir(parents=True, exist_ok=True)
        Path(file.name).replace(target)
        sync_folder(target.parent)
    return target


def copy_hashed(stream: Stream, file: BinaryIO, uri: str, max_bytes: int) -> str:
    """Copy all of `stream` to `file` and return the sha256 of what was copied."""
    digest = hashlib.sha256()
    total = 0
    while chunk := _read(stream, uri):
        total += len(chunk)
        if total > max_bytes:
            raise ArtifactTooLargeError(f"{uri!r} has more than the {max_bytes} bytes that are allowed")
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _read(stream: Stream, uri: str) -> bytes:
    try:
        return stream.read(CHUNK_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise ArtifactMissingError(f"{uri!r} broke off: {error}") from error


@contextmanager
def _partial_file(partial: Path) -> Iterator[BinaryIO]:
    with tempfile.NamedTemporaryFile(dir=partial, delete=False) as file:
        try:
            yield file  # type: ignore[misc]  # the wrapper has all that BinaryIO needs here
        finally:
            Path(file.name).unlink(missing_ok=True)
