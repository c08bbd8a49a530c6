"""Base of the object stores: buckets, keys, ranges, listings and errors.

Objects are read over guarded HTTP, by signed URLs. `obstore` lists, and reads if only it has the token.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    MissingPackageError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream
from segserve_builder.sources.http import SourceRequest, open_file
from segserve_common.http.urls import RequestError, lookup

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig, GCSStore, ObjectStore, RetryConfig, S3Store

    from segserve_common.http.guard import StreamedResponse

_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,221}")
_STATUS: Final = re.compile(r"status code: (\d{3})([A-Za-z ]*)")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_WHY: Final = re.compile(r"InvalidCertificate|ConnectionRefused|TimedOut|dns error")
_PAST_THE_END: Final = re.compile(r"status code: 416|range starting at")
_CHUNK_BYTES: Final = 2**20
MOST_FILES: Final = 100_000

RETRIES: Final[RetryConfig] = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}
"""Retries within one call of the library; beyond them `fetch` retries, and resumes."""

SIGNED_FOR: Final = timedelta(hours=1)
"""How long a signed URL is valid: it is used at once, but clocks differ."""

Located: TypeAlias = "Callable[[str], str]"
"""Returns the URL of the object with a key, signed if that is needed."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket in the library, and the function to the URLs of its objects; None if only the library can read them."""

    store: ObjectStore
    located: Located | None


class TokenStream:
    """An object's bytes from `start` on, read by the library."""

    def __init__(self, result: GetResult) -> None:
        self._chunks = iter(result.stream(_CHUNK_BYTES))
        self._left = memoryview(b"")
        self.start = result.range[0]
        self.size: int = result.meta["size"]
        self.identity = result.meta["e_tag"]

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end. Raises `OSError` if they break off."""
        from obstore.exceptions import BaseError

        while not self._left:
            try:
                chunk = next(self._chunks, None)
            except BaseError as error:
                raise OSError(describe_error(error)) from error
            if chunk is None:
                return b""
            self._left = memoryview(chunk)
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)


class ObjectStoreSource(ABC):
    """Objects by `<scheme>://<bucket>/<key>`; in a key `%`, `?` and `#` are percent-encoded.

    The server's usual host is looked up and checked before anything is sent to it. The library itself connects for
    listings and with tokens; it takes neither an address nor an option against redirects.
    """

    scheme: ClassVar[str]
    headers: ClassVar[Mapping[str, str]] = {}

    @abstractmethod
    def connect(self, bucket: str, access: Access) -> Bucket:
        """Return the bucket, with its credentials of `access`; sends nothing.

        Raises `SourceUnauthorizedError` if a Secret lacks a key, and `SourceDeniedError` as `guarded` does.
        """

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the object, at its first byte if nothing is left after `start`.

        Raises `SourceDeniedError`, `SourceUnauthorizedError`, `ArtifactMissingError` and `SourceUnavailableError`.
        """
        bucket, key = self.place(uri, access)
        if not key or key.endswith("/"):
            raise ArtifactMissingError(f"{uri!r} names a folder; expected one object")
        if not {"", ".", ".."}.isdisjoint(key.split("/")):
            raise ArtifactMissingError(f"{uri!r} is not the name of an object: no part may be empty, '.' or '..'")
        with self._translated_errors(uri, bucket, access):
            found = self.connect(bucket, access)
            asked = found.located(key) if found.located else _get(found.store, key, start)
        if not isinstance(asked, str):
            yield TokenStream(asked)
            return
        with open_file(asked, access, self._request(bucket, access), start, as_stored=True) as stream:
            yield stream

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the keys of the objects below `uri`, relative to it, without those that only mark a folder."""
        bucket, key = self.place(uri, access)
        prefix = key.rstrip("/") + "/" if key else ""
        with self._translated_errors(uri, bucket, access):
            found = dict(islice(_listed(self.connect(bucket, access).store, prefix), MOST_FILES + 1))
        if len(found) > MOST_FILES:
            raise ArtifactTooLargeError(f"{uri!r} has more than the {MOST_FILES} objects that are allowed")
        parents = {"/".join(parts[:n]) for parts in (name.split("/") for name in found) for n in range(len(parts))}
        names = [name for name, size in found.items() if size or name not in parents]
        if not names:
            raise ArtifactMissingError(f"there are no objects below {uri!r}")
        yield from sorted(names)

    def place(self, uri: str, access: Access) -> tuple[str, str]:
        """Return the bucket and key of a URI; raises `ArtifactMissingError` and `SourceDeniedError`."""
        bucket, _, key = uri.partition("://")[2].partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ArtifactMissingError(f"{uri!r} names no bucket; expected {self.scheme}://bucket/key")
        access.check_uri(self.scheme, bucket)
        return bucket, unquote(key)

    def _request(self, bucket: str, access: Access) -> SourceRequest:
        authority = _authorities(access.secret(self.scheme, bucket))
        caller = self._caller(bucket, access)
        return SourceRequest(
            self.scheme, self.headers, authority=authority, refusal=lambda response: _refusal(response, caller)
        )

    @contextmanager
    def _translated_errors(self, uri: str, bucket: str, access: Access) -> Iterator[None]:
        """Raise the errors of the library as the builder's."""
        try:
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise MissingPackageError("obstore", "sources") from error
        try:
            yield
        except ValueError as error:
            raise ArtifactMissingError(f"{uri!r} is not the name of an object: {describe_error(error)}") from error
        except (BaseError, FileNotFoundError) as error:
            raise _translated(error, uri, self._caller(bucket, access)) from error

    def _caller(self, bucket: str, access: Access) -> str:
        credential = access.credential(self.scheme, bucket)
        if credential is not None:
            return f"the Secret {credential.name!r}"
        return "the environment's credentials, if there are any" if access.ambient else "callers without credentials"


def guarded(access: Access, scheme: str, usual: str) -> str:
    """Return the server's URL: the one in `access`, at any address, or the usual one, whose host is checked."""
    named = access.endpoints.get(scheme)
    if named is not None:
        return named.rstrip("/")
    place = urlsplit(usual)
    try:
        lookup(place.hostname or "", place.port or 443, access.check_address)
    except OSError as error:
        raise SourceUnavailableError(str(error)) from error
    return usual.rstrip("/")


def client(endpoint: str, secret: Mapping[str, str]) -> ClientConfig:
    """Return the options of connections: waits are bounded, the time for a large object is not.

    `ca.crt` of the Secret is trusted in addition to this machine's authorities.
    """
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http:"),
        "connect_timeout": "10s",
        "read_timeout": "30s",
        "timeout": "1d",
        "user_agent": "segserve",
    }
    if authorities := _authorities(secret):
        options["root_certificate"] = authorities
    return options


def unsigned(bucket_url: str, query: str = "") -> Located:
    """Return the function from keys to plain URLs, with a `query` that grants access to all objects."""
    return lambda key: f"{bucket_url}/{quoted(key)}" + (f"?{query}" if query else "")


def signed(store: S3Store | GCSStore, *, encode: Callable[[str], str] = str) -> Located:
    """Return the function from keys to URLs that the library signs; `encode` encodes keys if the library does not."""
    import obstore

    return lambda key: obstore.sign(store, "GET", encode(key), SIGNED_FOR)


def quoted(key: str) -> str:
    """Return a key encoded for a URL."""
    return quote(key, safe="/~")


def _authorities(secret: Mapping[str, str]) -> str:
    return secret.get("ca.crt", "") + ("" if _has_authorities() else _usual_authorities())


@cache
def _has_authorities() -> bool:
    """Return whether the library finds authorities on this machine; without any it refuses all connections."""
    from obstore.exceptions import BaseError
    from obstore.store import HTTPStore

    try:
        HTTPStore.from_url("https://localhost")
    except BaseError:
        return False
    return True


def _usual_authorities() -> str:
    try:
        import certifi
    except ImportError as error:
        raise MissingPackageError("certifi", "sources") from error
    return "\n" + certifi.contents()


def describe_error(error: Exception) -> str:
    """Return the server's answer, or the cause of a failed connection; without URLs, which can be signed."""
    text, _, details = str(error).partition("\n\nDebug source")
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{status[1]}{status[2].rstrip()}" + (f" ({code[1]})" if code else "")
    # Only the details say why there is no connection.
    why = _WHY.search(details)
    return text.rpartition(" - ")[2].strip() + (f" ({why[0]})" if why else "")


def _refusal(response: StreamedResponse, caller: str) -> str:
    """Return the code of a refusal, and the credentials that it is for."""
    try:
        code = _CODE.search(response.content().decode(errors="replace"))
    except RequestError:
        code = None
    text = (f" ({code[1]})" if code else "") + f" to {caller}"
    if region := response.headers.get("x-amz-bucket-region"):
        text += f"; the bucket is in the region {region!r}, which is named by the key region of its Secret"
    return text


def _translated(error: Exception, uri: str, caller: str) -> Exception:
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    if status in (401, 403) or "token request" in text:
        return SourceUnauthorizedError(f"{uri!r} is refused to {caller}: {describe_error(error)}")
    if status is not None and status < 500 and status not in (408, 429):
        return ArtifactMissingError(f"{uri!r} cannot be fetched: {describe_error(error)}")
    if "redirect" in text:
        return ArtifactMissingError(f"{uri!r} is in another region than the one of the request")
    return SourceUnavailableError(f"{uri!r} cannot be fetched now: {describe_error(error)}")


def _get(store: ObjectStore, key: str, start: int) -> GetResult:
    import obstore
    from obstore.exceptions import GenericError

    if not start:
        return obstore.get(store, key)
    try:
        return obstore.get(store, key, options={"range": {"offset": start}})
    except GenericError as error:
        if not _PAST_THE_END.search(str(error)):
            raise
        return obstore.get(store, key)


def _listed(store: ObjectStore, prefix: str) -> Iterator[tuple[str, int]]:
    import obstore

    objects: Any = (meta for chunk in obstore.list(store, prefix or None, chunk_size=1000) for meta in chunk)
    for meta in objects:
        if name := meta["path"].removeprefix(prefix.rstrip("/")).lstrip("/"):
            yield name, meta["size"]
