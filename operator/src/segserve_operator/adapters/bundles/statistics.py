"""Triton's own statistics, where it still answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from segserve_operator.adapters.bundles.contents import STATISTICS_BYTES, STATISTICS_S

if TYPE_CHECKING:
    from segserve_operator.core.traffic import Endpoint


class NoStatisticsError(Exception):
    """A server did not tell; the text says what was seen."""


async def statistics(server: Endpoint) -> bytes:
    """Return what a Triton counted of its models, as JSON; raises `NoStatisticsError`."""
    host = f"[{server.host}]" if ":" in server.host else server.host
    url = f"http://{host}:{server.http_port}/v2/models/stats"
    try:
        async with httpx.AsyncClient(timeout=STATISTICS_S, trust_env=False) as client, client.stream("GET", url) as got:
            got.raise_for_status()
            text = b""
            async for part in got.aiter_bytes():
                text += part
                if len(text) > STATISTICS_BYTES:
                    raise NoStatisticsError(f"more than {STATISTICS_BYTES} bytes")
            return text
    except httpx.HTTPError as error:
        raise NoStatisticsError(str(error) or type(error).__name__) from error
