"""Copies of callers' requests for the capture service: what it gets, and that callers notice nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio

from fakes.comparator import StubComparator, running_comparator
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import ask, by_grpc, by_http, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_builder.capture.rule import RULES, CaptureFolder, CaptureRule
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_mirror import MAX_COPIES
from segserve_operator.core.traffic import Mirror, TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/coins/infer"
BIG = 20 * 2**20
RULE = CaptureRule(
    group="main", revision="coins-1", share=1.0, per_minute=60, sink="s3://x/y", retention_s=60, max_pixels=1000
)


@pytest.fixture(scope="module")
def old() -> Iterator[StubTriton]:
    with StubTriton("old") as triton:
        yield triton


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("capture")
    async with running_gateway(folder, max_request_bytes=64 * 2**20, capture=True) as running:
        yield running


def shared_with(gateway: RunningGateway) -> CaptureFolder:
    return EnvoyFiles(gateway.folder).capture


def beside(folder: CaptureFolder, **options: Any) -> AbstractAsyncContextManager[StubComparator]:
    """Run a stand-in: the sockets of a comparator's folder have the same names."""
    return running_comparator(ComparatorFolder(folder.path), **options)


def plan(old: StubTriton, capture: CaptureRule | None = RULE, mirror: Mirror | None = None) -> TrafficPlan:
    told = served(old, old)
    return replace(told, routes=(replace(told.routes[0], capture=capture, mirror=mirror),))


async def test_the_service_gets_the_rule_and_copies_of_both_protocols_with_their_ids(
    gateway: RunningGateway, old: StubTriton
) -> None:
    folder = shared_with(gateway)
    async with beside(folder) as service:
        await gateway.traffic.apply(plan(old))
        answer = await ask(gateway, INFER, content=b"image", headers={"x-segserve-slice": "camera-7"})
        assert await asyncio.to_thread(by_grpc, gateway.authority) == "old"

        async def both() -> bool:
            return len(service.copies) >= 2

        await eventually(both, "two copies")
        await gateway.traffic.apply(plan(old, None))
        assert (await ask(gateway, INFER, content=b"image")).status_code == 200

        (copy,) = [each for each in service.copies if each.path == INFER]
        assert (copy.body, copy.headers["x-segserve-slice"]) == (b"image", "camera-7")
        assert copy.headers["x-request-id"] == answer.headers["x-request-id"]
        assert len(service.copies) == 2
    assert RULES.validate_json(folder.rules.read_bytes()) == {}


async def test_a_request_can_be_compared_and_captured_at_once(gateway: RunningGateway, old: StubTriton) -> None:
    folders = shared_with(gateway), EnvoyFiles(gateway.folder).comparator
    async with beside(folders[0]) as service, running_comparator(folders[1]) as comparator:
        mirror = Mirror("main", "coins-new", percent=100, requests_per_s=100_000.0)
        await gateway.traffic.apply(plan(old, mirror=mirror))

        async def both() -> bool:
            # Only some requests of a second are copied for samples.
            assert (await ask(gateway, INFER, content=b"image")).status_code == 200
            return bool(service.copies and comparator.copies)

        await eventually(both, "a copy for each")
        assert service.copies[0].body == comparator.copies[0].body == b"image"


@pytest.mark.parametrize("state", ["dead", "deaf", "slow"])
async def test_a_large_request_is_answered_whatever_the_service_does(
    gateway: RunningGateway, old: StubTriton, state: str
) -> None:
    folder = shared_with(gateway)
    options: dict[str, Any] = {"deaf": state == "deaf", "delay_s": 8.0}
    running: AbstractAsyncContextManager[Any] = nullcontext() if state == "dead" else beside(folder, **options)
    await gateway.traffic.apply(plan(old))
    async with running:
        for _ in range(MAX_COPIES + 1):
            answers = (
                await asyncio.to_thread(by_http, gateway.authority, size=BIG),
                await asyncio.to_thread(by_grpc, gateway.authority, size=BIG),
            )
            assert answers == ("old", "old")
