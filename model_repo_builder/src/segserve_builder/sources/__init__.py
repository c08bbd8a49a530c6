"""Where artifacts come from: the registry of sources, and the cache that their bytes are verified into."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final
from urllib.parse import quote, urljoin

from segserve_builder.errors import RelativeUriError, UnknownNameError
from segserve_builder.sources import cache as _cache
from segserve_builder.sources.file import FileSource
from segserve_builder.sources.folder import copy_folder, download_folder, folder_digest
from segserve_builder.sources.http import HttpSource

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from segserve_builder.sources.base import Source

__all__ = ["DEFAULT_MAX_BYTES", "SOURCES", "fetch", "fetch_folder", "folder_digest", "resolved"]

DEFAULT_MAX_BYTES: Final = 16 * 1024**3

SOURCES: Final[Mapping[str, Source]] = {
    "file": FileSource(),
    "http": HttpSource(),
    "https": HttpSource(),
}


def fetch(uri: str, sha256: str, cache: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Path:
    """Return the verified, read-only file `<cache>/sha256/<sha256>`, fetched from `uri` where it is missing.

    The digest is computed while the bytes stream in, and the file gets its name only after it was found
    right. What is already there is not hashed again. Any number of processes may fetch into one cache at
    once. Raises `UnknownNameError` (scheme), `ArtifactMissingError`, `DigestMismatchError`,
    `ArtifactTooLargeError`, and `PublishError` where the cache cannot be written.
    """
    target = _cache.object_path(cache, sha256)
    if target.is_file():
        return target
    with source_of(uri).open(uri) as stream:
        return _cache.store(stream, uri, sha256, cache, max_bytes)


def fetch_folder(uri: str, sha256: str, cache: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> Path:
    """Return the verified folder `<cache>/folders/<sha256>`, copied or downloaded where it is missing.

    `sha256` is a `folder_digest`; over HTTP the list that it digests has to be at `<uri>.sha256`. Raises as `fetch`
    does; symbolic links and special files are refused.
    """
    target = _cache.folder_path(cache, sha256)
    if target.is_dir():
        return target
    source = source_of(uri)
    if isinstance(source, FileSource):
        return copy_folder(source.path(uri), uri, sha256, cache, max_bytes)
    return download_folder(source, uri, sha256, cache, max_bytes)


def resolved(uri: str, base: str | None) -> str:
    """Return `uri` itself where it is absolute, else where it is below the folder `base`, a URI or an absolute path.

    Raises `RelativeUriError` where there is no base, and `UnknownNameError` where no source reads it.
    """
    if _has_scheme(uri) or uri.startswith("/"):
        return uri
    if not base:
        raise RelativeUriError(f"{uri!r} is relative, and there is no base; allowed: an absolute path, {_schemes()}")
    source_of(base)
    folder = base if _has_scheme(base) else FileSource().path(base).as_uri()
    return urljoin(folder.rstrip("/") + "/", quote(uri))


def source_of(uri: str) -> Source:
    """Return the source that reads `uri`; a plain path is a file. Raises `UnknownNameError`."""
    scheme = _scheme(uri)
    if scheme not in SOURCES:
        raise UnknownNameError("artifact scheme", scheme, SOURCES)
    return SOURCES[scheme]


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].lower() if _has_scheme(uri) else "file"


def _has_scheme(uri: str) -> bool:
    head, colon, _ = uri.partition(":")
    return bool(colon) and "/" not in head


def _schemes() -> str:
    return ", ".join(f"{scheme}:" for scheme in sorted(SOURCES))
