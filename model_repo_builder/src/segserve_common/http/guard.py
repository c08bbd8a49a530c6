"""Guarded connections over httpx: a host is looked up once, and only addresses that were checked are connected to.

A connection never goes to a name, which could mean another address by then; the name is in the `Host` header, and the
certificate has to be of the name.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias
from urllib.parse import quote, urlsplit

import httpx

from segserve_common.http.addresses import refusal

AddressCheck: TypeAlias = Callable[[str, str], None]
"""Called with a host and one of its addresses; raises if it must not be connected to, such as `RefusedError`."""

PORTS: Final = {"http": 80, "https": 443}
SINGLE_USE: Final = httpx.Limits(max_keepalive_connections=0)
"""Connections for one request each: two names can share an address, but not a certificate."""

_AMBIGUOUS: Final = re.compile(r"[^\x21-\x7e]|\\")


class RefusedError(Exception):
    """A URL or an address that must not be requested; nothing was sent to it."""


class UrlError(Exception):
    """A text that is not an http(s) URL with a host."""


@dataclass(frozen=True, slots=True)
class Url:
    """The parts of an http(s) URL, from one parser for what is checked and for what is connected to."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query, as sent."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a URL apart.

        Raises `RefusedError` for another scheme, for credentials in the URL, and for characters that parsers read
        differently; `UrlError` for a URL without a host.
        """
        if ambiguous := _AMBIGUOUS.search(text):
            raise RefusedError(f"a URL has {ambiguous[0]!r}; allowed is ASCII, percent-encoded, and hosts as xn--...")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError as error:
            raise UrlError(f"an http(s) URL with a host is needed: {error}") from error
        if "@" in parts.netloc:
            raise RefusedError("a URL names a user or a password; name a credential instead")
        if parts.scheme not in PORTS:
            raise RefusedError(f"the scheme {parts.scheme!r} is not allowed here; allowed: http, https")
        if not parts.hostname:
            raise UrlError(f"{text.partition('?')[0]!r} has no host; an http(s) URL with a host is needed")
        path = quote(parts.path, safe="/%:@!$&'()*+,;=~-._") or "/"
        return cls(
            parts.scheme, parts.hostname, port or PORTS[parts.scheme], f"{path}?{parts.query}" if parts.query else path
        )

    @classmethod
    def normalised(cls, text: str) -> Self:
        """Take a service's URL apart as httpx does: international hosts and paths are encoded.

        Raises `UrlError` for another scheme, for credentials in the URL, and without a host; it shows only the scheme,
        as the rest may be secret.
        """
        try:
            url = httpx.URL(text)
        except httpx.InvalidURL as error:
            raise UrlError(f"not a URL: {error}") from error
        if url.scheme not in PORTS or not url.host or url.userinfo:
            raise UrlError(f"scheme {url.scheme!r}; allowed are http and https, a host, and no credentials before it")
        return cls(
            url.scheme, url.raw_host.decode("ascii"), url.port or PORTS[url.scheme], url.raw_path.decode("ascii")
        )

    @property
    def netloc(self) -> str:
        """The value of the `Host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: a credential is for these."""
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        """Return the URL without its query, which may hold a signature."""
        return f"{self.scheme}://{self.netloc}{self.target.partition('?')[0]}"


def service_check(*, loopback: bool) -> AddressCheck:
    """Return the check of services that users configure: private networks are allowed, this machine by `loopback`."""

    def check(host: str, address: str) -> None:
        if reason := refusal(address, loopback=loopback, private=True):
            raise RefusedError(f"{host!r} is at {address}, {reason}")

    return check


def lookup(host: str, port: int, check_address: AddressCheck) -> list[str]:
    """Return the addresses of a host, all checked.

    Raises what `check_address` raises if one of them is not allowed, and `httpx.ConnectError` for an unknown host.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"the host {host!r} has no address: {error}") from error
    return _checked(host, found, check_address)


def send(
    transport: httpx.BaseTransport, url: Url, check_address: AddressCheck, headers: Mapping[str, str], timeout_s: float
) -> httpx.Response:
    """Send a GET to the first of the host's addresses that accepts a connection; the caller closes the response.

    `timeout_s` bounds each wait for the server. Raises as `lookup`, and `httpx.TransportError`.
    """
    failure: httpx.TransportError = httpx.ConnectError(f"{url.host!r} has no address")
    for address in lookup(url.host, url.port, check_address):
        try:
            return transport.handle_request(_request("GET", url, address, headers, timeout_s))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if tls_error(error) is not None:
                raise
            failure = error
    raise failure


async def send_async(
    transport: httpx.AsyncBaseTransport,
    method: str,
    url: Url,
    check_address: AddressCheck,
    headers: Mapping[str, str],
    timeout_s: float,
    **body: Any,
) -> httpx.Response:
    """Send a request as `send` does, but to the first of the host's addresses alone.

    `body` is `content`, `data` or `json`, as for `httpx.Request`.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpx.ConnectError(f"the host {url.host!r} has no address: {error}") from error
    address = _checked(url.host, found, check_address)[0]
    return await transport.handle_async_request(_request(method, url, address, headers, timeout_s, **body))


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS that caused an error of httpx, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


def _checked(host: str, found: list[Any], check_address: AddressCheck) -> list[str]:
    addresses: dict[str, None] = {}  # unique, and in order
    for *_, (address, _, *scope) in found:
        check_address(host, str(address))
        zone = f"%{scope[1]}" if len(scope) > 1 and scope[1] and "%" not in address else ""
        addresses[f"{address}{zone}"] = None
    return list(addresses)


def _request(
    method: str, url: Url, address: str, headers: Mapping[str, str], timeout_s: float, **body: Any
) -> httpx.Request:
    return httpx.Request(
        method,
        httpx.URL(scheme=url.scheme, host=address, port=url.port, path="/"),
        headers={"Host": url.netloc, "User-Agent": "segserve", **headers},
        extensions={
            # httpx would normalise the path and the query; a signature is of the URL as it is.
            "target": url.target.encode("ascii"),
            "sni_hostname": url.host,
            "timeout": httpx.Timeout(timeout_s).as_dict(),
        },
        **body,
    )
