"""Digests of files, and durable replacement: readers see the old content or the new one, also after a power cut."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

T = TypeVar("T")

MOST_BYTES: Final = 2**28
"""No file that `read_file` reads is larger."""
_NUMBERS: Final = itertools.count()
_LONGEST_NAME: Final = 143
"""Bytes of a name that every common file system takes: eCryptfs this many, others 255."""


class DamagedFileError(ValueError):
    """A file is not what this platform writes there; the message has its path and what was found."""

    def __init__(self, path: Path, found: object) -> None:
        super().__init__(f"{path} is damaged: {' '.join(str(found).split())[:300]}")


class UnreadableFileError(DamagedFileError):
    """A file cannot be read now; nothing is known of what is in it."""


def read_file(path: Path, parse: Callable[[str], T]) -> T:
    """Return the result of `parse` for a file's text.

    Raises `FileNotFoundError` if the file does not exist, `UnreadableFileError` if the system cannot read it, and
    another `DamagedFileError` if its content cannot be parsed.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFileError(path, "it is not a file")
    if status.st_size > MOST_BYTES:
        raise DamagedFileError(path, f"it has {status.st_size} bytes")
    try:
        return parse(path.read_text())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableFileError(path, error) from error
    except Exception as error:
        raise DamagedFileError(path, f"{type(error).__name__}: {error}") from error


def read_tail(path: Path, most_bytes: int) -> bytes:
    """Return at most so many bytes of a file, the last ones; raises `OSError`."""
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
        return file.read(most_bytes)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits; raises `OSError`."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, content: str | bytes, *, mode: int = 0o666) -> None:
    """Write `content` (text as UTF-8) to `path`, in place of what is there; the umask applies to `mode`.

    The folder has to exist. Raises `OSError`, and leaves `path` as it was.
    """
    with replacing(path, mode=mode) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def private_folder(folder: Path) -> Path:
    """Create a folder into which only this user can look, or narrow the rights of one of this user's; return it.

    One that all users share, such as /tmp, stays as it is.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid == os.geteuid() and not found.st_mode & stat.S_ISVTX and found.st_mode & 0o077:
        folder.chmod(0o700)
    return folder


def write_private(path: Path, content: str | bytes) -> None:
    """Replace a file as `replace_file` does, readable by this user only; missing folders are created.

    A folder in its place is kept under another name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        path.rename(path.with_name(f"{path.name}.{time.time_ns()}.damaged"))
    replace_file(path, content, mode=0o600)


@contextmanager
def replacing(path: Path, *, suffix: str | None = None, mode: int = 0o666) -> Iterator[Path]:
    """Yield the path of an empty file to write; at the end of the block it is synced and takes the name `path`.

    The file is in the same folder, by default under a name that no other writer uses. With a `suffix` it is `path` with
    that suffix, for a large file of one writer: the next run then overwrites what a killed process left. If the block
    raises, the file is removed.
    """
    name = f".{path.name}.{os.getpid()}-{next(_NUMBERS)}.new" if suffix is None else f"{path.name}{suffix}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}{suffix or '.new'}"
    temporary = path.with_name(name)
    os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, mode))
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut."""
    if os.name == "nt":
        return  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems cannot sync a folder.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
