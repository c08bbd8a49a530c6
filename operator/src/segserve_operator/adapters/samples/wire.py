"""What a gateway pod says of its counts, as compact JSON, and how the operator asks it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

import httpx
from segserve_builder.cluster.names import SYNC_PORT

from segserve_operator.core.rollout.counters import Count, Series, Tally

PATH: Final = "/counts"
MODEL: Final = "model"
PATIENCE_S: Final = 0.8
"""Samples are taken once a second: whoever answers later is in the next one."""


def written(counts: Mapping[str, Count], *, uid: str) -> bytes:
    """Return counts by model as a pod `uid` tells them: ages instead of times, for clocks differ."""
    models = {
        model: {
            "epoch": f"{uid}/{count.epoch}",
            "age": round(count.at_s - count.began_s, 3),
            "tallies": [[series.group, series.protocol, *_numbers(tally)] for series, tally in count.tallies.items()],
        }
        for model, count in counts.items()
    }
    return json.dumps(models, separators=(",", ":")).encode()


def read(text: bytes, now_s: float) -> dict[str, Count]:
    """Return counts by model; raises `ValueError` where that is not what a gateway says."""
    try:
        return {model: _count(said, now_s) for model, said in json.loads(text).items()}
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(f"a gateway said {text[:200]!r}") from error


async def ask(client: httpx.AsyncClient, host: str, models: Collection[str], now_s: float) -> dict[str, Count]:
    """Return what the gateway pod at this address has counted; nothing where it does not answer in time."""
    try:
        answer = await client.get(f"http://{bracketed(host)}:{SYNC_PORT}{PATH}", params={MODEL: sorted(models)})
        return read(answer.raise_for_status().content, now_s)
    except (httpx.HTTPError, ValueError):
        return {}


def client() -> httpx.AsyncClient:
    """Return a client that asks pods directly."""
    return httpx.AsyncClient(timeout=PATIENCE_S, verify=False, trust_env=False)


def _numbers(tally: Tally) -> list[Any]:
    return [tally.attempts, tally.failed, tally.given_up, tally.active, tally.latencies]


def _count(said: Mapping[str, Any], now_s: float) -> Count:
    tallies = {
        Series(group, protocol): Tally(
            attempts, failed, given_up, active, tuple((float(lower), int(count)) for lower, count in latencies)
        )
        for group, protocol, attempts, failed, given_up, active, latencies in said["tallies"]
    }
    return Count(said["epoch"], now_s, tallies, now_s - said["age"])


def bracketed(host: str) -> str:
    """Return a host as addresses have it."""
    return f"[{host}]" if ":" in host else host
