"""Calls that say how they ended, and what a gateway has counted of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from segserve_operator.core.counters import Count, Series, Tally

if TYPE_CHECKING:
    from fakes.gateway import RunningGateway

INFER = "/v2/models/coins/infer"
HTTP, GRPC = Series("main", "http"), Series("main", "grpc")


async def by_http_status(gateway: RunningGateway, timeout_s: float = 20.0) -> int | None:
    """Ask for an inference; None where we gave up first."""
    with suppress(httpx.TimeoutException):
        async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=timeout_s) as client:
            return (await client.post(INFER, content=b"image")).status_code
    return None


async def by_grpc_status(gateway: RunningGateway, timeout_s: float = 20.0) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(gateway.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def counted(gateway: RunningGateway) -> Count:
    """Return what is counted, once Envoy's threads have put their latencies together."""
    await asyncio.sleep(1.2)
    return (await gateway.traffic.count(["coins"])).get("coins", Count("", 0.0))


async def tally(gateway: RunningGateway, series: Series) -> Tally:
    return (await counted(gateway)).tallies[series]


def timed(found: Tally) -> int:
    return sum(count for _, count in found.latencies)
