"""Request counts of a gateway pod as compact JSON, and the requests with which the operator fetches them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

import httpx

from segserve_common.http.guard import get_bounded
from segserve_common.http.urls import RequestError
from segserve_common.kube.names import SYNC_PORT
from segserve_common.kube.shards import read_json
from segserve_operator.adapters.traffic.envoy_admin import WITHOUT_TLS
from segserve_operator.adapters.traffic.pair_counts import pairs_json, parse_pairs
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

PATH: Final = "/counts"
MODEL: Final = "model"
TIMEOUT_S: Final = 0.8
"""Samples are taken once a second; a later response is part of the next one."""

FEW_BYTES: Final = 256 * 1024
BYTES_PER_MODEL: Final = 96 * 1024
"""More than the counts of a model with two groups, each with 200 different latencies in both protocols, and of pairs
with a latency for each bin and all counted labels."""

MAX_BYTES: Final = 8 * 2**20


def encode(counts: Mapping[str, Counters], *, uid: str) -> bytes:
    """Encode the counts of the pod `uid` by model, with ages instead of times because clocks differ."""
    models = {
        model: {
            "epoch": f"{uid}/{counters.epoch}",
            "age": round(counters.at_s - counters.began_s, 3),
            "tallies": [
                [
                    *(series.group, series.protocol, tally.attempts, tally.failed, tally.given_up),
                    *(tally.active, tally.latencies, tally.left, tally.waited_ms),
                ]
                for series, tally in counters.by_series.items()
            ],
            **({"pairs": pairs_json(counters.pairs)} if counters.pairs is not None else {}),
        }
        for model, counters in counts.items()
    }
    return json.dumps(models, separators=(",", ":")).encode()


def decode(text: bytes, now_s: float) -> dict[str, Counters]:
    """Decode counts by model from `encode`, on this machine's clock; raises `ValueError` for anything else."""
    try:
        return {model: _counters(fields, now_s) for model, fields in read_json(text).items()}
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not the counts of a gateway: {text[:200]!r}") from error


async def fetch_counts(
    client: httpx.AsyncClient, host: str, models: Collection[str], now_s: float
) -> dict[str, Counters]:
    """Fetch the counts of the gateway pod at this address; empty if it does not answer in time, or with too much."""
    url = f"http://{bracketed(host)}:{SYNC_PORT}{PATH}"
    most = min(MAX_BYTES, FEW_BYTES + BYTES_PER_MODEL * len(models))
    try:
        params = {MODEL: sorted(models)}
        counts = decode(await get_bounded(client, url, max_bytes=most, timeout_s=TIMEOUT_S, params=params), now_s)
    except (RequestError, ValueError):
        return {}
    return {model: counts[model] for model in models if model in counts}


def pod_client() -> httpx.AsyncClient:
    """Return a client that calls pods directly, without proxies."""
    return httpx.AsyncClient(timeout=TIMEOUT_S, verify=WITHOUT_TLS, trust_env=False)


def _counters(fields: Mapping[str, Any], now_s: float) -> Counters:
    by_series = {
        Series(group, protocol): SeriesCounts(
            attempts,
            failed,
            given_up,
            active,
            tuple((float(lower), int(count)) for lower, count in latencies),
            left,
            waited_ms,
        )
        for group, protocol, attempts, failed, given_up, active, latencies, left, waited_ms in fields["tallies"]
    }
    pairs = parse_pairs(fields["pairs"]) if "pairs" in fields else None
    return Counters(fields["epoch"], now_s, by_series, now_s - fields["age"], pairs)


def bracketed(host: str) -> str:
    """Return a host for use in a URL: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host
