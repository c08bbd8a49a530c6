"""The local platform's gateway: its samples, and its listener for segserve itself."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING

import grpc
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench.ports import free_ports
from fakes.gateway_clients import by_http, served
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.gateway import LocalGateway
from segserve_operator.adapters.traffic.envoy_admin import internal_client
from segserve_operator.api.triton_pool import Gateway
from segserve_operator.core.rollout.counters import Series

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakes.triton import StubTriton

pytestmark = pytest.mark.platform

GROUPS = {"coins": ("main", "coins-new"), "cells": ("main", "cells-new")}


@pytest.fixture
async def local(tmp_path: Path) -> AsyncIterator[LocalGateway]:
    state = StateFolder(tmp_path)
    state.gateway.mkdir(parents=True)
    gateway = LocalGateway(state, Gateway(port=free_ports(1)[0]))
    assert await gateway.internal_url() is None
    assert await gateway.samples(GROUPS) == {"coins": {}, "cells": {}}

    async def follows() -> bool:
        return (await gateway.observe()).plan is not None

    await eventually(follows, "the gateway follows a plan")
    yield gateway
    processes.end_marked_processes(state.root, grace_s=5)


async def test_its_samples_are_of_one_gateway(local: LocalGateway, old: StubTriton) -> None:
    await local.apply(served(old))
    await asyncio.to_thread(by_http, local.url.removeprefix("http://"))

    found = await local.samples(GROUPS)

    assert found["cells"] == {}
    assert set(found["coins"]) == {"local"}
    assert found["coins"]["local"].by_series[Series("main", "http")].attempts == 1


async def test_segserve_itself_reaches_a_group_without_weight(
    local: LocalGateway, old: StubTriton, new: StubTriton, tmp_path: Path
) -> None:
    await local.apply(served(old, new, 0))
    url = await local.internal_url()
    assert url is not None

    async with internal_client(url, timeout_s=HANG_S) as client:
        answer = await client.post("/v2/models/coins/infer", headers={"x-segserve-group": "coins-new"})
    async with grpc.aio.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        said = await stub.ModelInfer(
            pb.ModelInferRequest(model_name="coins"), metadata=(("x-segserve-group", "coins-new"),)
        )

    assert answer.json()["model_version"] == said.model_version == "new"
    assert stat.S_IMODE((tmp_path / "gateway/internal.sock").stat().st_mode) == 0o600
    assert await local.samples(GROUPS) == {"coins": {}, "cells": {}}  # our own requests are no evidence


async def test_an_envoy_that_an_earlier_version_started_on_other_files_is_replaced(
    local: LocalGateway, old: StubTriton, tmp_path: Path
) -> None:
    await local.apply(served(old))
    record, bootstrap = tmp_path / "gateway/envoy.process.json", tmp_path / "gateway/envoy.json"
    former = processes.read_record(record)
    bootstrap.write_text(bootstrap.read_text().replace("clusters.pb", "clusters.json"))
    successor = LocalGateway(StateFolder(tmp_path), Gateway(port=int(local.url.rpartition(":")[2])))

    async def follows() -> bool:
        return (await successor.observe()).plan == served(old) and processes.read_record(record) != former

    await eventually(follows, "a new gateway follows the plan")

    assert not processes.is_alive(former)
