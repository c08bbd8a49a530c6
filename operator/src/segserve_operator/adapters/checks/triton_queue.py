"""Queue time of requests in a Triton, from its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import httpx

TIMEOUT_S: Final = 3.0
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
            reply = await client.get(f"http://{place}:{metrics_port}/metrics")
    except (httpx.HTTPError, OSError):
        return None
    return read_queue(reply.text) if reply.status_code == httpx.codes.OK else None


def read_queue(metrics: str) -> Queue:
    """Return the counts in Triton's metrics, in Prometheus' text format."""
    queued_us = requests = 0.0
    for name, model, number in _COUNT.findall(metrics):
        if model.startswith(STEP):
            queued_us += float(number) if name == _QUEUED else 0.0
        elif name != _QUEUED:
            requests += float(number)
    return Queue(queued_us / 1e6, requests)
