"""Who the caller is: API key, bearer token, client certificate. Their values are never shown."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

from segserve.calls.headers import API_KEY, AUTHORIZATION, secrets_among
from segserve.errors import PlainHttpCredentialsError
from segserve_common.errors import BadRequestError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve.calls.endpoint import GatewayEndpoint

BearerToken: TypeAlias = str | Callable[[], str] | Callable[[], Awaitable[str]]

# httpx and grpcio would show in their errors what a header cannot carry.
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """Files for an https gateway, all PEM.

    `ca_file` holds the authorities that are trusted instead of the usual ones; `certificate_file` (the client's own,
    with its chain) and `key_file` are for a gateway that wants to know its callers.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise BadRequestError("certificate_file and key_file come together, got only one of them")
        for file in (self.ca_file, self.certificate_file, self.key_file):
            if file is not None and not Path(file).is_file():
                raise BadRequestError(f"no such file: {os.fspath(file)!r}")


@dataclass(frozen=True, slots=True)
class Credentials:
    """What goes into the headers of every request. A token that is a function is asked for at every try."""

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
        given = {API_KEY: self.api_key, AUTHORIZATION: self.bearer_token}
        return [name for name, value in given.items() if value is not None]

    def headers(self) -> dict[str, str]:
        """Return the headers for one try. What a token's function raises passes."""
        if self.bearer_token is None:
            return {} if self.api_key is None else {API_KEY: self.api_key}
        return self._with(self.bearer_token() if callable(self.bearer_token) else self.bearer_token)

    async def async_headers(self) -> dict[str, str]:
        """Return the headers for one try; a token's function may be asynchronous."""
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
    """Raise `PlainHttpCredentialsError` where secret headers would cross a network in plain text."""
    found = secrets_among(names)
    if found and endpoint.scheme == "http" and not endpoint.is_loopback and not allowed:
        raise PlainHttpCredentialsError(
            f"{', '.join(found)} would go to {endpoint.url} as plain text: use https, "
            "or allow_plain_http_credentials=True where the network itself is private"
        )


def _sendable(value: object, name: str) -> str:
    if not isinstance(value, str) or not _SENDABLE.fullmatch(value):
        seen = "an empty text" if value == "" else type(value).__name__
        raise BadRequestError(f"{name} is text of printable ASCII without spaces (its value is not shown), got {seen}")
    return value
