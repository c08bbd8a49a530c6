"""Callers of a gateway: plain clients as users have them, and a load of them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import httpx
import numpy as np
import tritonclient.grpc
import tritonclient.http
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.gateway import RunningGateway
from fakes.kserve import Gateway, Model, items
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan

LIMIT = 2**21
STEP = "segserve--pre--3f9a"


def served(old: StubTriton, new: StubTriton | None = None, new_weight: int = 0, model: str = "coins") -> TrafficPlan:
    shares = [Share("main", "coins-old", 100 - new_weight, (old.endpoint,))]
    if new is not None:
        shares.append(Share("coins-new", "coins-new", new_weight, (new.endpoint,)))
    return TrafficPlan((Route(model, tuple(shares), steps=(STEP,), exposed=(f"{model}.network",)),), (old.endpoint,))


@contextmanager
def finding_nothing(side: int) -> Iterator[tuple[Gateway, Route]]:
    """Run a server that finds nothing in square images; yield it and the route of its model, `boxes`."""
    revision = "boxes-aaaaaaaaaa"
    answer = {
        "REVISION": items(revision.encode()),
        "SIZE": np.array([side, side], np.int32),
        "BOXES": np.zeros((0, 4), np.float32),
        "SCORES": np.zeros(0, np.float32),
        "CLASSES": np.zeros(0, np.int32),
    }
    server = Gateway(models={"boxes": Model(list(answer), {"revision": revision}, lambda _: answer)})
    with server.http() as http, server.grpc() as rpc:
        endpoint = Endpoint("127.0.0.1", *(int(url.rpartition(":")[2]) for url in (http, rpc)))
        yield server, Route("boxes", (Share("main", revision, 100, (endpoint,)),))


def image(client: Any, size: int = 8) -> list[Any]:
    tensor = client.InferInput("IMAGE", [size], "UINT8")
    tensor.set_data_from_numpy(np.zeros(size, np.uint8))
    return [tensor]


def by_http(authority: str, model: str = "coins", size: int = 8) -> str:
    with tritonclient.http.InferenceServerClient(authority) as client:
        answer: str = client.infer(model, image(tritonclient.http, size)).get_response()["model_version"]
        return answer


def by_grpc(authority: str, model: str = "coins", size: int = 8, **options: Any) -> str:
    with tritonclient.grpc.InferenceServerClient(authority) as client:
        answer: str = client.infer(model, image(tritonclient.grpc, size), **options).get_response().model_version
        return answer


async def ask(gateway: RunningGateway, path: str, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=gateway.traffic.url, timeout=HANG_S) as client:
        return await client.request(options.pop("method", "POST"), path, **options)


class Load:
    """Clients of both protocols that call as fast as they are answered, until it is left."""

    def __init__(self, gateway: RunningGateway, clients: int = 4) -> None:
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []
        self._authority = gateway.authority
        self._calls = (self._http, self._grpc) * (clients // 2)
        self._ended = False

    def __len__(self) -> int:
        """Return how many clients there are."""
        return len(self._calls)

    async def __aenter__(self) -> None:
        self._clients = [asyncio.create_task(client()) for client in self._calls]
        await self.goes_on()

    async def __aexit__(self, *_: object) -> None:
        self._ended = True
        await asyncio.gather(*self._clients)

    async def goes_on(self, answers: int = 20) -> None:
        """Return after so many more calls, answered or not."""
        wanted = self._ended_calls() + answers

        async def reached() -> bool:
            return self._ended_calls() >= wanted

        await eventually(reached, f"{answers} more calls have ended")

    async def hears(self, *names: str, answers: int = 20) -> None:
        """Return once each of these servers has given so many answers."""

        async def reached() -> bool:
            return all(self.answers[name] >= answers for name in names)

        await eventually(reached, f"{answers} answers of each of {names}")

    def _ended_calls(self) -> int:
        return self.answers.total() + len(self.failures)

    async def _http(self) -> None:
        async with httpx.AsyncClient(base_url=f"http://{self._authority}", timeout=HANG_S) as client:
            while not self._ended:
                try:
                    answer = await client.post("/v2/models/coins/infer", content=b"image")
                    self.answers[answer.raise_for_status().json()["model_version"]] += 1
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))

    async def _grpc(self) -> None:
        async with grpc.aio.insecure_channel(self._authority) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            while not self._ended:
                try:
                    answer = await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"))
                    self.answers[answer.model_version] += 1
                except grpc.aio.AioRpcError as error:
                    self.failures.append(repr(error))
