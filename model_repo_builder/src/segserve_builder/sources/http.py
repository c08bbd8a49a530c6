"""The sources `http` and `https`, and guarded requests of all sources: their refusals as the builder's errors.

Files of web servers are read from any byte on, with at most five redirects and 30 s for each wait.
"""

from __future__ import annotations

import base64
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urldefrag

from segserve_builder.errors import (
    ArtifactMissingError,
    SourceDeniedError,
    SourceUnauthorizedError,
    SourceUnavailableError,
)
from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream
from segserve_common.backoff import http_date, retry_after_s
from segserve_common.http.urls import PORTS, RefusedError, RequestError, Url, UrlError

if TYPE_CHECKING:
    from segserve_common.http.guard import StreamedResponse

_PHRASES: Final = {status.value: status.phrase for status in HTTPStatus}
_TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_RANGE_NOT_SATISFIABLE: Final = 416
_PARTIAL_CONTENT: Final = 206
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class SourceRequest:
    """How a source requests URLs. `scheme` is the source's, which decides the hosts that redirects may lead to.

    `headers` go to every host, `authorization` only to the first URL's. `authority` is the PEM of a certificate
    authority that is trusted in addition to this machine's. `returned` are statuses that the caller handles, in
    addition to 200 to 299; `refusal` describes any other response in the message of its error, after the status.
    """

    scheme: str
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None
    authority: str | None = None
    returned: frozenset[int] = frozenset()
    refusal: Callable[[StreamedResponse], str] | None = None


class HttpStream:
    """The body of a response, with what its headers say about the file."""

    def __init__(self, response: StreamedResponse) -> None:
        self.identity = response.headers.get("ETag") or response.headers.get("Last-Modified")
        self.start, self.size = _extent(response)
        self.read = response.read


@contextmanager
def get(url: str, access: Access, request: SourceRequest) -> Iterator[StreamedResponse]:
    """GET `url`, following at most five redirects.

    Raises `SourceDeniedError` before anything is sent to what is not allowed, `SourceUnauthorizedError` for 401 and
    403, `SourceUnavailableError` for what may pass soon, and `ArtifactMissingError` for everything else.
    """
    # Here, as it loads httpx (80 ms, 10 MiB): not every process of a pod sends requests.
    from segserve_common.http import guard

    with _translated():
        guarded = guard.GuardedRequest(
            url=Url.parse(url),
            check_address=access.check_address,
            check_redirect=partial(_check_redirect, access, request.scheme),
            headers=request.headers,
            authorization=request.authorization,
            ssl_context=partial(_ssl_context, request.authority),
        )
        with guard.get(guarded) as response:
            _check_status(response, request)
            yield response


def url_of(text: str) -> Url:
    """Take a URL apart; raises `SourceDeniedError` if parsers read it differently, else `ArtifactMissingError`."""
    with _translated():
        return Url.parse(text)


@contextmanager
def open_file(
    url: str, access: Access, request: SourceRequest, start: int = 0, *, as_stored: bool = False
) -> Iterator[HttpStream]:
    """Open a file at byte `start`, or at its first byte if the server ignores ranges; raises as `get`.

    An encoded body is refused: its digest is not the file's, and it could unpack to a thousand times its length. Set
    `as_stored` if the server sends files as they were stored, with their encoding as a label.
    """
    ranged = request
    if start:
        ranged = replace(
            request,
            headers={**request.headers, "Range": f"bytes={start}-"},
            returned=request.returned | {_RANGE_NOT_SATISFIABLE},
        )
    with get(url, access, ranged) as response:
        if response.status != _RANGE_NOT_SATISFIABLE:
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding != "identity" and not as_stored:
                raise ArtifactMissingError(f"'{response.url}' is sent as {encoding!r}; expected identity")
            stream = HttpStream(response)
            # Some servers send an empty range where others answer 416.
            if not start or stream.start != stream.size:
                yield stream
                return
    with open_file(url, access, request, as_stored=as_stored) as stream:
        yield stream


def authorization(secret: Mapping[str, str]) -> str | None:
    """Return the Authorization header of a secret with `token`, or with `username` and `password`."""
    if any(not value.isprintable() for key, value in secret.items() if key in ("token", "username", "password")):
        raise SourceUnauthorizedError("the credential holds a line break or another control character")
    if not secret.get("token", "").isascii():
        raise SourceUnauthorizedError("the credential's token has characters beyond ASCII")
    if "token" in secret:
        return f"Bearer {secret['token']}"
    if "username" in secret or "password" in secret:
        account = f"{secret.get('username', '')}:{secret.get('password', '')}"
        return "Basic " + base64.b64encode(account.encode()).decode()
    return None


@contextmanager
def _translated() -> Iterator[None]:
    """Raise the errors of guarded HTTP as the builder's."""
    try:
        yield
    except RefusedError as error:
        raise SourceDeniedError(str(error)) from error
    except UrlError as error:
        raise ArtifactMissingError(str(error)) from error
    except RequestError as error:
        raise (SourceUnavailableError if error.is_transient else ArtifactMissingError)(str(error)) from error


def _check_redirect(access: Access, scheme: str, url: Url) -> None:
    try:
        access.check_uri(url.scheme if scheme in PORTS else scheme, url.host)
    except SourceDeniedError as error:
        raise RefusedError(str(error)) from error


def _ssl_context(authority: str | None) -> ssl.SSLContext:
    """Return a context that trusts the authorities of this machine, and the one given as PEM."""
    context = ssl.create_default_context()
    try:
        if authority:
            context.load_verify_locations(cadata=authority)
    except (ssl.SSLError, ValueError) as error:
        raise SourceUnauthorizedError(f"ca.crt of the credential is not a PEM certificate: {error}") from error
    return context


def _check_status(response: StreamedResponse, request: SourceRequest) -> None:
    status = response.status
    if 200 <= status < 300 or status in request.returned:
        return
    message = f"'{response.url}': the server answers {status} {_PHRASES.get(status, '')}".rstrip()
    if request.refusal is not None:
        message += request.refusal(response)
    elif status in (401, 403):
        message += "; the credential does not grant access" if request.authorization else "; no credential matches it"
    if status in _TRANSIENT:
        # By the server's own clock, if it sends it: ours may be wrong.
        now = http_date(response.headers.get("Date"))
        raise SourceUnavailableError(message, retry_after_s(response.headers.get("Retry-After"), now))
    if status in (401, 403):
        raise SourceUnauthorizedError(message)
    raise ArtifactMissingError(message)


def _extent(response: StreamedResponse) -> tuple[int, int | None]:
    """Return the offset of the body's first byte in the file, and the file's size in bytes."""
    if response.status == _PARTIAL_CONTENT:
        extent = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if extent is None:
            raise ArtifactMissingError(f"'{response.url}': the server answers 206 without a Content-Range")
        return int(extent[1]), None if extent[2] == "*" else int(extent[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isascii() and length.isdigit() else None


class HttpSource:
    """Files of a web server; a credential has `token`, or `username` and `password`, and may have `ca.crt`."""

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the response's body."""
        url = url_of(urldefrag(uri).url)
        access.check_uri(url.scheme, url.host)
        secret = access.secret(url.scheme, url.host)
        request = SourceRequest(url.scheme, authorization=authorization(secret), authority=secret.get("ca.crt"))
        with open_file(urldefrag(uri).url, access, request, start) as stream:
            yield stream
