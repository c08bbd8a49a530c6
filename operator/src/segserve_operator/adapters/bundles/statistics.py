"""Reads Triton's own statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from segserve_operator.adapters.bundles.contents import STATISTICS_BYTES, STATISTICS_S

if TYPE_CHECKING:
    from segserve_operator.core.traffic import Endpoint


class NoStatisticsError(Exception):
    """The statistics of a server could not be read; the message says why."""


async def statistics(server: Endpoint) -> bytes:
    """Return a Triton's statistics of its models as JSON; raises `NoStatisticsError`."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    url = f"http://{host}:{server.http_port}/v2/models/stats"
    try:
        async with (
            httpx.AsyncClient(timeout=STATISTICS_S, trust_env=False) as client,
            client.stream("GET", url) as reply,
        ):
            reply.raise_for_status()
            text = b""
            async for part in reply.aiter_bytes():
                text += part
                if len(text) > STATISTICS_BYTES:
                    raise NoStatisticsError(f"more than {STATISTICS_BYTES} bytes")
            return text
    except httpx.HTTPError as error:
        raise NoStatisticsError(str(error) or type(error).__name__) from error
