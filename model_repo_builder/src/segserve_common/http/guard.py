"""Guarded HTTP over httpx: a host is looked up once, and only addresses that were checked are connected to.

A connection never goes to a name, which could mean another address by then; the name is in the `Host` header, and the
certificate has to be of the name. A GET follows redirects, each checked as the first URL was; credentials stay with
their host.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeVar
from urllib.parse import urljoin

import httpx

from segserve_common.http.urls import AddressCheck, RefusedError, RequestError, Url, UrlError, checked, lookup

T = TypeVar("T")
SINGLE_USE: Final = httpx.Limits(max_keepalive_connections=0)
"""Connections for one request each: two names can share an address, but not a certificate."""

MAX_REDIRECTS: Final = 5
TIMEOUT_S: Final = 30.0
MAX_DOCUMENT_BYTES: Final = 8 * 2**20
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


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
            # The server was reached: other addresses are for one that cannot be.
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
    """Send a request as `send` sends a GET; the caller closes the response.

    `body` is `content`, `data` or `json`, as for `httpx.Request`.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"the host {url.host!r} has no address: {error}") from error
    failure: httpx.TransportError = httpx.ConnectError(f"{url.host!r} has no address")
    for address in checked(url.host, found, check_address):
        try:
            return await transport.handle_async_request(_request(method, url, address, headers, timeout_s, **body))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if tls_error(error) is not None:
                raise
            failure = error
    raise failure


@cache
def public_authorities() -> ssl.SSLContext:
    """Return the context for https that trusts `SSL_CERT_FILE` or `SSL_CERT_DIR`, or the public authorities."""
    return httpx.create_ssl_context()  # 30 ms, so once in a process


def single_use_transport(url: Url) -> httpx.AsyncHTTPTransport:
    """Return a transport for one request to this URL, without proxies; https trusts the public authorities."""
    verify = public_authorities() if url.scheme == "https" else False
    return httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=SINGLE_USE)


async def get_bounded(
    client: httpx.AsyncClient,
    url: str,
    *,
    max_bytes: int,
    timeout_s: float,
    params: Mapping[str, Sequence[str]] | None = None,
) -> bytes:
    """Return the body of a server's answer to a GET; the body is untrusted.

    `timeout_s` bounds the whole exchange. Raises `RequestError` for another status than 200, and for a body that is
    longer than `max_bytes`, compressed, late or broken off.
    """
    try:
        async with (
            asyncio.timeout(timeout_s),
            client.stream("GET", url, params=params, headers={"Accept-Encoding": "identity"}) as response,
        ):
            if response.status_code != httpx.codes.OK:
                raise RequestError(f"'{url}' answered {response.status_code}")
            return await body_within(response, max_bytes)
    except TimeoutError:
        raise RequestError(f"'{url}' did not answer within {timeout_s:.3g} s", is_transient=True) from None
    except (httpx.HTTPError, OSError) as error:
        raise RequestError(f"'{url}' cannot be asked: {error or type(error).__name__}", is_transient=True) from error


async def body_within(response: httpx.Response, max_bytes: int) -> bytes:
    """Return the body of a response that is being received; nothing is decompressed.

    Raises `RequestError` if it is compressed, which was not requested, or longer than `max_bytes`.
    """
    if (encoding := response.headers.get("Content-Encoding", "identity")) != "identity":
        raise RequestError(f"the body is compressed ({encoding[:20]}), which was not asked for")
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > max_bytes:
            raise RequestError(f"the body has more than {max_bytes} bytes")
    return bytes(body)


async def gather_few(calls: Iterable[Awaitable[T]], at_once: int = 4) -> list[T]:
    """Return the results of calls in their order; only `at_once` of them run, and hold what they receive, at a time."""
    slots = asyncio.Semaphore(at_once)

    async def one(call: Awaitable[T]) -> T:
        async with slots:
            return await call

    return await asyncio.gather(*map(one, calls))


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


def _any_url(url: Url) -> None:
    """Allow every URL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedRequest:
    """A GET. `headers` go to every host, `authorization` only to the origin of the first URL.

    `check_redirect` is called with each URL on another origin that a redirect names, and raises `RefusedError` if it is
    not allowed. `ssl_context` returns the context for https; `timeout_s` bounds each wait for a server.
    """

    url: Url
    check_address: AddressCheck
    check_redirect: Callable[[Url], None] = _any_url
    headers: Mapping[str, str] = field(default_factory=dict)
    authorization: str | None = None
    ssl_context: Callable[[], ssl.SSLContext] = ssl.create_default_context
    timeout_s: float = TIMEOUT_S


class StreamedResponse:
    """A response whose body is still to be read, as sent: nothing is decompressed."""

    def __init__(self, url: Url, response: httpx.Response) -> None:
        self.url = url
        self.status = response.status_code
        self.headers = response.headers
        self._chunks = response.iter_raw()
        self._left = memoryview(b"")

    def read(self, size: int, /) -> bytes:
        """Return at most `size` bytes, none at the end. Raises `ConnectionError` if the body breaks off."""
        if not self._left:
            try:
                self._left = memoryview(next(self._chunks, b""))
            except httpx.TransportError as error:
                raise ConnectionError(str(error) or type(error).__name__) from error
        taken, self._left = self._left[:size], self._left[size:]
        return bytes(taken)

    def content(self, max_bytes: int = MAX_DOCUMENT_BYTES) -> bytes:
        """Return the whole body; raises `RequestError` if it breaks off or is longer than `max_bytes`."""
        body = bytearray()
        try:
            while len(body) <= max_bytes and (chunk := self.read(max_bytes + 1)):
                body += chunk
        except OSError as error:
            raise RequestError(f"'{self.url}' broke off: {error}", is_transient=True) from error
        if len(body) > max_bytes:
            raise RequestError(f"'{self.url}' is longer than {max_bytes} bytes")
        return bytes(body)

    def json(self) -> Any:
        """Return the body as JSON; raises `RequestError` as `content` does, and if it is not JSON."""
        try:
            return json.loads(self.content())
        except ValueError as error:
            raise RequestError(f"'{self.url}' is not JSON: {error}") from error


@contextmanager
def get(request: GuardedRequest) -> Iterator[StreamedResponse]:
    """Send a GET and follow at most five redirects; a response of any other status is yielded.

    Raises `RefusedError` before anything is sent to what is not allowed (and whatever `check_address` raises),
    `UrlError` for a redirect to what is not a URL, and `RequestError`.
    """
    url = request.url
    with ExitStack() as stack:
        for _ in range(MAX_REDIRECTS + 1):
            response = _sent(stack, request, url)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                yield response
                return
            stack.close()
            url = _redirected(request, url, location)
    raise RequestError(f"'{request.url}' redirects more than {MAX_REDIRECTS} times")


def _sent(stack: ExitStack, request: GuardedRequest, url: Url) -> StreamedResponse:
    # Plain HTTP has no use for a context, and loading the authorities of the machine takes 30 ms.
    verify = request.ssl_context() if url.scheme == "https" else False
    transport = stack.enter_context(httpx.HTTPTransport(verify=verify, trust_env=False, limits=SINGLE_USE))
    headers = {"Accept-Encoding": "identity", "Connection": "close", **request.headers}
    if request.authorization and url.origin == request.url.origin:
        headers["Authorization"] = request.authorization
    try:
        response = send(transport, url, request.check_address, headers, request.timeout_s)
    except (httpx.TransportError, OSError) as error:
        if isinstance(tls_error(error), ssl.SSLCertVerificationError):
            raise RequestError(f"'{url}': the server's certificate is refused: {error}") from error
        reason = str(error) or type(error).__name__
        raise RequestError(f"'{url}' cannot be fetched: {reason}", is_transient=True) from error
    stack.callback(response.close)
    return StreamedResponse(url, response)


def _redirected(request: GuardedRequest, url: Url, location: str) -> Url:
    """Return where a redirect leads, checked as the first URL was; its address is checked at the connection."""
    try:
        target = Url.parse(urljoin(f"{url.scheme}://{url.netloc}{url.target}", location))
        if target.origin != request.url.origin:
            request.check_redirect(target)
    except RefusedError as error:
        raise RefusedError(f"'{url}' redirects: {error}") from error
    except ValueError as error:
        raise UrlError(f"'{url}' redirects to what is not a URL: {error}") from error
    if url.scheme == "https" and target.scheme == "http":
        raise RefusedError(f"'{url}' redirects from https to http, which is not followed")
    return target
