"""The sources `http` and `https`: GET, with at most five redirects, and 30 s for each wait on the server."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urldefrag

from segserve_builder.sources.asking import Ask, place_of
from segserve_builder.sources.ranges import authorization, opened

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve_builder.sources.access import Access
    from segserve_builder.sources.base import Stream


class HttpSource:
    """Files of a web server; a credential has `token`, or `username` and `password`, and may have `ca.crt`."""

    @contextmanager
    def open(self, uri: str, access: Access, start: int = 0) -> Iterator[Stream]:
        """Open the response's body."""
        place = place_of(urldefrag(uri).url)
        access.check_uri(place.scheme, place.host)
        secret = access.secret(place.scheme, place.host)
        what = Ask(place.scheme, authorization=authorization(secret), authority=secret.get("ca.crt"))
        with opened(urldefrag(uri).url, access, what, start) as stream:
            yield stream
