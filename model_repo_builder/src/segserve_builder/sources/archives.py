"""Untrusted tar and zip archives: one member as a stream, or all of them unpacked into an empty folder.

Only regular files and folders with plain relative names are unpacked. Anything else fails the whole archive: an archive
that tries to escape cannot be trusted at all. Owners, modes and times are this process's.
"""

from __future__ import annotations

import gzip
import lzma
import os
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Protocol, cast

from segserve_builder.errors import ArtifactMissingError, ArtifactTooLargeError, UnsafeArtifactError
from segserve_builder.sources.base import Stream


class Readable(Protocol):
    """A source of bytes."""

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end."""


CHUNK_BYTES: Final = 1024 * 1024
MAX_ENTRIES: Final = 100_000
MAX_NAME_BYTES: Final = 1024
_LARGEST_HEADER: Final = 1024 * 1024

_OPENERS: Final[Mapping[str, Callable[[Any], Readable]]] = {
    ".tar": lambda raw: raw,
    ".tar.gz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".tgz": lambda raw: gzip.GzipFile(fileobj=raw, mode="rb"),
    ".tar.xz": lzma.LZMAFile,
}
SUFFIXES: Final = (*_OPENERS, ".zip")
_BROKEN: Final = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
    NotImplementedError,
    UnicodeDecodeError,
    struct.error,
)


def is_archive(name: str) -> bool:
    """Return whether a name has the suffix of an archive that can be read."""
    return name.lower().endswith(SUFFIXES)


@contextmanager
def open_member(stream: Stream, name: str, member: str, max_bytes: int, spool: Path) -> Iterator[Stream]:
    """Open one file within the archive `name` that `stream` yields; a zip is first written to the folder `spool`.

    Nothing but that file is unpacked. Raises `ArtifactMissingError` if there is no such member or the archive is
    broken, `UnsafeArtifactError` if an entry before it is not allowed, and `ArtifactTooLargeError` if more than
    `max_bytes` are unpacked on the way.
    """
    with readable(name):
        if name.lower().endswith(".zip"):
            with _spooled(stream, name, max_bytes, spool) as file, zipfile.ZipFile(file) as archive:
                infos = dict(_zip_entries(archive, name))
                if member not in infos:
                    raise _missing(name, member, infos)
                with archive.open(infos[member]) as unpacked:
                    yield _Member(unpacked, infos[member].file_size)
            return
        others: list[str] = []
        for path, content in tar_members(stream, name, max_bytes):
            if path == member:
                yield content
                return
            others.append(path)
        raise _missing(name, member, others)


def unpack(archive: Path, name: str, into: Path, max_bytes: int) -> None:
    """Unpack the file `archive`, named `name`, into the empty folder `into`; raises as `open_member` does."""
    with archive.open("rb") as file, readable(name):
        if name.lower().endswith(".zip"):
            _unpack_zip(file, name, into, max_bytes)
            return
        for path, member in tar_members(_Member(file, None), name, max_bytes):
            _write(member, into / path, max_bytes)


def tar_members(stream: Stream, name: str, max_bytes: int) -> Iterator[tuple[str, Stream]]:
    """Yield the path and the bytes of each regular file of a tar, in order; read each before the next.

    The suffix of `name` determines the compression. Raises as `open_member` does.
    """
    names = _Names(name)
    for info, found in tar_entries(stream, name, max_bytes):
        if not (info.isreg() or info.isdir()) or info.issparse():
            raise UnsafeArtifactError(f"{name}: {info.name!r} is {_kind(info)}; files and folders are allowed")
        path = names.check(info.name, is_folder=info.isdir())
        if found is not None:
            yield path, found


def tar_entries(stream: Stream, name: str, max_bytes: int) -> Iterator[tuple[tarfile.TarInfo, Stream | None]]:
    """Yield every entry of a tar with its unchecked name, and the bytes of regular files.

    Raises `ArtifactTooLargeError` if more than `max_bytes` are unpacked, and `ArtifactMissingError` for a compression
    that is not supported.
    """
    opener = next((opener for suffix, opener in _OPENERS.items() if name.lower().endswith(suffix)), None)
    if opener is None:
        raise ArtifactMissingError(f"{name!r} has a compression that is not supported; allowed: {', '.join(_OPENERS)}")
    bounded = _Bounded(opener(_Raw(stream)), name, max_bytes)
    # To read a tar forward, tarfile needs less of a file than its type annotation says.
    with tarfile.open(fileobj=cast("Any", bounded), mode="r:", errorlevel=2) as archive:
        for info in archive:
            found = archive.extractfile(info) if info.isreg() else None
            yield info, None if found is None else _Member(found, info.size)
            archive.members.clear()  # type: ignore[attr-defined]  # otherwise a million headers stay in memory


def _unpack_zip(file: BinaryIO, name: str, into: Path, max_bytes: int) -> None:
    left = max_bytes
    with zipfile.ZipFile(file) as archive:
        for path, info in list(_zip_entries(archive, name)):
            with archive.open(info) as member:
                left -= _write(_Member(member, info.file_size), into / path, left)


def _zip_entries(archive: zipfile.ZipFile, name: str) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    names = _Names(name)
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise UnsafeArtifactError(f"{name}: {info.filename!r} is a link or device; files and folders are allowed")
        if info.flag_bits & 1:
            raise UnsafeArtifactError(f"{name}: {info.filename!r} is encrypted; plain files are allowed")
        if info.header_offset < 0:  # zipfile computes it, and seeks there
            raise ArtifactMissingError(f"{name} cannot be unpacked: {info.filename!r} begins before the archive")
        is_folder = info.filename.endswith("/")  # `is_dir` fails for an empty name
        path = names.check(info.orig_filename, is_folder=is_folder)
        if not is_folder:
            yield path, info


class _Names:
    """The names of one archive so far; refuses names outside the folder, and names that collide."""

    def __init__(self, archive: str) -> None:
        self._archive = archive
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def check(self, name: str, *, is_folder: bool) -> str:
        """Return the relative path of an entry, or raise `UnsafeArtifactError`."""
        path = PurePosixPath(name)
        is_plain = name.isprintable() and "\\" not in name and ":" not in name and len(name.encode()) <= MAX_NAME_BYTES
        if path.is_absolute() or ".." in path.parts or not is_plain or (not path.parts and not is_folder):
            raise UnsafeArtifactError(f"{self._archive}: {name[:200]!r} is not the name of a file below the archive")
        folders = {_folded(str(parent)) for parent in path.parents}
        folded = _folded(str(path))
        taken = self._files if is_folder else self._files | self._folders
        if folded in taken or folders & self._files:
            raise UnsafeArtifactError(f"{self._archive}: {name!r} occurs twice, or differs from another only in case")
        self._folders |= folders | ({folded} if is_folder else set())
        if not is_folder:
            self._files.add(folded)
        if len(self._files) + len(self._folders) > MAX_ENTRIES:
            raise UnsafeArtifactError(f"{self._archive} has more than {MAX_ENTRIES} entries")
        return str(path)


class _Raw:
    """A stream as a file for decompressors."""

    def __init__(self, stream: Stream) -> None:
        self.read = stream.read


class _Bounded:
    """A decompressed tar as a file for `tarfile`: forward only, at most `max_bytes`, with bounded headers."""

    def __init__(self, file: Readable, name: str, max_bytes: int) -> None:
        self._file = file
        self._name = name
        self._max_bytes = max_bytes
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        # tarfile reads in one piece whatever size a header announces; the pieces of files are ours.
        if not 0 <= size <= max(_LARGEST_HEADER, CHUNK_BYTES):
            raise UnsafeArtifactError(f"{self._name} announces a header of {size} bytes")
        parts = []
        while size and (part := self._file.read(size)):
            parts.append(part)
            size -= len(part)
            self._at += len(part)
        if self._at > self._max_bytes:
            raise ArtifactTooLargeError(f"{self._name} unpacks to more than the {self._max_bytes} bytes allowed")
        return b"".join(parts)

    def tell(self) -> int:
        return self._at

    def seek(self, place: int) -> None:
        if place < self._at:
            raise tarfile.StreamError("a tar is only read forward")
        while self._at < place and self.read(min(CHUNK_BYTES, place - self._at)):
            pass


class _Member:
    """A file within an archive as a `Stream` that cannot be resumed."""

    start = 0
    identity = None

    def __init__(self, file: Readable, size: int | None) -> None:
        self.size = size
        self._file = file

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)


def _write(member: Stream, target: Path, max_bytes: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with target.open("xb") as file:
        while chunk := member.read(CHUNK_BYTES):
            written += len(chunk)
            if written > max_bytes:
                raise ArtifactTooLargeError(f"{target.name} unpacks to more than the {max_bytes} bytes that are left")
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return written


@contextmanager
def _spooled(stream: Stream, name: str, max_bytes: int, spool: Path) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(dir=spool) as file:
        while chunk := stream.read(CHUNK_BYTES):
            if file.tell() + len(chunk) > max_bytes:
                raise ArtifactTooLargeError(f"{name} is larger than the {max_bytes} bytes that are allowed")
            file.write(chunk)
        file.seek(0)
        yield file


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Raise the errors of a broken archive as `ArtifactMissingError`."""
    try:
        yield
    except _BROKEN as error:
        raise ArtifactMissingError(f"{name} cannot be unpacked: {error}") from error


def _missing(name: str, member: str, members: Iterable[str]) -> ArtifactMissingError:
    names = sorted(members)
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    return ArtifactMissingError(f"{name} has no file {member!r}; it has {shown or 'none'}")


def _kind(info: tarfile.TarInfo) -> str:
    kinds = {"a symbolic link": info.issym(), "a hard link": info.islnk(), "a sparse file": info.issparse()}
    return next((kind for kind, holds in kinds.items() if holds), "a device, pipe or socket")


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
