"""The artifact cache: objects named by the digest that was verified before they got their name."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

from segserve_builder.errors import ArtifactTooLargeError, PublishError, SourceUnavailableError, writing
from segserve_common.files import sync_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO

    from segserve_builder.sources.archives import Readable

CHUNK_BYTES: Final = 1024 * 1024
ABANDONED_S: Final = 3600.0
UNFINISHED_S: Final = 24 * 3600.0
"""So long the beginning of a file is kept for whoever comes to go on with it."""

SLOW_S: Final = 60.0
SLOWEST_BYTES: Final = 64 * 1024
"""Of fewer bytes in `SLOW_S` one waits for the end in vain."""

_PART: Final = ".part"
_IDENTITY: Final = ".identity"


def object_path(cache: Path, sha256: str) -> Path:
    """Return where the file of that digest is, once it was fetched."""
    return cache / "sha256" / sha256


def folder_path(cache: Path, sha256: str) -> Path:
    """Return where the folder of that digest is, once it was fetched."""
    return cache / "folders" / sha256


def touch(target: Path) -> Path:
    """Note that an object is in use now, for who looks which was used last, where this process may."""
    with suppress(OSError):
        os.utime(target)
    return target


def partial_path(cache: Path) -> Path:
    """Return the folder for what is still arriving, clear of what a killed process left there."""
    partial = cache / "partial"
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.iterdir():
        # Another process may be writing here: only what nobody has touched for long is abandoned.
        kept_s = UNFINISHED_S if leftover.suffix in (_PART, _IDENTITY) else ABANDONED_S
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > kept_s:
                _delete(leftover)
    return partial


class Arriving:
    """A file that arrives, with the digest of what is there so far; `identity` is of the bytes that it is part of."""

    def __init__(self, file: BinaryIO, beside: Path | None = None) -> None:
        """Go on with what `file` holds, where the file `beside` says of which bytes it is the beginning."""
        self._file = file
        self._beside = beside
        self.identity = _read_identity(beside)
        self.is_resumed = False
        self.size = 0
        self._digest = hashlib.sha256()
        if self.identity is None:
            self.restart(None)
            return
        while chunk := file.read(CHUNK_BYTES):
            self._count(chunk)
        self.is_resumed = self.size > 0

    @property
    def sha256(self) -> str:
        """The digest of what has arrived."""
        return self._digest.hexdigest()

    def restart(self, identity: str | None) -> None:
        """Forget what arrived; what comes now is of the bytes of that identity."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self._digest = 0, hashlib.sha256()
        self.identity, self.is_resumed = identity, False
        if self._beside is not None:
            self._beside.unlink(missing_ok=True)
            if identity is not None:
                self._beside.write_text(identity)

    def write(self, chunk: bytes) -> None:
        """Append what came."""
        self._file.write(chunk)
        self._count(chunk)

    def sync(self) -> None:
        """Make what arrived outlive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size += len(chunk)


@contextmanager
def arriving(cache: Path, sha256: str) -> Iterator[Arriving]:
    """Hold what has arrived of an object, alone of all processes; another one waits here until this one ends.

    Where the object is in the cache by then, there is nothing to go on with. What cannot be gone on with is removed.
    """
    path = partial_path(cache) / f"{sha256}{_PART}"
    beside = path.with_suffix(_IDENTITY)
    with writing(path), _locked(path) as file:
        part = Arriving(file, beside)
        try:
            yield part
        except PublishError:
            part.identity = None  # a disk that is full must not stay so because of us
            raise
        finally:
            if part.identity is None or not part.size:
                path.unlink(missing_ok=True)
                beside.unlink(missing_ok=True)


def enter(part: Arriving, cache: Path, sha256: str) -> None:
    """Give an object that is verified its name."""
    target = object_path(cache, sha256)
    path = cache / "partial" / f"{sha256}{_PART}"
    with writing(target):
        part.sync()
        path.chmod(0o444)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        path.with_suffix(_IDENTITY).unlink(missing_ok=True)
        sync_folder(target.parent)


def copy_hashed(stream: Readable, file: BinaryIO, uri: str, max_bytes: int) -> str:
    """Copy all of `stream` to `file` and return the sha256 of what was copied."""
    part = Arriving(file)
    for chunk in chunks(stream, uri):
        check_size(part.size + len(chunk), uri, max_bytes)
        part.write(chunk)
    return part.sha256


def chunks(stream: Readable, uri: str) -> Iterator[bytes]:
    """Yield all of `stream`; raises `SourceUnavailableError` where it breaks off or only drips."""
    since_s, arrived = time.monotonic(), 0
    try:
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
            arrived += len(chunk)
            if time.monotonic() - since_s < SLOW_S:
                continue
            if arrived < SLOWEST_BYTES:
                raise SourceUnavailableError(f"{uri!r} gave {arrived} bytes in {SLOW_S:.0f} s")
            since_s, arrived = time.monotonic(), 0
    except OSError as error:
        raise SourceUnavailableError(f"{uri!r} broke off: {error}") from error


def check_size(size: int, uri: str, max_bytes: int) -> None:
    """Raise `ArtifactTooLargeError` above the limit."""
    if size > max_bytes:
        raise ArtifactTooLargeError(f"{uri!r} has more than the {max_bytes} bytes that are allowed")


def _read_identity(beside: Path | None) -> str | None:
    try:
        return None if beside is None else beside.read_text()
    except FileNotFoundError:
        return None


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    while True:
        with path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Who held it before may have given it its name, or removed it: then this is no longer the file.
            if path.exists() and path.stat().st_ino == os.fstat(file.fileno()).st_ino:
                file.seek(0)
                yield file
                return
