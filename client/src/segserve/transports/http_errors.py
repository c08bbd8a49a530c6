"""What httpx raises, as the client's errors."""

from __future__ import annotations

import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import httpx

from segserve.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    GatewayUnreachableError,
    PoolTimeoutError,
    ReadTimeoutError,
    TlsError,
    WriteTimeoutError,
)
from segserve.transports.deadlines import late
from segserve_common.errors import ProtocolError, SegserveError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from segserve.calls.endpoint import Endpoint
    from segserve.calls.session import Send

# Each phase's error, and the time that it keeps to.
_PHASES: Final[dict[type[httpx.TimeoutException], tuple[type[SegserveError], str]]] = {
    httpx.ConnectTimeout: (ConnectTimeoutError, "connect_s"),
    httpx.ReadTimeout: (ReadTimeoutError, "read_s"),
    httpx.WriteTimeout: (WriteTimeoutError, "write_s"),
    httpx.PoolTimeout: (PoolTimeoutError, "pool_s"),
}
_NOT_CONNECTED: Final = (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol)
# How a connection ends that TLS had nothing against.
_MERE_ENDS: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError)


def phase_timeouts(step: Send) -> dict[str, float]:
    """Return httpx's time for each phase: its own, and never more than what is left of all."""
    left, parts = step.timeout_s, step.timeouts
    own = {"connect": parts.connect_s, "read": parts.read_s, "write": parts.write_s, "pool": parts.pool_s}
    return {phase: left if limit is None else min(limit, left) for phase, limit in own.items()}


@contextmanager
def typed_errors(endpoint: Endpoint, step: Send) -> Iterator[None]:
    """Turn httpx's errors into the client's."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise _timeout(endpoint, step, error) from error
    except httpx.DecodingError as error:
        raise ProtocolError(f"an answer that cannot be decompressed: {error}") from error
    except httpx.TransportError as error:
        raise _unreachable(endpoint, error) from error


def _timeout(endpoint: Endpoint, step: Send, error: httpx.TimeoutException) -> SegserveError:
    kind, phase = _PHASES[type(error)]
    limit_s = getattr(step.timeouts, phase)
    if limit_s is None or limit_s >= step.timeout_s:
        return late(endpoint, step)
    return kind(f"no progress with {endpoint.url} for {phase}={limit_s!r}")


def _unreachable(endpoint: Endpoint, error: httpx.TransportError) -> SegserveError:
    said = str(error) or type(error).__name__
    if _refused_by_tls(error):
        return TlsError(f"no agreement on TLS with {endpoint.url}: {said}")
    if isinstance(error, _NOT_CONNECTED):
        return GatewayUnreachableError(f"cannot reach {endpoint.url}: {said}")
    return ConnectionLostError(f"lost the connection to {endpoint.url}: {said}")


def _refused_by_tls(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return not isinstance(error, _MERE_ENDS)
        error = error.__cause__ or error.__context__
    return False
