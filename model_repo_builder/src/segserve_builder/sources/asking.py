"""GET over the guard: each redirect is checked as the first URL was, and credentials stay with their host."""

from __future__ import annotations

import http.client
import json
import re
import ssl
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urljoin, urlsplit

from segserve_builder.errors import (
    ArtifactMissingError,
    SourceDeniedError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources.connecting import PlainConnection, TlsConnection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from segserve_builder.sources.access import Access

MAX_REDIRECTS: Final = 5
TIMEOUT_S: Final = 30.0
LONGEST_DESCRIPTION: Final = 8 * 2**20
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}
_UNSAFE: Final = re.compile(r"[^\x21-\x7e]|\\")


@dataclass(frozen=True, slots=True)
class Ask:
    """What is sent. `scheme` is the source's: what is allowed, and which hosts for it.

    `headers` go to every host, `authorization` to that of the first URL alone.
    """

    scheme: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None
    authority: str | None = None
    """The PEM of a certificate authority that is trusted beside those of this machine."""

    returned: frozenset[int] = frozenset()
    """Statuses that the caller reads itself, beside 200 to 299."""

    refusal: Callable[[Answer], str] | None = None
    """Says what a message tells of an answer that refuses, after its status."""


@dataclass(frozen=True, slots=True)
class Place:
    """A URL taken apart, by one parser for both what is checked and what is connected to."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def text(self) -> str:
        """The URL without its query, which may hold a signature, for messages."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}{self.target.partition('?')[0]}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Whose a credential is."""
        return self.scheme, self.host, self.port


class Answer:
    """A response whose body is still to be read."""

    def __init__(self, place: Place, response: http.client.HTTPResponse) -> None:
        self.place = place
        self.status = response.status
        self.headers = response.headers
        self._response = response

    def read(self, size: int, /) -> bytes:
        """Return what is there, at most `size` bytes; a body that ends too early raises `IncompleteRead`."""
        chunk = self._response.read1(size)
        if not chunk and self._response.length:
            raise http.client.IncompleteRead(chunk, self._response.length)
        return chunk

    def content(self) -> bytes:
        """Return the whole body of a description; raises `ArtifactMissingError` where it is longer than one may be."""
        body = bytearray()
        try:
            while len(body) <= LONGEST_DESCRIPTION and (chunk := self.read(LONGEST_DESCRIPTION + 1)):
                body += chunk
        except (OSError, http.client.HTTPException) as error:
            raise SourceUnavailableError(f"{self.place.text!r} broke off: {error}") from error
        if len(body) > LONGEST_DESCRIPTION:
            raise ArtifactMissingError(f"{self.place.text!r} is longer than {LONGEST_DESCRIPTION} bytes")
        return bytes(body)

    def json(self) -> Any:
        """Return the body as JSON."""
        try:
            return json.loads(self.content())
        except ValueError as error:
            raise ArtifactMissingError(f"{self.place.text!r} is not JSON: {error}") from error


def place_of(url: str) -> Place:
    """Take an http(s) URL apart; raises `SourceDeniedError` for one that different readers could read differently."""
    if unsafe := _UNSAFE.search(url):
        raise SourceDeniedError(f"a URL has {unsafe[0]!r}; allowed is ASCII, percent-encoded, and hosts as xn--...")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ArtifactMissingError(f"an http(s) URL with a host is needed: {error}") from error
    if "@" in parts.netloc:
        raise SourceDeniedError("a URL names a user or a password; name a credential instead")
    if parts.scheme not in _PORTS:
        raise SourceDeniedError(f"the scheme {parts.scheme!r} is not allowed here; allowed: http, https")
    if not parts.hostname:
        raise ArtifactMissingError(f"{url.partition('?')[0]!r} has no host; an http(s) URL with a host is needed")
    target = (quote(parts.path, safe="/%:@!$&'()*+,;=~-._") or "/") + (f"?{parts.query}" if parts.query else "")
    return Place(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], target)


@contextmanager
def ask(url: str, access: Access, what: Ask) -> Iterator[Answer]:
    """GET `url`, through at most five redirects.

    Raises `SourceDeniedError` before anything is sent to what is not allowed, `SourceUnauthorizedError` for 401 and
    403, `SourceUnavailableError` for what may pass soon, and `ArtifactMissingError` for everything else.
    """
    first = place = place_of(url)
    with ExitStack() as stack:
        for _ in range(MAX_REDIRECTS + 1):
            answer = _sent(stack, place, access, what, authorized=place.origin == first.origin)
            if answer.status not in _REDIRECTS or not answer.headers["Location"]:
                _check_status(answer, what)
                yield answer
                return
            stack.close()
            place = _redirected(answer, first, access, what)
    raise ArtifactMissingError(f"{first.text!r} redirects more than {MAX_REDIRECTS} times")


def _sent(stack: ExitStack, place: Place, access: Access, what: Ask, *, authorized: bool) -> Answer:
    connection: PlainConnection
    if place.scheme == "https":
        connection = TlsConnection(place.host, place.port, access, TIMEOUT_S, what.authority)
    else:
        connection = PlainConnection(place.host, place.port, access, TIMEOUT_S)
    stack.enter_context(closing(connection))
    headers = {"User-Agent": "segserve", "Accept-Encoding": "identity", "Connection": "close"} | dict(what.headers)
    if authorized and what.authorization:
        headers["Authorization"] = what.authorization
    try:
        connection.request("GET", place.target, headers=headers)
        return Answer(place, stack.enter_context(connection.getresponse()))
    except ssl.SSLCertVerificationError as error:
        raise ArtifactMissingError(f"{place.text!r}: the server's certificate is refused: {error}") from error
    except (OSError, http.client.HTTPException) as error:
        raise SourceUnavailableError(f"{place.text!r} cannot be fetched: {error}") from error


def _redirected(answer: Answer, first: Place, access: Access, what: Ask) -> Place:
    """Return where a redirect leads, checked as the first URL was; its address is checked when it is connected to."""
    scheme, host, port = answer.place.origin
    base = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}{answer.place.target}"
    try:
        place = place_of(urljoin(base, answer.headers["Location"]))
        if place.origin != first.origin:
            access.check_uri(place.scheme if what.scheme in _PORTS else what.scheme, place.host)
    except SourceDeniedError as error:
        raise SourceDeniedError(f"{answer.place.text!r} redirects: {error}") from error
    if scheme == "https" and place.scheme == "http":
        raise SourceDeniedError(f"{answer.place.text!r} redirects from https to http, which is not followed")
    return place


def _check_status(answer: Answer, what: Ask) -> None:
    status = answer.status
    if 200 <= status < 300 or status in what.returned:
        return
    seen = f"{answer.place.text!r}: the server answers {status} {http.client.responses.get(status, '')}".rstrip()
    if what.refusal is not None:
        seen += what.refusal(answer)
    elif status in (401, 403):
        seen += "; the credential is not enough" if what.authorization else "; no credential fits it"
    if status in _PASSING:
        raise SourceUnavailableError(seen, _retry_after_s(answer))
    if status in (401, 403):
        raise SourceUnauthorizedError(seen)
    raise ArtifactMissingError(seen)


def _retry_after_s(answer: Answer) -> float | None:
    """Return the pause that a server asks for, in seconds or as a date by its own clock."""
    text = answer.headers.get("Retry-After", "")
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        now = parsedate_to_datetime(answer.headers.get("Date", ""))
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (TypeError, ValueError):
        return None
