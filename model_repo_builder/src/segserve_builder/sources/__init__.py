"""Sources of artifacts: the registry by scheme, and fetches that verify into the cache."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote, unquote, urldefrag, urljoin, urlsplit

from segserve_builder.errors import (
    ArtifactMissingError,
    RelativeUriError,
    UnknownNameError,
)
from segserve_builder.sources import cache as _cache
from segserve_builder.sources.access import DEFAULT_MAX_BYTES, Access, separate_fetch
from segserve_builder.sources.archives import SUFFIXES, is_archive, open_member
from segserve_builder.sources.az import AzSource
from segserve_builder.sources.base import ArtifactSource, FolderSource, Stream
from segserve_builder.sources.fetching import Download, Progress, RetryPolicy
from segserve_builder.sources.file import FileSource, PvcSource
from segserve_builder.sources.folder import (
    copy_folder,
    download_files,
    download_listed,
    files_digest,
    folder_digest,
    is_folder_of,
    is_unpacked,
    set_aside,
    unpack_folder,
)
from segserve_builder.sources.gs import GsSource
from segserve_builder.sources.http import HttpSource
from segserve_builder.sources.hugging_face import HuggingFaceSource
from segserve_builder.sources.mlflow import MlflowSource
from segserve_builder.sources.oci import OciSource
from segserve_builder.sources.s3 import S3Source

__all__ = [
    "DEFAULT_MAX_BYTES",
    "SOURCES",
    "Access",
    "RetryPolicy",
    "distrust",
    "fetch",
    "fetch_folder",
    "fetch_unpinned",
    "files_digest",
    "folder_digest",
    "resolved",
]

_STORES: Final[Mapping[str, ArtifactSource]] = {
    "az": AzSource(),
    "file": FileSource(),
    "gs": GsSource(),
    "http": HttpSource(),
    "https": HttpSource(),
    "pvc": PvcSource(),
    "s3": S3Source(),
}

SOURCES: Final[Mapping[str, ArtifactSource]] = {
    **_STORES,
    "hf": HuggingFaceSource(),
    "models": MlflowSource(_STORES),
    "oci": OciSource(),
}

_STRICT: Final = Access()
_VERIFIED: Final = _cache.VerifiedObjects()
_DEFAULT_RETRY: Final = RetryPolicy()
_DATASETS: Final = "hf://datasets/"
"""In these URIs the organisation, which allow-lists name, comes after the kind of the repository."""

_WITH_MEMBERS: Final = frozenset({"oci"})
"""Schemes that handle `#member` themselves; for all others it is a file within an archive."""


def fetch(
    uri: str,
    sha256: str,
    cache: Path,
    access: Access = _STRICT,
    *,
    progress: Progress | None = None,
    retry_policy: RetryPolicy = _DEFAULT_RETRY,
) -> Path:
    """Return the verified, read-only file `<cache>/sha256/<sha256>`, fetched from `uri` if it is missing.

    The digest is computed while the bytes stream in, and the file gets its name only if the digest is right. A file
    that is there is hashed at its first use in this process, and fetched again if it has other bytes. A download that
    breaks off is resumed if the source can, also by another process. Any number of processes may fetch into one cache
    at once: for the same object, the others wait for the first.

    Raises `UnknownNameError` (scheme), `SourceDeniedError`, `SourceUnauthorizedError`, `ArtifactMissingError`,
    `DigestMismatchError`, `ArtifactTooLargeError`, `UnsafeArtifactError` (archive), and `PublishError` if the cache
    cannot be written.
    """
    _allowed_source(uri, access)  # also for what another pool, or an earlier policy, left in the cache
    target = _cache.object_path(cache, sha256)

    def is_there() -> bool:
        return _VERIFIED.is_verified(target, lambda: target.is_file() and _cache.is_file_of(target, sha256))

    if is_there():
        return _cache.touch(target)
    with separate_fetch(), _cache.locked_partial(cache, sha256) as part:
        if not is_there():
            source = _Reader(access, cache, retry_policy, progress)
            source.download(uri, access.max_bytes).verified(part, sha256)
            _cache.commit(part, cache, sha256)
            _VERIFIED.add(target)
    return target


def distrust(path: Path) -> None:
    """Hash an object of a cache again at its next use: it was used, and had other bytes than its name says."""
    _VERIFIED.forget(path)


def fetch_folder(
    uri: str,
    sha256: str,
    cache: Path,
    access: Access = _STRICT,
    *,
    retry_policy: RetryPolicy = _DEFAULT_RETRY,
) -> Path:
    """Return the verified folder `<cache>/folders/<sha256>`, copied, downloaded or unpacked if it is missing.

    `sha256` is a `folder_digest`; over HTTP, the list that it hashes has to be at `<uri>.sha256`. For an archive it is
    the digest of the file, and checked before anything is unpacked. Raises as `fetch` does; symbolic links and special
    files are refused.
    """
    source = _allowed_source(uri, access)
    target = _cache.folder_path(cache, sha256)

    def is_intact() -> bool:
        if not is_archive(uri):
            return is_folder_of(target, sha256)
        archive = fetch(uri, sha256, cache, access, retry_policy=retry_policy)
        return is_unpacked(target, archive, uri, cache, access.max_bytes)

    if _VERIFIED.is_verified(target, is_intact):
        return _cache.touch(target)
    with separate_fetch(), _cache.locked_partial(cache, f"{sha256}-folder"):
        if _VERIFIED.is_verified(target, is_intact):  # another fetch was first, and its folder is in use
            return _cache.touch(target)
        if target.is_dir():
            set_aside(target, cache)
        reader = _Reader(access, cache, retry_policy, None)
        if is_archive(uri):
            archive = fetch(uri, sha256, cache, access, retry_policy=retry_policy)
            unpack_folder(archive, uri, sha256, cache, access.max_bytes)
        elif isinstance(source, FileSource):
            copy_folder(source.allowed(uri, access), uri, sha256, cache, access.max_bytes)
        elif isinstance(source, FolderSource):
            files = ((path, _below(uri, path)) for path in source.files(uri, access))
            download_files(reader.receive, files, uri, sha256, cache, access.max_bytes)
        else:
            download_listed(reader.receive, uri, sha256, cache, access.max_bytes)
        _VERIFIED.add(target)
    return target


def fetch_unpinned(uri: str, access: Access, max_bytes: int, *, retry_policy: RetryPolicy = _DEFAULT_RETRY) -> bytes:
    """Return the content of a small file that proves itself, such as a signature; raises as `fetch` does."""
    content = io.BytesIO()
    _Reader(access, None, retry_policy, None).download(uri, max_bytes).into(_cache.PartialFile(content))
    return content.getvalue()


def resolved(uri: str, base: str | None) -> str:
    """Return `uri` if it is absolute, else its place below the folder `base`, a URI or an absolute path.

    Raises `RelativeUriError` if there is no base, and `UnknownNameError` if no source reads it.
    """
    if _has_scheme(uri) or uri.startswith("/"):
        return uri
    if not base:
        schemes = ", ".join(f"{scheme}:" for scheme in sorted(SOURCES))
        raise RelativeUriError(f"{uri!r} is relative, and there is no base; allowed: an absolute path, {schemes}")
    source_of(base)
    folder = base if _has_scheme(base) else FileSource().path(base).as_uri()
    relative = "#".join(map(quote, _split(uri))).rstrip("#")
    scheme, _, rest = (folder.rstrip("/") + "/").partition(":")
    # `urljoin` joins few schemes.
    return f"{scheme}:{urljoin(f'file:{rest}', relative).removeprefix('file:')}"


def source_of(uri: str) -> ArtifactSource:
    """Return the source that reads `uri`; a plain path is a file. Raises `UnknownNameError`."""
    scheme = _scheme(uri)
    if scheme not in SOURCES:
        raise UnknownNameError("artifact scheme", scheme, SOURCES)
    return SOURCES[scheme]


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reader of files, and of files within archives, which need a cache."""

    access: Access
    cache: Path | None
    retry_policy: RetryPolicy
    progress: Progress | None

    def download(self, uri: str, max_bytes: int) -> Download:
        return Download(uri, lambda start: self.open(uri, start), max_bytes, self.retry_policy, self.progress)

    def receive(self, uri: str, part: _cache.PartialFile, max_bytes: int) -> None:
        self.download(uri, max_bytes).into(part)

    @contextmanager
    def open(self, uri: str, start: int) -> Iterator[Stream]:
        source = _allowed_source(uri, self.access)
        whole, member = _split(uri)
        if not member:
            with source.open(uri, self.access, start) as stream:
                yield stream
            return
        if self.cache is None or not is_archive(whole):
            raise ArtifactMissingError(f"{uri!r} names a file within {whole!r}; allowed in {', '.join(SUFFIXES)}")
        spool = _cache.partial_path(self.cache)
        with (
            source.open(whole, self.access) as archive,
            open_member(archive, whole, member, self.access.max_bytes, spool) as stream,
        ):
            yield stream


def _allowed_source(uri: str, access: Access) -> ArtifactSource:
    source = source_of(uri)
    try:
        host = urlsplit(uri.replace(_DATASETS, "hf://", 1)).hostname or ""
    except ValueError as error:
        raise ArtifactMissingError(f"{uri!r} is not a URI: {error}") from error
    access.check_uri(_scheme(uri), host if _has_scheme(uri) else "")
    if isinstance(source, FileSource):
        source.allowed(_split(uri)[0], access)
    return source


def _split(uri: str) -> tuple[str, str]:
    """Return the URI of a file, and the member within it, empty without one."""
    if _scheme(uri) in _WITH_MEMBERS:
        return uri, ""
    if not _has_scheme(uri):
        # A path is not a URI: the name of a file may contain a #.
        whole, _, member = uri.partition("#")
        return (whole, member) if is_archive(whole) else (uri, "")
    whole, member = urldefrag(uri)
    return whole, unquote(member)


def _below(uri: str, relative: str) -> str:
    joint = "#" if _scheme(uri) in _WITH_MEMBERS and "#" not in uri else "/"
    return f"{uri.rstrip('/')}{joint}{quote(relative)}"


def _scheme(uri: str) -> str:
    return uri.partition(":")[0].lower() if _has_scheme(uri) else "file"


def _has_scheme(uri: str) -> bool:
    head, colon, _ = uri.partition(":")
    return bool(colon) and "/" not in head
