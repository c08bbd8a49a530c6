"""Samples from the responses of a Prometheus; tests/e2e/gateway/test_gateway_counts.py uses a real one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest

from fakes.waiting import connections_are_closed
from segserve_operator.adapters.samples.prometheus import PrometheusError, PrometheusSamples
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

MODELS = {"coins": ("main", "coins-new"), "cells.v2": ("main", "cells-new")}
CLUSTER = "coins/main/infer/http"


def series(name: str, value: float, pod: str = "gw-a", **labels: str) -> dict[str, Any]:
    return {"metric": {"__name__": name, "pod": pod, **labels}, "value": [1000.0, str(value)]}


def counted(name: str, value: int, pod: str = "gw-a", **labels: str) -> dict[str, Any]:
    return series(f"envoy_cluster_{name}", value, pod, envoy_cluster_name=CLUSTER, **labels)


RESULT = [
    series("segserve_gateway_started_seconds", 900.5),
    series("segserve_gateway_started_seconds", 950.0, "gw-b"),
    counted("upstream_rq_completed", 7),
    counted("upstream_rq_xx", 5, envoy_response_code_class="2"),
    counted("upstream_rq_xx", 2, envoy_response_code_class="5"),
    counted("upstream_rq_retry", 1),
    counted("upstream_rq_active", 3),
    *(
        counted("upstream_rq_time_bucket", value, le=le)
        for le, value in {"100": 0, "250": 4, "500": 5, "+Inf": 5, "50": 0}.items()
    ),
    counted("upstream_rq_completed", 1, "gw-b"),
    counted("upstream_rq_completed", 9, "gw-former"),  # without a start time
]


@asynccontextmanager
async def prometheus(status: int, answer: Any) -> AsyncIterator[tuple[str, list[str]]]:
    """Serve `answer` to every query; yields the URL and the list of queries."""
    queries: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        size = int(head.partition("content-length: ")[2].partition("\r\n")[0])
        queries.append(parse_qs((await reader.readexactly(size)).decode())["query"][0])
        body = json.dumps(answer).encode()
        writer.write(
            f"HTTP/1.1 {status} Status\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body
        )
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", queries
    await connections_are_closed()


async def test_the_series_of_each_gateway_become_its_counts() -> None:
    async with prometheus(200, {"status": "success", "data": {"resultType": "vector", "result": RESULT}}) as (url, _):
        samples = await PrometheusSamples(url).samples(MODELS, 1000.0)

    counts = SeriesCounts(attempts=8, failed=3, active=3, latencies=((100.0, 4), (250.0, 1)))
    assert samples == {
        "coins": {
            "gw-a": Counters("900.500", 1000.0, {Series("main", "http"): counts}, 900.5),
            "gw-b": Counters("950.000", 1000.0, {Series("main", "http"): SeriesCounts(attempts=1)}, 950.0),
        },
        "cells.v2": {},
    }


async def test_the_query_selects_these_models_of_this_pool() -> None:
    async with prometheus(200, {"status": "success", "data": {"result": []}}) as (url, queries):
        await PrometheusSamples(url, {"namespace": "vision", "pool": "main"}).samples(MODELS, 1000.0)

    (query,) = queries
    assert 'envoy_cluster_name=~"(cells\\\\.v2|coins)/[^/]+/infer/(http|grpc)",namespace="vision",pool="main"}' in query
    assert query.endswith('{__name__="segserve_gateway_started_seconds",namespace="vision",pool="main"}')


@pytest.mark.parametrize(
    ("status", "answer"), [(503, {}), (200, {"status": "success"}), (200, []), (200, {"data": {"result": 3}})]
)
async def test_an_unusable_response_is_an_error_and_not_an_empty_sample(status: int, answer: Any) -> None:
    async with prometheus(status, answer) as (url, _):
        with pytest.raises(PrometheusError, match="does not answer"):
            await PrometheusSamples(url).samples(MODELS, 1000.0)
