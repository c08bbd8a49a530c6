"""Folders pinned by one digest: the digest, and the verified copy in the cache."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Final, TypeAlias
from urllib.parse import quote

from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    DigestMismatchError,
    UnsafeArtifactError,
    writing,
)
from segserve_builder.sources import archives
from segserve_builder.sources.access import shown_digest
from segserve_builder.sources.cache import PartialFile, copy_hashed, folder_path, partial_path
from segserve_common.files import file_sha256, sync_folder

Receive: TypeAlias = Callable[[str, PartialFile, int], None]
"""Fills a file with all bytes at a URI, at most that many."""

LIST_SUFFIX: Final = ".sha256"
"""Suffix of the list of a folder's files on a web server; the folder's digest is the sha256 of that list."""
_LONGEST_LIST: Final = 16 * 2**20
_MOST_FILES: Final = 100_000


def folder_digest(folder: Path) -> str:
    """Return the sha256 of the lines `<sha256>  <relative path>`, one for each file, sorted by the path's bytes.

    `cd F && find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum` prints the same.
    Raises `ArtifactMissingError` if there is no folder, and `UnsafeArtifactError` if it holds a symbolic link or a
    special file.
    """
    return _digest({relative: file_sha256(path) for path, relative in _files(folder)})


def is_folder_of(folder: Path, sha256: str) -> bool:
    """Return whether a folder of a cache has this digest; another process may remove it meanwhile."""
    try:
        return folder_digest(folder) == sha256
    except (FileNotFoundError, ArtifactMissingError, UnsafeArtifactError):
        return False


def files_digest(paths: Iterable[Path]) -> str:
    """Return the digest of a folder that holds exactly these files."""
    return _digest({path.name: file_sha256(path) for path in paths})


def copy_folder(folder: Path, uri: str, sha256: str, cache: Path, max_bytes: int) -> Path:
    """Copy `folder` into the cache under its digest, which is computed over the bytes as they are copied."""
    with _entering(sha256, cache) as copy:
        digests: dict[str, str] = {}
        left = max_bytes
        for path, relative in _files(folder):
            target = copy / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, target.open("wb") as file:
                digests[relative] = copy_hashed(source, file, f"{uri}/{relative}", left)
                left -= file.tell()
                file.flush()
                os.fsync(file.fileno())
        actual = _digest(digests)
        if actual != sha256:
            raise DigestMismatchError(uri, sha256, shown_digest(actual))
    return folder_path(cache, sha256)


def download_listed(receive: Receive, uri: str, sha256: str, cache: Path, max_bytes: int) -> Path:
    """Download the files that the list `<uri>.sha256` names into the cache, and verify each as it is downloaded.

    The list is the text that `folder_digest` hashes, so its own sha256 is the folder's.
    """
    base = uri.rstrip("/")
    with _entering(sha256, cache) as copy:
        left = max_bytes
        for digest, relative in _listed(receive, base + LIST_SUFFIX, sha256):
            address = f"{base}/{quote(relative)}"
            part = _downloaded(receive, address, copy / relative, left)
            if part.sha256 != digest:
                raise DigestMismatchError(address, digest, shown_digest(part.sha256))
            left -= part.size
    return folder_path(cache, sha256)


def download_files(
    receive: Receive, files: Iterable[tuple[str, str]], uri: str, sha256: str, cache: Path, max_bytes: int
) -> Path:
    """Download a folder's files into the cache; `files` yields the path of each in the folder, and its URI."""
    digests: dict[str, str] = {}
    with _entering(sha256, cache) as copy:
        left = max_bytes
        for relative, address in files:
            if len(digests) == _MOST_FILES:
                raise ArtifactTooLargeError(f"{uri!r} has more than the {_MOST_FILES} files that are allowed")
            _check_below(relative, uri)
            part = _downloaded(receive, address, copy / relative, left)
            digests[relative] = part.sha256
            left -= part.size
        actual = _digest(digests)
        if actual != sha256:
            raise DigestMismatchError(uri, sha256, shown_digest(actual))
    return folder_path(cache, sha256)


def unpack_folder(archive: Path, name: str, sha256: str, cache: Path, max_bytes: int) -> Path:
    """Unpack the verified file `archive`, called `name`, into the cache; the folder's digest is the archive's."""
    with _entering(sha256, cache) as copy:
        archives.unpack(archive, name, copy, max_bytes)
    return folder_path(cache, sha256)


def is_unpacked(folder: Path, archive: Path, name: str, cache: Path, max_bytes: int) -> bool:
    """Return whether a folder holds what the verified file `archive`, called `name`, unpacks to."""
    with writing(folder), tempfile.TemporaryDirectory(dir=partial_path(cache)) as temporary:
        copy = Path(temporary) / "copy"
        copy.mkdir()
        archives.unpack(archive, name, copy, max_bytes)
        return is_folder_of(folder, folder_digest(copy))


def set_aside(folder: Path, cache: Path) -> None:
    """Remove a folder from the cache, all at once for other processes."""
    with writing(folder):
        removed = partial_path(cache) / f"unverified-{folder.name}-{os.getpid()}"
        folder.rename(removed)
        shutil.rmtree(removed)


@contextmanager
def _entering(sha256: str, cache: Path) -> Iterator[Path]:
    """Yield an empty folder that enters the cache under its digest if the block ends without an error."""
    target = folder_path(cache, sha256)
    partial = partial_path(cache)
    with writing(target), tempfile.TemporaryDirectory(dir=partial) as temporary:
        copy = Path(temporary) / "copy"
        copy.mkdir()
        yield copy
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            copy.rename(target)
        except OSError:
            # A folder cannot be renamed over one with files: another process was first, with the same bytes.
            if not target.is_dir():
                raise
            shutil.rmtree(copy)
        sync_folder(target.parent)


def _downloaded(receive: Receive, address: str, target: Path, max_bytes: int) -> PartialFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w+b") as file:
        part = PartialFile(file)
        receive(address, part, max_bytes)
        part.sync()
    return part


def _listed(receive: Receive, address: str, sha256: str) -> Iterator[tuple[str, str]]:
    content = io.BytesIO()
    part = PartialFile(content)
    receive(address, part, _LONGEST_LIST)
    if part.sha256 != sha256:
        raise DigestMismatchError(address, sha256, shown_digest(part.sha256))
    # Names of files are bytes, and need not be UTF-8.
    for line in content.getvalue().decode(errors="surrogateescape").splitlines():
        digest, _, relative = line.partition("  ")
        _check_below(relative, address)
        yield digest, relative


def _check_below(relative: str, uri: str) -> None:
    path = PurePosixPath(relative)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in relative:
        raise UnsafeArtifactError(f"{uri!r} names {relative!r}; a pinned folder holds files below itself only")


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    if not folder.is_dir():
        raise ArtifactMissingError(f"{folder} is not a folder")
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            continue
        if not stat.S_ISREG(mode):
            kind = "symbolic link" if stat.S_ISLNK(mode) else "special file"
            raise UnsafeArtifactError(f"{path} is a {kind}; a pinned folder holds regular files only")
        yield path, path.relative_to(folder).as_posix()


def _digest(digests: Mapping[str, str]) -> str:
    # The order of `LC_ALL=C sort`, whatever the locale is here.
    lines = (f"{digests[path]}  {path}\n" for path in sorted(digests, key=os.fsencode))
    return hashlib.sha256("".join(lines).encode()).hexdigest()
