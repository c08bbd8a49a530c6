"""The local platform's gateway: its samples, and its listener for segserve itself."""

from __future__ import annotations

import asyncio
import stat
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import grpc
import psutil
import pytest
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from bench.ports import free_ports
from fakes.gateway_clients import by_grpc, by_http, served
from fakes.waiting import HANG_S, eventually
from segserve_builder.comparator.folder import ComparatorFolder
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.comparator import IDLE_S, CopyService, local_comparator
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.gateway import LocalGateway
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError, internal_client
from segserve_operator.api.telemetry import AccessLog
from segserve_operator.api.triton_pool import Gateway
from segserve_operator.core.rollout.counters import Protocol, Series
from segserve_operator.core.traffic import Mirror, TrafficPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
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


COMPARED = Mirror("main", "coins-new", percent=100, requests_per_s=1000.0)


def compared(old: StubTriton, new: StubTriton) -> TrafficPlan:
    told = served(old, new, 0)
    return replace(told, routes=(replace(told.routes[0], mirror=COMPARED),))


@pytest.mark.parametrize(("protocol", "call"), [("http", by_http), ("grpc", by_grpc)])
async def test_a_candidate_that_fails_is_seen_in_pairs_alone(
    local: LocalGateway, old: StubTriton, new: StubTriton, protocol: Protocol, call: Callable[[str], str]
) -> None:
    new.status, new.grpc_status = 503, grpc.StatusCode.INTERNAL
    await local.apply(compared(old, new))

    async def seen() -> bool:
        await asyncio.to_thread(call, local.url.removeprefix("http://"))
        pairs = (await local.samples(GROUPS))["coins"]["local"].pairs
        return pairs is not None and pairs.failed[1] >= 3

    await eventually(seen, "pairs of which the candidate failed its half")

    counted = (await local.samples(GROUPS))["coins"]["local"]
    assert counted.pairs is not None
    assert (counted.pairs.stable, counted.pairs.candidate) == ("main", "coins-new")
    assert counted.pairs.failed[0] == counted.pairs.failed[2] == counted.pairs.failed[3] == 0
    assert counted.by_series.keys() == {Series("main", protocol)}
    assert counted.by_series[Series("main", protocol)].failed == 0


async def test_a_comparator_that_is_killed_is_started_again_and_ended_with_the_platform(
    local: LocalGateway, old: StubTriton, new: StubTriton, tmp_path: Path
) -> None:
    await local.apply(compared(old, new))
    former = running_comparator(tmp_path)
    assert former is not None
    psutil.Process(former.pid).kill()

    async def started_again() -> bool:
        await local.observe()
        running = running_comparator(tmp_path)
        return running is not None and running != former

    await eventually(started_again, "another comparator")
    processes.end_marked_processes(tmp_path, grace_s=5)

    assert running_comparator(tmp_path) is None


async def test_a_comparator_ends_when_nothing_has_been_compared_for_a_while_and_not_before(tmp_path: Path) -> None:
    now_s, state = [0.0], StateFolder(tmp_path)

    def comparator() -> CopyService:
        folder = ComparatorFolder(state.gateway / "pairs")
        return local_comparator(
            state, folder, internal_url="unix:none", max_request_bytes=2**20, monotonic_s=lambda: now_s[0]
        )

    own = comparator()
    own.keep(wanted=False)
    assert running_comparator(tmp_path) is None
    own.keep(wanted=True)
    first = running_comparator(tmp_path)
    now_s[0] = IDLE_S - 1
    own.keep(wanted=False)
    assert running_comparator(tmp_path) == first is not None
    now_s[0] = IDLE_S
    own.keep(wanted=False)
    assert running_comparator(tmp_path) is None

    # What an earlier supervisor has left is of no use to the next one, which may be of another version.
    own.keep(wanted=True)
    left = running_comparator(tmp_path)
    comparator().keep(wanted=False)
    assert left is not None
    assert running_comparator(tmp_path) is None


def running_comparator(folder: Path) -> ProcessRecord | None:
    record = processes.read_record(folder / "gateway/comparator.process.json")
    return record if processes.is_alive(record) else None


async def test_its_access_log_is_turned_on_and_off_while_it_runs(
    local: LocalGateway, old: StubTriton, tmp_path: Path
) -> None:
    port = int(local.url.rpartition(":")[2])
    log = tmp_path / "gateway/access.log"

    async def answers() -> bool:
        with suppress(EnvoyUnreachableError):  # it is started anew
            await local.apply(served(old))
            return (await local.observe()).plan is not None
        return False

    async def is_logged() -> bool:
        if await answers():
            await asyncio.to_thread(by_http, local.url.removeprefix("http://"))
        return log.exists() and bool(log.read_text())

    async def is_another() -> bool:
        return await answers() and processes.read_record(tmp_path / "gateway/envoy.process.json") != logging

    local.follow(Gateway(port=port, access_log=AccessLog(sampling_ratio=1.0)))
    await eventually(is_logged, "requests are in the log")
    logging = processes.read_record(tmp_path / "gateway/envoy.process.json")
    local.follow(Gateway(port=port))
    await eventually(is_another, "an Envoy without the log answers")
    before = log.read_text()
    await asyncio.to_thread(by_http, local.url.removeprefix("http://"))
    await asyncio.sleep(2)  # a log's lines are written within a second
    assert log.read_text() == before
