"""Calls that say how they ended, and what a gateway has counted of them."""

from __future__ import annotations

import grpc
import httpx
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.gateway import RunningGateway
from fakes.waiting import HANG_S
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

INFER = "/v2/models/coins/infer"
HTTP, GRPC = Series("main", "http"), Series("main", "grpc")


async def by_http_status(gateway: RunningGateway) -> int:
    """Ask for an inference."""
    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=HANG_S) as client:
        return (await client.post(INFER, content=b"image")).status_code


async def by_grpc_status(gateway: RunningGateway) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(gateway.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), timeout=HANG_S)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


async def counted(gateway: RunningGateway) -> Counters:
    """Return what is counted, once Envoy's threads have put their latencies together."""
    await gateway.latencies_are_merged()
    return (await gateway.traffic.count(["coins"])).get("coins", Counters("", 0.0))


async def tally(gateway: RunningGateway, series: Series) -> SeriesCounts:
    return (await counted(gateway)).by_series[series]


def timed(found: SeriesCounts) -> int:
    return sum(count for _, count in found.latencies)
