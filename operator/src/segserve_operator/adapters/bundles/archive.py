"""Reproducible archives: the same bytes for the same content."""

from __future__ import annotations

import gzip
import io
import tarfile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def packed(files: Mapping[str, bytes]) -> bytes:
    """Return a .tar.gz of files by path, without times and owners, sorted by path."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(files[name]), 0o644
            archive.addfile(entry, io.BytesIO(files[name]))
    return gzip.compress(tar.getvalue(), compresslevel=6, mtime=0)


def unpacked(archive: bytes) -> dict[str, bytes]:
    """Return the files of an archive that `packed` made."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        return {entry.name: file.read() for entry in tar if (file := tar.extractfile(entry)) is not None}


def tail(text: bytes, limit_bytes: int) -> bytes:
    """Return the last complete lines of a text, at most `limit_bytes` of it."""
    if len(text) <= limit_bytes:
        return text
    end = text[len(text) - limit_bytes :]
    return end.partition(b"\n")[2]
