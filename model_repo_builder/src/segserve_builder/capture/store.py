"""Samples in an object store or folder: their names, manifest rows, and their deletion.

A sample is three objects below its model's name: `images/KEY.jpg` (or `.png`), `annotations/KEY.json` (COCO) and
`manifest/KEY.json` (one JSON line). The row is written last and removed last, so that objects without a row are not a
sample, and whatever a crash leaves is found by its name, also a local folder's unfinished `KEY.jpg#1`. A key is the
time in milliseconds and a digest of the request's id, so that samples are found by age and by request without being
read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segserve_builder.capture.rule import SINK_SCHEMES, CaptureReason
from segserve_builder.errors import ArtifactMissingError, MissingPackageError, SinkError
from segserve_builder.sources.access import Access
from segserve_builder.sources.file import FileSource
from segserve_builder.sources.object_store import ObjectStoreSource, describe_error

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_KEY: Final = re.compile(r"(?P<at_ms>\d{13})-(?P<request>[0-9a-f]{16})")
_FOLDERS: Final = ("images", "annotations", "manifest")
_MANIFEST: Final = "manifest"
_READS: Final = 16
"""Rows that are read at once: a store answers each after some milliseconds, and there may be ten thousands."""


class ManifestRow(BaseModel):
    """One line of the manifest, with all that is known of a sample.

    `captured_at_s` is Unix time. `uncertainty` and `disagreement` are from 0 to 1, None where they are not known.
    `image` and `annotations` are names below the model's folder; an answer that failed has no annotations.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    key: str
    model: str
    revision: str
    request_id: str
    captured_at_s: float
    reasons: tuple[CaptureReason, ...]
    image: str
    image_sha256: str
    annotations: str | None = None
    annotations_sha256: str | None = None
    size: tuple[int, int]
    slice: str = Field("", pattern=r"^[A-Za-z0-9._-]{0,40}$")
    parameters: dict[str, Any] = Field(default_factory=dict)
    redacted: tuple[str, ...] = ()
    uncertainty: float | None = None
    disagreement: float | None = None

    def to_line(self) -> bytes:
        """Return the row as one line of JSON."""
        return self.model_dump_json().encode() + b"\n"


@dataclass(frozen=True, slots=True)
class StoredSample:
    """A sample that is to be written: its row, the image's file and the COCO document, if there is one."""

    row: ManifestRow
    image: bytes
    annotations: bytes | None


def sample_key(captured_at_s: float, request_id: str) -> str:
    """Return the key of a sample."""
    return f"{int(captured_at_s * 1000):013d}-{_request_digest(request_id)}"


def _request_digest(request_id: str) -> str:
    return hashlib.sha256(request_id.encode("utf-8", "surrogateescape")).hexdigest()[:16]


class SampleStore:
    """The samples below a URI: a folder or file: URI, s3:, gs: or az:. Raises `SinkError` where it cannot be used."""

    def __init__(self, uri: str, access: Access) -> None:
        self._uri = uri
        with self._translated():
            self._store, self._prefix = _connected(uri, access)

    def write(self, sample: StoredSample) -> None:
        """Write a sample; doing it again changes nothing."""
        model, row = sample.row.model, sample.row
        self._put(model, row.image, sample.image)
        if sample.annotations is not None and row.annotations is not None:
            self._put(model, row.annotations, sample.annotations)
        self._put(model, f"{_MANIFEST}/{row.key}.json", row.to_line())

    def rows(self, model: str, *, since_s: float = 0.0, newest: int | None = None) -> Iterator[ManifestRow]:
        """Yield the rows of a model, the oldest first, without rows that cannot be read.

        Only those captured since a time, and at most the `newest` of them, are read.
        """
        names = [name for name, key in self._keys(model, _MANIFEST) if int(key["at_ms"]) >= since_s * 1000]
        names = sorted(names)[-newest:] if newest else sorted(names)
        with ThreadPoolExecutor(_READS) as reads:
            yield from filter(None, reads.map(lambda name: self._row(model, name), names))

    def row(self, model: str, wanted: str) -> ManifestRow | None:
        """Return the sample with this key, or the newest one of the request with this id, or None."""
        request = _request_digest(wanted)
        found = (name for name, key in self._keys(model, _MANIFEST) if wanted == key[0] or request == key["request"])
        return next(filter(None, (self._row(model, name) for name in sorted(found, reverse=True))), None)

    def image(self, row: ManifestRow) -> bytes:
        """Return the file of a sample's image."""
        return self._checked(row, row.image, row.image_sha256)

    def coco(self, row: ManifestRow) -> dict[str, Any] | None:
        """Return a sample's COCO document; None if its answer failed."""
        if row.annotations is None or row.annotations_sha256 is None:
            return None
        document: dict[str, Any] = json.loads(self._checked(row, row.annotations, row.annotations_sha256))
        return document

    def delete(self, model: str, *, before_s: float | None = None, request_id: str | None = None) -> int:
        """Delete the samples captured before a time, or of a request; return how many objects are gone."""
        request = None if request_id is None else _request_digest(request_id)
        gone = 0
        for folder in _FOLDERS:
            for name, key in (*self._keys(model, folder), *self._unfinished(model, folder)):
                is_old = before_s is not None and int(key["at_ms"]) < before_s * 1000
                if is_old or (request is not None and key["request"] == request):
                    import obstore
                    from obstore.store import LocalStore

                    path = self._path(model, name)
                    with suppress(FileNotFoundError), self._translated(missing=True):
                        if isinstance(self._store, LocalStore) and self._store.prefix is not None and "#" in name:
                            Path(self._store.prefix, path).unlink()
                        else:
                            obstore.delete(self._store, path)
                    gone += 1
        return gone

    def _row(self, model: str, name: str) -> ManifestRow | None:
        try:
            return ManifestRow.model_validate_json(self._get(model, name))
        except (ValidationError, FileNotFoundError):  # removed meanwhile
            return None

    def _checked(self, row: ManifestRow, name: str, sha256: str) -> bytes:
        try:
            content = self._get(row.model, name)
        except FileNotFoundError as error:
            raise SinkError(f"{self._uri}: the sample {row.key} has no {name} any more") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise SinkError(f"{self._uri}: {name} is not what was captured: its sha256 differs")
        return content

    def _path(self, model: str, name: str) -> str:
        # A resource's name is a safe part of a path; a row's name is read from a store, which others may write to.
        return "/".join(part for part in (self._prefix, quote(model, safe=""), name) if part)

    def _put(self, model: str, name: str, content: bytes) -> None:
        import obstore

        with self._translated():
            obstore.put(self._store, self._path(model, name), content)

    def _get(self, model: str, name: str) -> bytes:
        import obstore

        if name.partition("/")[0] not in _FOLDERS or ".." in name.split("/"):
            raise SinkError(f"{self._uri}: {name!r} is not the name of a sample's object")
        with self._translated(missing=True):
            return bytes(obstore.get(self._store, self._path(model, name)).bytes())

    def _keys(self, model: str, folder: str) -> list[tuple[str, re.Match[str]]]:
        """Return the objects of samples in a folder, and their keys."""
        import obstore

        prefix = self._path(model, folder)
        with self._translated():
            paths = [meta["path"] for chunk in obstore.list(self._store, prefix, chunk_size=1000) for meta in chunk]
        return _with_keys(folder, (path.rpartition("/")[2] for path in paths))

    def _unfinished(self, model: str, folder: str) -> list[tuple[str, re.Match[str]]]:
        """Return the files `KEY.jpg#1` of writes that a crash ended in a local folder; its listing hides them."""
        from obstore.store import LocalStore

        if not isinstance(self._store, LocalStore) or self._store.prefix is None:
            return []
        place = Path(self._store.prefix, self._path(model, folder))
        return _with_keys(folder, (path.name for path in place.glob("*#*")))

    @contextmanager
    def _translated(self, *, missing: bool = False) -> Iterator[None]:
        """Raise errors of the library as `SinkError`, but FileNotFoundError if something may be `missing`."""
        try:
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise MissingPackageError("obstore", "sources") from error
        try:
            yield
        except FileNotFoundError:
            if missing:
                raise
            raise SinkError(f"samples at {self._uri} cannot be reached: there is no such place") from None
        except (BaseError, OSError, ValueError) as error:
            raise SinkError(f"samples at {self._uri} cannot be reached: {describe_error(error)}") from error


def _with_keys(folder: str, names: Iterable[str]) -> list[tuple[str, re.Match[str]]]:
    return [(f"{folder}/{name}", key) for name in names if (key := _KEY.match(name)) is not None]


def _connected(uri: str, access: Access) -> tuple[ObjectStore, str]:
    """Return a store and the prefix in it; raises the errors of sources for what `access` does not allow."""
    from obstore.store import LocalStore

    from segserve_builder.sources import source_of

    scheme = urlsplit(uri).scheme if "://" in uri else "file"
    if scheme not in SINK_SCHEMES:
        raise SinkError(f"samples cannot be kept at {uri!r}; allowed: a folder, {', '.join(SINK_SCHEMES)}")
    source = source_of(uri)
    if isinstance(source, FileSource):
        try:
            folder = source.allowed(uri, access)
        except ArtifactMissingError as error:
            raise SinkError(str(error)) from error
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return LocalStore(folder), ""
    assert isinstance(source, ObjectStoreSource), "the schemes of sinks are the schemes of files and object stores"
    bucket, prefix = source.place(uri, access)
    return source.connect(bucket, access).store, prefix.strip("/")
