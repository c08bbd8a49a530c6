"""The sources `http` and `https`: files of web servers, with at most five redirects and 30 s for each wait."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urldefrag

from segserve_builder.sources.access import Access
from segserve_builder.sources.base import Stream
from segserve_builder.sources.http_requests import SourceRequest, authorization, open_file, url_of


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
