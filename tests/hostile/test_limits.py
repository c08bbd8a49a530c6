"""Limits of a model on the real Envoy: what a caller who sends too much does not get, nor takes from others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, replace

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.credentials import api_key, key_line
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import finding_nothing, served
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve import AsyncClient, Hooks, RateLimitError, SegserveError
from segserve.calls.steps import TransportName
from segserve_operator.adapters.traffic.envoy_admin import WITHOUT_TLS
from segserve_operator.adapters.traffic.envoy_auth import AuthSettings
from segserve_operator.adapters.traffic.envoy_routes import RETRY_AFTER_S
from segserve_operator.api.access import Auth
from segserve_operator.core.traffic import RequestRate, RouteLimits, Share, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.core, pytest.mark.asyncio(loop_scope="module")]

NAMES = ("ann", "bob", "cid")
MOST_BYTES = 2**21


@dataclass
class Entrance:
    """A gateway that takes API keys and strangers, in front of a server that holds every model."""

    running: RunningGateway
    triton: StubTriton

    async def limited(
        self, model: str, limits: RouteLimits | None, *, canary: int = 0, beside: str | None = None
    ) -> None:
        """Serve a model with these limits, whose buckets are full where they are new, `beside` one without any."""
        plan = served(self.triton, model=model)
        (route,) = plan.routes
        shares = route.shares
        if canary:
            shares = (
                replace(shares[0], weight=100 - canary),
                Share("canary", f"{model}-new", canary, (self.triton.endpoint,)),
            )
        others = served(self.triton, model=beside).routes if beside is not None else ()
        routes = (*others, replace(route, limits=limits, shares=shares))
        await self.running.traffic.shift(TrafficPlan(routes, plan.servers))

    def http(self, caller: str = "", **headers: str) -> httpx.AsyncClient:
        key = {"x-api-key": api_key(caller, caller)} if caller else {}
        url = self.running.traffic.url
        plain = {"verify": WITHOUT_TLS, "trust_env": False, "timeout": HANG_S}
        return httpx.AsyncClient(base_url=url, headers={**key, **headers}, **plain)


def infer(model: str) -> str:
    return f"/v2/models/{model}/infer"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Entrance]:
    folder = tmp_path_factory.mktemp("limits")
    secret = folder / "secrets" / "callers"
    secret.mkdir(parents=True)
    (secret / "htpasswd").write_text("".join(key_line(name, name) for name in NAMES))
    keys = [{"secretRef": {"name": "callers", "key": "htpasswd"}}]
    auth = AuthSettings(
        Auth.model_validate({"apiKeys": keys, "anonymous": True}), (folder / "secrets",), folder / "gateway" / "auth"
    )
    with StubTriton("server") as triton:
        async with running_gateway(folder / "gateway", max_request_bytes=MOST_BYTES, auth=auth) as running:
            yield Entrance(running, triton)


@dataclass
class Flood:
    """What became of requests that were sent at once, and how long it took until the last of them had ended."""

    outcomes: Counter[str]
    took_s: float

    @property
    def answered(self) -> int:
        return self.outcomes["200"]

    def stays_within(self, per_s: int) -> bool:
        """Tell whether no more was answered than a full bucket and what came into it since."""
        return self.answered <= per_s + per_s * self.took_s + 1


async def flood(calls: Iterable[Awaitable[str]]) -> Flood:
    began_s = time.monotonic()
    outcomes = Counter(await asyncio.gather(*calls))
    return Flood(outcomes, time.monotonic() - began_s)


async def flood_until_refused(call: Callable[[], Awaitable[str]]) -> Flood:
    """Send many at once until one is refused: a busy machine may send no more a second than is allowed."""
    began_s, outcomes = time.monotonic(), Counter[str]()

    async def refused() -> bool:
        outcomes.update(await asyncio.gather(*(call() for _ in range(20))))
        return bool(outcomes["429"])

    await eventually(refused, "a request is refused")
    return Flood(outcomes, time.monotonic() - began_s)


async def by_http(entrance: Entrance, caller: str = "", model: str = "coins", **headers: str) -> str:
    async with entrance.http(caller, **headers) as client:
        return str((await client.post(infer(model), content=b"image")).status_code)


async def by_grpc(entrance: Entrance, caller: str = "", model: str = "coins", message: bytes = b"") -> str:
    metadata = [("x-api-key", api_key(caller, caller))] if caller else []
    async with grpc.aio.insecure_channel(entrance.running.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = pb.ModelInferRequest(model_name=model, raw_input_contents=[message])
        try:
            await stub.ModelInfer(request, metadata=metadata, timeout=HANG_S)
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
    return "200"


PER_CALLER = RouteLimits(per_caller=RequestRate(requests_per_s=3))
TOTAL = RouteLimits(total=RequestRate(requests_per_s=4))


async def test_a_caller_who_sends_too_much_is_told_when_to_come_again_and_a_neighbour_is_answered(
    entrance: Entrance,
) -> None:
    await entrance.limited("coins", PER_CALLER)

    of_ann = await flood_until_refused(lambda: by_http(entrance, "ann"))

    assert set(of_ann.outcomes) == {"200", "429"}
    assert of_ann.stays_within(3)
    assert (await by_http(entrance, "bob"), await by_grpc(entrance, "cid"), await by_http(entrance)) == ("200",) * 3


async def test_the_refusal_says_what_is_limited_in_both_protocols(entrance: Entrance) -> None:
    await entrance.limited("coins", RouteLimits(per_caller=RequestRate(requests_per_s=1)))
    said = "rate limit: spec.limits of model 'coins' allows no more requests now"
    async with entrance.http("ann") as client:
        answer = await client.post(infer("coins"), content=b"image")
        while answer.status_code == 200:
            answer = await client.post(infer("coins"), content=b"image")
    refused = await first_refusal(entrance, "bob")

    assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (429, "1", {"error": said})
    assert (refused.code(), refused.details()) == (grpc.StatusCode.RESOURCE_EXHAUSTED, said)
    metadata = dict((*refused.initial_metadata(), *refused.trailing_metadata()))
    assert (metadata["retry-after"], metadata["grpc-retry-pushback-ms"]) == ("1", "1000")


async def first_refusal(entrance: Entrance, caller: str) -> grpc.aio.AioRpcError:
    async with grpc.aio.insecure_channel(entrance.running.authority) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = [("x-api-key", api_key(caller, caller))]
        while True:
            try:
                await stub.ModelInfer(pb.ModelInferRequest(model_name="coins"), metadata=metadata, timeout=HANG_S)
            except grpc.aio.AioRpcError as error:
                return error


async def test_neither_the_other_protocol_nor_the_exposed_network_is_a_way_around(entrance: Entrance) -> None:
    await entrance.limited("coins", PER_CALLER)

    ways = (
        *(by_http(entrance, "ann") for _ in range(10)),
        *(by_grpc(entrance, "ann") for _ in range(10)),
        *(by_http(entrance, "ann", "coins.network") for _ in range(10)),
        *(by_grpc(entrance, "ann", "coins.network") for _ in range(10)),
    )

    assert (await flood(ways)).stays_within(3)


async def test_a_rollout_gives_no_second_budget(entrance: Entrance) -> None:
    await entrance.limited("coins", TOTAL)
    began_s = time.monotonic()
    answered = 0
    for canary in (10, 50, 90):
        await entrance.limited("coins", TOTAL, canary=canary)
        answered += (await flood(by_http(entrance, "ann") for _ in range(15))).answered

    assert Flood(Counter({"200": answered}), time.monotonic() - began_s).stays_within(4)


async def test_many_callers_together_stay_within_the_total(entrance: Entrance) -> None:
    await entrance.limited("coins", RouteLimits(RequestRate(requests_per_s=3), RequestRate(requests_per_s=4)))

    assert (await flood(by_http(entrance, name) for name in NAMES * 10)).stays_within(4)


async def test_a_stranger_is_limited_by_his_address_whatever_address_he_claims(entrance: Entrance) -> None:
    await entrance.limited("coins", PER_CALLER)

    claims = (by_http(entrance, **{"x-forwarded-for": f"10.0.0.{number}"}) for number in range(30))

    assert (await flood(claims)).stays_within(3)


async def test_other_models_and_questions_about_the_model_are_not_limited(entrance: Entrance) -> None:
    await entrance.limited("coins", RouteLimits(per_caller=RequestRate(requests_per_s=1)), beside="cells")
    await flood_until_refused(lambda: by_http(entrance, "ann"))

    async with entrance.http("ann") as client:
        about = [(await client.get(f"/v2/models/coins{end}")).status_code for end in ("", "/config", "/ready") * 3]

    assert set(about) == {200}
    assert (await flood(by_http(entrance, "ann", "cells") for _ in range(10))).outcomes == {"200": 10}


@pytest.mark.parametrize("way", ["announced", "chunked", "grpc"])
async def test_bytes_are_limited_however_they_come(entrance: Entrance, way: str) -> None:
    size = 900_000
    model = f"coins-{way}"
    await entrance.limited(model, RouteLimits(per_caller=RequestRate(megabytes_per_s=1)))

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(9):
            yield bytes(size // 9)

    async def call() -> str:
        if way == "grpc":
            return await by_grpc(entrance, "ann", model, bytes(size))
        async with entrance.http("ann") as client:
            body = bytes(size) if way == "announced" else chunks()
            return str((await client.post(infer(model), content=body)).status_code)

    sent = await flood(call() for _ in range(8))

    assert sent.answered >= 2, "a bucket has room for the largest request"
    assert sent.answered * size <= MOST_BYTES + 1 + (sent.took_s + 1) * 1_000_000
    assert set(sent.outcomes) <= {"200", "429", "RESOURCE_EXHAUSTED"}


async def test_limits_change_and_go_without_a_restart(entrance: Entrance) -> None:
    for limits, refuses in (
        (TOTAL, True),
        (RouteLimits(total=RequestRate(requests_per_s=1000)), False),
        (TOTAL, True),
        (None, False),
    ):
        await entrance.limited("coins", limits)
        if refuses:
            await flood_until_refused(lambda: by_http(entrance, "ann"))
        else:
            assert (await flood(by_http(entrance, "ann") for _ in range(20))).outcomes == {"200": 20}, limits


async def test_an_envoy_that_starts_again_holds_the_limits(entrance: Entrance) -> None:
    await entrance.limited("coins", TOTAL)
    entrance.running.kill()
    await entrance.running.start()

    await flood_until_refused(lambda: by_http(entrance, "ann"))


@pytest.mark.parametrize("transport", ["http", "grpc"])
async def test_our_client_waits_as_long_as_it_is_told(entrance: Entrance, transport: TransportName) -> None:
    pauses: list[tuple[type[SegserveError], float]] = []
    with finding_nothing(90) as (_, route):
        limited = replace(route, limits=RouteLimits(RequestRate(1), RequestRate(1)))
        await entrance.running.traffic.shift(TrafficPlan((limited,), route.shares[0].endpoints))
        hooks = Hooks(on_retry=lambda event: pauses.append((type(event.error), event.pause_s)))
        url, key = entrance.running.traffic.url, api_key("ann", "ann")
        async with AsyncClient(url, transport=transport, api_key=key, hooks=hooks, retries=2) as client:
            while not pauses:
                await client.segment(np.zeros((90, 90, 3), np.uint8), model="boxes")

    assert {kind for kind, _ in pauses} == {RateLimitError}
    assert all(pause_s >= RETRY_AFTER_S for _, pause_s in pauses)
