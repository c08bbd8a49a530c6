"""Headers that a caller adds to requests: which are allowed, and which are secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from segserve_common.errors import BadRequestError

REQUEST_ID: Final = "x-request-id"
API_KEY: Final = "x-api-key"
AUTHORIZATION: Final = "authorization"
SECRETS: Final = frozenset({API_KEY, AUTHORIZATION, "cookie", "proxy-authorization"})

_NAME: Final = re.compile(r"[a-z0-9_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
# Set by the transports; gRPC reserves all names that begin with grpc-.
_TAKEN: Final = re.compile(r"content-.*|grpc-.*|host|connection|te|transfer-encoding|inference-header-content-length")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with lower-case names, as HTTP/2 and gRPC require.

    Raises `BadRequestError`, without showing a value, for names or values that HTTP or gRPC cannot carry, and for names
    that the transports set themselves.
    """
    lower = {name.lower(): value for name, value in headers.items()}
    for name, value in lower.items():
        if not _NAME.fullmatch(name) or _TAKEN.fullmatch(name) or name.endswith("-bin"):
            raise BadRequestError(
                f"a header's name must consist of letters, digits and _.-, and not be one the client sets, got {name!r}"
            )
        if not isinstance(value, str) or not _VALUE.fullmatch(value):
            raise BadRequestError(f"the value of header {name!r} is not printable ASCII")
    return lower


def checked_request_id(request_id: str) -> str:
    """Return the id; raises `BadRequestError` if a header cannot carry it."""
    if not re.fullmatch(r"[\x21-\x7e]{1,128}", request_id):
        raise BadRequestError(
            f"request_id must be 1 to 128 printable ASCII characters without spaces, got {request_id!r}"
        )
    return request_id


def secrets_among(names: Iterable[str]) -> list[str]:
    """Return the names of headers whose values are secret."""
    return sorted(SECRETS.intersection(names))
