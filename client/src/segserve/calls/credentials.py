"""Headers and credentials of the caller: API key, bearer token, client certificate. Secret values are never shown."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from segserve.calls.endpoint import GatewayEndpoint
from segserve.errors import PlainHttpCredentialsError
from segserve_common.errors import BadRequestError

REQUEST_ID: Final = "x-request-id"
API_KEY: Final = "x-api-key"
AUTHORIZATION: Final = "authorization"
CA_VARIABLE: Final = "SEGSERVE_CA_FILE"
SECRETS: Final = frozenset({API_KEY, AUTHORIZATION, "cookie", "proxy-authorization"})

BearerToken: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]

_NAME: Final = re.compile(r"[a-z0-9_.-]+")
_VALUE: Final = re.compile(r"[\x20-\x7e]*")
# Set by the transports; gRPC reserves all names that begin with grpc-.
_TAKEN: Final = re.compile(r"content-.*|grpc-.*|host|connection|te|transfer-encoding|inference-header-content-length")
# For a value that a header cannot hold, httpx and grpcio would show the secret in their errors.
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")


def checked_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers with lower-case names, as HTTP/2 and gRPC require.

    Raises `BadRequestError`, without showing a value, for names or values that HTTP or gRPC cannot carry, and for names
    that the transports set themselves.
    """
    if not isinstance(headers, Mapping) or not all(isinstance(name, str) for name in headers):
        raise BadRequestError(f"headers must be a mapping from names to texts, got a {type(headers).__name__}")
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
    if not isinstance(request_id, str) or not re.fullmatch(r"[\x21-\x7e]{1,128}", request_id):
        raise BadRequestError(
            f"request_id must be 1 to 128 printable ASCII characters without spaces, got {request_id!r}"
        )
    return request_id


def secrets_among(names: Iterable[str]) -> list[str]:
    """Return the names of headers whose values are secret."""
    return sorted(SECRETS.intersection(names))


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files for an https gateway.

    `ca_file` holds the trusted authorities, in place of the system's. `certificate_file` (the client's, with its chain)
    and `key_file` are for a gateway that authenticates its callers. Raises `BadRequestError` for a missing file, or a
    certificate without its key.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise BadRequestError("certificate_file and key_file must be given together, got only one of them")
        for file in (self.ca_file, self.certificate_file, self.key_file):
            if file is not None and not Path(file).is_file():
                raise BadRequestError(f"no such file: {os.fspath(file)!r}")


def tls_or_default(tls: Tls | None, endpoint: GatewayEndpoint, own_ca_file: str | None = None) -> Tls | None:
    """Return `tls`, or for an https gateway a `Tls` with the authorities in a file; None without one.

    The file is `SEGSERVE_CA_FILE`, else `own_ca_file`, from the platform whose gateway this is. Raises
    `BadRequestError` if there is no such file.
    """
    ca_file = os.environ.get(CA_VARIABLE) or own_ca_file
    return Tls(ca_file) if tls is None and ca_file and endpoint.scheme == "https" else tls


@dataclass(frozen=True, slots=True)
class Credentials:
    """The credentials sent in the headers of every request. A token function is called for every attempt."""

    api_key: str | None = field(default=None, repr=False)
    bearer_token: BearerToken | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.api_key is not None:
            _sendable(self.api_key, "api_key")
        if self.bearer_token is not None and not callable(self.bearer_token):
            _sendable(self.bearer_token, "bearer_token")

    @property
    def names(self) -> list[str]:
        """The names of the headers."""
        headers = {API_KEY: self.api_key, AUTHORIZATION: self.bearer_token}
        return [name for name, value in headers.items() if value is not None]

    def headers(self) -> dict[str, str]:
        """Return the headers for one attempt; exceptions of the token function propagate."""
        if self.bearer_token is None:
            return {} if self.api_key is None else {API_KEY: self.api_key}
        return self._with(self.bearer_token() if callable(self.bearer_token) else self.bearer_token)

    async def async_headers(self) -> dict[str, str]:
        """Return the headers for one attempt; the token function may be asynchronous."""
        if not callable(self.bearer_token):
            return self.headers()
        token = self.bearer_token()
        return self._with(await token if inspect.isawaitable(token) else token)

    def _with(self, token: object) -> dict[str, str]:
        if inspect.iscoroutine(token):
            token.close()
        key = {} if self.api_key is None else {API_KEY: self.api_key}
        return {**key, AUTHORIZATION: f"Bearer {_sendable(token, 'bearer_token')}"}


def check_readers(endpoint: GatewayEndpoint, names: Mapping[str, str] | list[str], *, allowed: bool) -> None:
    """Raise `PlainHttpCredentialsError` if secret headers would cross a network in plain text."""
    secrets = secrets_among(names)
    if secrets and endpoint.scheme == "http" and not endpoint.is_loopback and not allowed:
        raise PlainHttpCredentialsError(
            f"{', '.join(secrets)} would go to {endpoint.url} as plain text: use https, "
            "or allow_plain_http_credentials=True if the network itself is private"
        )


def _sendable(value: object, name: str) -> str:
    if not isinstance(value, str) or not _SENDABLE.fullmatch(value):
        got = "an empty text" if value == "" else type(value).__name__
        raise BadRequestError(f"{name} must be printable ASCII without spaces (its value is not shown), got {got}")
    return value
