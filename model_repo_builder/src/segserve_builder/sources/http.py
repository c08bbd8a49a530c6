"""The sources `http` and `https`, with bounded redirects and timeouts."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from segserve_builder.errors import ArtifactMissingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_builder.sources.base import Stream

MAX_REDIRECTS: Final = 5
TIMEOUT_S: Final = 30.0


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = MAX_REDIRECTS

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            raise ArtifactMissingError(f"{req.full_url!r} redirects to the scheme {scheme!r}; allowed: http, https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Body:
    """A body; one that ends before its Content-Length is an error, though http.client lets it pass."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response

    def read(self, size: int, /) -> bytes:
        chunk = self._response.read(size)
        if not chunk and self._response.length:
            raise http.client.IncompleteRead(chunk, self._response.length)
        return chunk


class HttpSource:
    """GET, with at most five redirects, and 30 s for each wait on the server."""

    def __init__(self) -> None:
        # Not urllib's default opener: that one would also follow into file: and ftp:.
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _Redirects(),
        ):
            self._opener.add_handler(handler)

    @contextmanager
    def open(self, uri: str) -> Iterator[Stream]:
        """Open the response's body, or raise `ArtifactMissingError` with what the server said."""
        try:
            response = self._opener.open(uri, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            error.close()
            raise ArtifactMissingError(f"{uri!r}: the server answers {error.code} {error.msg}") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise ArtifactMissingError(f"{uri!r} cannot be fetched: {error}") from error
        if response is None:
            raise ArtifactMissingError(f"{uri!r} cannot be fetched; an http(s) URI with a host is needed")
        with response:
            yield _Body(response)
