"""What object stores have in common: buckets, keys, ranges, listings and errors; `obstore` does the talking."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Final
from urllib.parse import unquote, urlsplit

from segserve_builder.errors import (
    ArtifactMissingError,
    ArtifactTooLargeError,
    MissingPackageError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources.connecting import checked_addresses

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from obstore import GetResult
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

    from segserve_builder.sources.access import Access
    from segserve_builder.sources.base import Stream

_BUCKET: Final = re.compile(r"[A-Za-z0-9$][A-Za-z0-9._-]{0,221}")
_STATUS: Final = re.compile(r"status code: (\d{3})([A-Za-z ]*)")
_CODE: Final = re.compile(r"<Code>(\w+)</Code>")
_WHY: Final = re.compile(r"InvalidCertificate|ConnectionRefused|TimedOut|dns error")
_PAST_THE_END: Final = re.compile(r"status code: 416|range starting at")
_CHUNK_BYTES: Final = 2**20
MOST_FILES: Final = 100_000

RETRIES: Final[RetryConfig] = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}
"""Of one request; whoever fetches tries again, from where it broke off."""


class ObjectStream:
    """An object's bytes from `start` on."""

    def __init__(self, result: GetResult) -> None:
        self._chunks = iter(result.stream(_CHUNK_BYTES))
        self._left = memoryview(b"")
        self.start = result.range[0]
        self.size: int = result.meta["size"]
        self.identity = result.meta["e_tag"]

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes; none once all were read. Raises `OSError` where they break off."""
        from obstore.exceptions import BaseError

        while not self._left:
            try:
                chunk = next(self._chunks, None)
            except BaseError as error:
                raise OSError(said(error)) from error
            if chunk is None:
                return b""
            self._left = memoryview(chunk)
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)


class ObjectStoreSource(ABC):
    """Objects by `<scheme>://<bucket>/<key>`; in a key `%`, `?` and `#` are written percent-encoded.

    The server's usual host is looked up and checked before anything is sent to it. The library connects by itself, and
    can neither be told the address nor to follow no redirect: a store's own server is trusted not to lead elsewhere.
    """

    scheme: ClassVar[str]

    @abstractmethod
    def connect(self, bucket: str, access: Access) -> ObjectStore:
        """Return the bucket, with the credentials that `access` has for it; nothing is sent yet.

        Raises `SourceUnauthorizedError` where a Secret lacks what is needed, `SourceDeniedError` as `guarded` does.
        """

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the object, from its first byte where nothing is left after `start`.

        Raises `SourceDeniedError`, `SourceUnauthorizedError`, `ArtifactMissingError` and `SourceUnavailableError`.
        """
        bucket, key = self._place(uri, access)
        if not key or key.endswith("/"):
            raise ArtifactMissingError(f"{uri!r} names a folder; an artifact is one object")
        with self._telling(uri, bucket, access):
            result = _get(self.connect(bucket, access), key, start)
        yield ObjectStream(result)

    def files(self, uri: str, access: Access) -> Iterator[str]:
        """Yield the keys of the objects below `uri`, relative to it; those that only mark a folder are left out."""
        bucket, key = self._place(uri, access)
        prefix = key.rstrip("/") + "/" if key else ""
        with self._telling(uri, bucket, access):
            found = dict(islice(_listed(self.connect(bucket, access), prefix), MOST_FILES + 1))
        if len(found) > MOST_FILES:
            raise ArtifactTooLargeError(f"below {uri!r} are more than the {MOST_FILES} objects that are allowed")
        parents = {"/".join(parts[:n]) for parts in (name.split("/") for name in found) for n in range(len(parts))}
        names = [name for name, size in found.items() if size or name not in parents]
        if not names:
            raise ArtifactMissingError(f"nothing is below {uri!r}")
        yield from sorted(names)

    def _place(self, uri: str, access: Access) -> tuple[str, str]:
        bucket, _, key = uri.partition("://")[2].partition("/")
        if not _BUCKET.fullmatch(bucket):
            raise ArtifactMissingError(f"{uri!r} names no bucket; it has the form {self.scheme}://bucket/key")
        access.check_uri(self.scheme, bucket)
        return bucket, unquote(key)

    @contextmanager
    def _telling(self, uri: str, bucket: str, access: Access) -> Iterator[None]:
        """Raise what the library raises as ours."""
        try:
            from obstore.exceptions import BaseError
        except ImportError as error:
            raise MissingPackageError("obstore", "sources") from error
        try:
            yield
        except ValueError as error:
            raise ArtifactMissingError(f"{uri!r} is no object's name: {said(error)}") from error
        except (BaseError, FileNotFoundError) as error:
            raise _translated(error, uri, self._who(bucket, access)) from error

    def _who(self, bucket: str, access: Access) -> str:
        credential = access.credential(self.scheme, bucket)
        if credential is not None:
            return f"the Secret {credential.name!r}"
        return "the environment's credentials, if there are any" if access.ambient else "callers without credentials"


def guarded(access: Access, scheme: str, usual: str) -> str:
    """Return the server's URL: the one of `access`, which may lie anywhere, or the usual one, with its host checked."""
    named = access.endpoints.get(scheme)
    if named is not None:
        return named.rstrip("/")
    place = urlsplit(usual)
    checked_addresses(place.hostname or "", place.port or 443, access)
    return usual


def client(endpoint: str, secret: Mapping[str, str]) -> ClientConfig:
    """Return how connections are made: waits are bounded, the time for all of a large object is not.

    `ca.crt` of the Secret is trusted beside this machine's authorities.
    """
    options: ClientConfig = {
        "allow_http": endpoint.startswith("http:"),
        "connect_timeout": "10s",
        "read_timeout": "30s",
        "timeout": "1d",
        "user_agent": "segserve",
    }
    if authorities := secret.get("ca.crt", "") + ("" if _has_authorities() else _usual_authorities()):
        options["root_certificate"] = authorities
    return options


@cache
def _has_authorities() -> bool:
    """Tell whether the library finds authorities on this machine. Without any it connects to nobody, TLS or not."""
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


def said(error: Exception) -> str:
    """Return what a server answered, or what went wrong before; without URLs, as they can be signed."""
    text, _, details = str(error).partition("\n\nDebug source")
    if status := _STATUS.search(text):
        code = _CODE.search(text)
        return f"{status[1]}{status[2].rstrip()}" + (f" ({code[1]})" if code else "")
    # Why there is no connection stands in the details alone.
    why = _WHY.search(details)
    return text.rpartition(" - ")[2].strip() + (f" ({why[0]})" if why else "")


def _translated(error: Exception, uri: str, who: str) -> Exception:
    text = str(error)
    found = _STATUS.search(text)
    status = int(found[1]) if found else None
    if status in (401, 403) or "token request" in text:
        return SourceUnauthorizedError(f"{uri!r} is not given to {who}: {said(error)}")
    if status is not None and status < 500 and status not in (408, 429):
        return ArtifactMissingError(f"{uri!r} cannot be fetched: {said(error)}")
    if "redirect" in text:
        return ArtifactMissingError(f"{uri!r} is in another region than was asked")
    return SourceUnavailableError(f"{uri!r} cannot be fetched now: {said(error)}")


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
