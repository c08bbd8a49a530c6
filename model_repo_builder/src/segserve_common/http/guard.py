"""Guarded connections over httpx: a host is looked up once, and only addresses that were checked are connected to.

A connection never goes to a name, which could mean another address by then; the name is in the `Host` header, and the
certificate has to be of the name.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from typing import Any, Final

import httpx

from segserve_common.http.urls import AddressCheck, Url, checked, lookup

SINGLE_USE: Final = httpx.Limits(max_keepalive_connections=0)
"""Connections for one request each: two names can share an address, but not a certificate."""


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
        raise OSError(f"the host {url.host!r} has no address: {error}") from error
    address = checked(url.host, found, check_address)[0]
    return await transport.handle_async_request(_request(method, url, address, headers, timeout_s, **body))


def tls_error(error: BaseException) -> ssl.SSLError | None:
    """Return the error of TLS that caused an error of httpx, if any."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    return cause


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
