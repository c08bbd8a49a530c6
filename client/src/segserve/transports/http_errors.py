"""httpx's timeouts and errors, translated to the client's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import httpx

from segserve.calls.endpoint import GatewayEndpoint
from segserve.calls.steps import Send
from segserve.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    GatewayUnreachableError,
    PoolTimeoutError,
    ReadTimeoutError,
    TlsError,
    WriteTimeoutError,
)
from segserve.transports.base import deadline_exceeded
from segserve_common.errors import ProtocolError, SegserveError

# The error of each phase, and the timeout that applies to it.
_PHASES: Final[dict[type[httpx.TimeoutException], tuple[type[SegserveError], str]]] = {
    httpx.ConnectTimeout: (ConnectTimeoutError, "connect_s"),
    httpx.ReadTimeout: (ReadTimeoutError, "read_s"),
    httpx.WriteTimeout: (WriteTimeoutError, "write_s"),
    httpx.PoolTimeout: (PoolTimeoutError, "pool_s"),
}
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
# SSL errors that mean a lost connection rather than a failed handshake.
_CONNECTION_ENDED: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def phase_timeouts(step: Send) -> dict[str, float]:
    """Return httpx's timeout for each phase, in seconds: the caller's, and never more than the step's timeout."""
    left, parts = step.timeout_s, step.timeouts
    own = {"connect": parts.connect_s, "read": parts.read_s, "write": parts.write_s, "pool": parts.pool_s}
    return {phase: left if limit is None else min(limit, left) for phase, limit in own.items()}


@contextmanager
def typed_errors(endpoint: GatewayEndpoint, step: Send) -> Iterator[None]:
    """Translate httpx's errors to the client's."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _timeout(endpoint, step, error) from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"the answer cannot be decompressed: {error}") from error
    except httpx.TransportError as error:
        raise _unreachable(endpoint, error) from error


def _timeout(endpoint: GatewayEndpoint, step: Send, error: httpx.TimeoutException) -> SegserveError:
    kind, phase = _PHASES[type(error)]
    limit_s = getattr(step.timeouts, phase)
    if limit_s is None or limit_s >= step.timeout_s:
        return deadline_exceeded(endpoint, step)
    return kind(f"no progress with {endpoint.url} for {phase}={limit_s!r}")


def _unreachable(endpoint: GatewayEndpoint, error: httpx.TransportError) -> SegserveError:
    cause = str(error) or type(error).__name__
    if _refused_by_tls(error):
        return TlsError(f"TLS handshake with {endpoint.url} failed: {cause}")
    if isinstance(error, _NOT_CONNECTED):
        return GatewayUnreachableError(f"cannot reach {endpoint.url}: {cause}")
    return ConnectionLostError(f"lost the connection to {endpoint.url}: {cause}")


def _refused_by_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, _CONNECTION_ENDED)
        error = error.__cause__ or error.__context__
    return False
