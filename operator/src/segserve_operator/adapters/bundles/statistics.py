"""Reads Triton's own statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from segserve_common.http.guard import get_bounded
from segserve_common.http.urls import RequestError
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
        async with httpx.AsyncClient(timeout=STATISTICS_S, trust_env=False) as client:
            return await get_bounded(client, url, max_bytes=STATISTICS_BYTES, timeout_s=STATISTICS_S)
    except RequestError as error:
        raise NoStatisticsError(str(error)) from error
