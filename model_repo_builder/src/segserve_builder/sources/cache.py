"""The artifact cache: objects named by their digest, and eviction.

A digest is verified before an object gets its name, and once in each process that uses it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

from segserve_builder.errors import ArtifactTooLargeError, PublishError, SourceUnavailableError, writing
from segserve_builder.sources.archives import Readable
from segserve_common.files import file_sha256, sync_folder

CHUNK_BYTES: Final = 1024 * 1024
ABANDONED_S: Final = 3600.0
UNFINISHED_S: Final = 24 * 3600.0
"""How long a partial file is kept for a process that resumes it."""

STALLED_S: Final = 120.0
"""How long a file of another process that receives it may stay as it is; a source may be tried again after 30 s."""

LONGEST_HELD_S: Final = 6 * 3600.0
_LOOK_S: Final = 0.1

SLOW_S: Final = 60.0
SLOWEST_BYTES: Final = 64 * 1024
"""A source that sends fewer bytes in `SLOW_S` is given up."""

_PART: Final = ".part"
_IDENTITY: Final = ".identity"

JUST_FETCHED_S: Final = 600.0
"""How long an object stays after a fetch: the process that fetched it may not have locked it yet."""


def object_path(cache: Path, sha256: str) -> Path:
    """Return the path of the file of that digest, once it is fetched."""
    return cache / "sha256" / sha256


def folder_path(cache: Path, sha256: str) -> Path:
    """Return the path of the folder of that digest, once it is fetched."""
    return cache / "folders" / sha256


def engines_path(cache: Path, built_for: str) -> Path:
    """Return the path of the archive of TensorRT's engines of that digest, once an agent has kept them."""
    return cache / "engines" / f"{built_for}.zip"


@dataclass(slots=True)
class VerifiedObjects:
    """The objects whose bytes this process has compared with their digest.

    Others may write into a shared cache, so a name proves nothing: each object is hashed at its first use, and again
    once another file has its name.
    """

    _seen: set[tuple[str, int, int, int]] = field(default_factory=set)

    def is_verified(self, path: Path, hashes_to: Callable[[], bool]) -> bool:
        """Return whether an object is there and was compared; `hashes_to` compares it if it was not."""
        identity = _identity_of(path)
        if identity is None:
            return False
        if identity not in self._seen and (not hashes_to() or _identity_of(path) != identity):
            return False
        self._seen.add(identity)
        return True

    def add(self, path: Path) -> None:
        """Count an object as compared: its bytes were hashed as they were written."""
        identity = _identity_of(path)
        if identity is not None:
            self._seen.add(identity)

    def forget(self, path: Path) -> None:
        """Compare an object again at its next use."""
        self._seen = {identity for identity in self._seen if identity[0] != str(path)}


def is_file_of(path: Path, sha256: str) -> bool:
    """Return whether a file of a cache has this sha256; another process may remove it meanwhile."""
    try:
        return file_sha256(path) == sha256
    except FileNotFoundError:
        return False


def _identity_of(path: Path) -> tuple[str, int, int, int] | None:
    """Return what identifies a file or folder of this name, None if it does not exist; links are never written here."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
    return None if stat.S_ISLNK(found.st_mode) else (str(path), found.st_dev, found.st_ino, size)


def touch(target: Path) -> Path:
    """Mark an object as used now, for eviction, if this process may write; return it."""
    with suppress(OSError):
        os.utime(target)
    return target


def partial_path(cache: Path) -> Path:
    """Return the folder of partial files, without those that killed processes abandoned."""
    partial = cache / "partial"
    with writing(partial):
        partial.mkdir(parents=True, exist_ok=True)
    for leftover in partial.iterdir():
        # Another process may be writing here: only files that have not changed for long are abandoned.
        kept_s = UNFINISHED_S if leftover.suffix in (_PART, _IDENTITY) else ABANDONED_S
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > kept_s:
                _delete(leftover)
    return partial


class PartialFile:
    """A file that is being received, and the digest of its bytes so far.

    `identity` identifies the whole file at its source (an ETag, say); None if there is nothing to resume.
    """

    def __init__(self, file: BinaryIO, identity_path: Path | None = None) -> None:
        """Resume `file` if the file `identity_path` holds the identity of the file that it is the beginning of."""
        self._file = file
        self._identity_path = identity_path
        self.identity = _read_identity(identity_path)
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
    def path(self) -> Path:
        """Where the file is."""
        return Path(self._file.name)

    @property
    def sha256(self) -> str:
        """The sha256 of the bytes so far, in hexadecimal."""
        return self._digest.hexdigest()

    def restart(self, identity: str | None) -> None:
        """Discard the bytes so far; those that follow are of the file of that identity."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self._digest = 0, hashlib.sha256()
        self.identity, self.is_resumed = identity, False
        if self._identity_path is not None:
            self._identity_path.unlink(missing_ok=True)
            if identity is not None:
                self._identity_path.write_text(identity)

    def write(self, chunk: bytes) -> None:
        """Append a chunk."""
        self._file.write(chunk)
        self._count(chunk)

    def sync(self) -> None:
        """Make the bytes so far survive a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def _count(self, chunk: bytes) -> None:
        self._digest.update(chunk)
        self.size += len(chunk)


@contextmanager
def locked_partial(cache: Path, sha256: str) -> Iterator[PartialFile]:
    """Lock the partial file of an object against all other processes, which wait here, and yield it.

    If the object is in the cache by then, the file is empty. A file that cannot be resumed is removed at the end. A
    process that holds the lock and receives nothing for `STALLED_S` is not waited for: the file is another one then.
    """
    shared = partial_path(cache) / f"{sha256}{_PART}"
    with writing(shared), _locked(shared) as file:
        path = Path(file.name)
        identity_path = path.with_suffix(_IDENTITY)
        part = PartialFile(file, identity_path)
        try:
            yield part
        except PublishError:
            part.identity = None  # do not keep a full disk full
            raise
        finally:
            if part.identity is None or not part.size:
                path.unlink(missing_ok=True)
                identity_path.unlink(missing_ok=True)


def commit(part: PartialFile, cache: Path, sha256: str) -> None:
    """Move a verified object to its name in the cache."""
    target = object_path(cache, sha256)
    path = part.path
    with writing(target):
        part.sync()
        path.chmod(0o444)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
        path.with_suffix(_IDENTITY).unlink(missing_ok=True)
        sync_folder(target.parent)


def copy_hashed(stream: Readable, file: BinaryIO, uri: str, max_bytes: int) -> str:
    """Copy all of `stream` to `file` and return the sha256 of what was copied."""
    part = PartialFile(file)
    for chunk in chunks(stream, uri):
        check_size(part.size + len(chunk), uri, max_bytes)
        part.write(chunk)
    return part.sha256


def chunks(stream: Readable, uri: str) -> Iterator[bytes]:
    """Yield all of `stream`; raises `SourceUnavailableError` if it breaks off or is slower than `SLOWEST_BYTES`."""
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
        raise ArtifactTooLargeError(f"{uri!r} is larger than the {max_bytes} bytes that are allowed")


def _read_identity(identity_path: Path | None) -> str | None:
    try:
        return None if identity_path is None else identity_path.read_text()
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
            if not _lock_patiently(file, path):
                # In a cache of several tenants a process could hold the lock forever.
                path = path.with_name(f"{path.stem}-{os.getpid()}{_PART}")
                continue
            if _has_name(file, path):
                file.seek(0)
                yield file
                return


def _lock_patiently(file: BinaryIO, path: Path) -> bool:
    """Wait until a file is locked or has lost its name; return False if another process that has it is `STALLED_S`
    idle, or has it for `LONGEST_HELD_S`.
    """
    began_s = changed_s = time.monotonic()
    size = -1
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not _has_name(file, path):  # it is complete, and held by its users
                return True
            now_s, present = time.monotonic(), os.fstat(file.fileno()).st_size
            if present != size:
                size, changed_s = present, now_s
            if now_s - changed_s > STALLED_S or now_s - began_s > LONGEST_HELD_S:
                return False
            time.sleep(_LOOK_S)


def _has_name(file: BinaryIO, path: Path) -> bool:
    """Return False if the process that held the lock before renamed or removed `file`; another may be at `path`."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@dataclass(slots=True)
class FileLocks:
    """The shared locks of this process on objects of a cache."""

    _held: dict[Path, int] = field(default_factory=dict)

    def keep(self, objects: Iterable[Path]) -> None:
        """Lock exactly these objects; one that does not exist now is locked at a later call."""
        paths = set(objects)
        for path in self._held.keys() - paths:
            os.close(self._held.pop(path))
        for path in paths - self._held.keys():
            # Another process that holds it alone evicts it, or keeps it from all others: nothing waits for that.
            with suppress(FileNotFoundError, BlockingIOError):
                self._held[path] = _flocked(path, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def close(self) -> None:
        """Release all locks."""
        self.keep(())


def evict(cache: Path, max_bytes: int, *, now_s: float | None = None) -> list[Path]:
    """Remove the least recently used objects of `cache` until it has at most `max_bytes`; return their paths.

    Objects that are locked or were just fetched stay, so the cache can stay larger.
    """
    now_s = time.time() if now_s is None else now_s
    by_age = sorted(_objects(cache))
    total = sum(size for _, _, size in by_age)
    evicted = []
    for used_s, path, size in by_age:
        if total <= max_bytes or now_s - used_s < JUST_FETCHED_S:
            break
        if _remove(path, partial_path(cache)):
            total -= size
            evicted.append(path)
    return evicted


def _objects(cache: Path) -> Iterator[tuple[float, Path, int]]:
    """Yield when each object was last used (`touch` sets that), its path and its bytes."""
    for path in (each for kind in ("sha256", "folders", "engines") for each in (cache / kind).glob("*")):
        with suppress(FileNotFoundError):  # another process evicts it
            yield path.stat().st_mtime, path, _size(path)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def _remove(path: Path, trash: Path) -> bool:
    """Remove the object unless it is locked."""
    try:
        lock = _flocked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    try:
        # One rename first, so that no process reads a partly removed folder under its digest.
        removed = trash / f"evicted-{path.name}-{os.getpid()}"
        path.rename(removed)
        _delete(removed)
    except FileNotFoundError:
        return False  # another process renamed it before it was locked here
    finally:
        os.close(lock)
    return True


def _flocked(path: Path, kind: int) -> int:
    number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, kind)
    except OSError:
        os.close(number)
        raise
    return number
