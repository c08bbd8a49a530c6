"""Queue time of requests in a Triton, from its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httpx

from segserve_common.http.guard import get_bounded
from segserve_common.http.urls import RequestError

TIMEOUT_S: Final = 3.0
MAX_BYTES: Final = 16 * 2**20
"""Largest text of metrics that is read: for 2,500 models it has about 8 MB."""

STEP: Final = "segserve--"
"""Prefix of the names of steps, where requests wait; the ensemble's name counts each request once."""

_COUNT: Final = re.compile(
    r'^(nv_inference_queue_duration_us|nv_inference_request_success)\{[^}]*\bmodel="([^"]*)"[^}]*\} (\S+)$',
    re.MULTILINE,
)
_QUEUED: Final = "nv_inference_queue_duration_us"


@dataclass(frozen=True, slots=True)
class Queue:
    """Counts since a server started: the seconds that requests waited for its steps, and the answered requests."""

    queued_s: float
    requests: float


async def queue_of(host: str, metrics_port: int) -> Queue | None:
    """Return the counts of a Triton; None if its metrics cannot be read."""
    place = f"[{host}]" if ":" in host else host
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            url = f"http://{place}:{metrics_port}/metrics"
            metrics = await get_bounded(client, url, max_bytes=MAX_BYTES, timeout_s=TIMEOUT_S)
    except RequestError:
        return None
    return read_queue(metrics.decode(errors="replace"))


def read_queue(metrics: str) -> Queue:
    """Return the counts in Triton's metrics, in Prometheus' text format."""
    queued_us = requests = 0.0
    for name, model, number in _COUNT.findall(metrics):
        if model.startswith(STEP):
            queued_us += float(number) if name == _QUEUED else 0.0
        elif name != _QUEUED:
            requests += float(number)
    return Queue(queued_us / 1e6, requests)
