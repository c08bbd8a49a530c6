"""A file over HTTP as a stream that can start anywhere, and what is sent for a credential."""

from __future__ import annotations

import base64
import re
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from segserve_builder.errors import ArtifactMissingError, SourceUnauthorizedError
from segserve_builder.sources.asking import Answer, Ask, ask

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from segserve_builder.sources.access import Access

_BEYOND_THE_END: Final = 416
_PARTIAL: Final = 206
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class HttpStream:
    """The body of an answer, with what its headers say of the file."""

    def __init__(self, answer: Answer) -> None:
        self.identity = answer.headers["ETag"] or answer.headers["Last-Modified"]
        self.start, self.size = _extent(answer)
        self.read = answer.read


@contextmanager
def opened(url: str, access: Access, what: Ask, start: int = 0, *, as_stored: bool = False) -> Iterator[HttpStream]:
    """Open a file from the byte `start` on, or from its own start where the server does not do that; raises as `ask`.

    An encoded body is refused: its digest would not be the file's, and it could be a thousand times as long. Where the
    server gives files `as_stored`, their encoding is a label of the file.
    """
    ranged = what
    if start:
        ranged = replace(
            what,
            headers={**what.headers, "Range": f"bytes={start}-"},
            returned=what.returned | {_BEYOND_THE_END},
        )
    with ask(url, access, ranged) as answer:
        if answer.status != _BEYOND_THE_END:
            encoding = answer.headers.get("Content-Encoding", "identity")
            if encoding != "identity" and not as_stored:
                raise ArtifactMissingError(f"{answer.place.text!r} is sent as {encoding!r}; asked for is identity")
            stream = HttpStream(answer)
            # Some servers give nothing where others answer 416.
            if not start or stream.start != stream.size:
                yield stream
                return
    with opened(url, access, what, as_stored=as_stored) as stream:
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
        return basic(secret.get("username", ""), secret.get("password", ""))
    return None


def basic(user: str, password: str) -> str:
    """Return the Authorization header of a user."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _extent(answer: Answer) -> tuple[int, int | None]:
    """Return the place of the body's first byte, and how many bytes the file has."""
    if answer.status == _PARTIAL:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None:
            raise ArtifactMissingError(f"{answer.place.text!r}: the server answers 206 without a Content-Range")
        return int(found[1]), None if found[2] == "*" else int(found[2])
    length = answer.headers.get("Content-Length", "")
    return 0, int(length) if length.isascii() and length.isdigit() else None
