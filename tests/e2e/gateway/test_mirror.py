"""Copies of callers' requests for a comparator: what it gets, and that callers notice nothing of it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from tritonclient.grpc import service_pb2 as pb

from fakes.comparator import StubComparator, running_comparator
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import Load, ask, by_grpc, by_http, served
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, eventually
from segserve_builder.comparator.folder import COMPARISONS, ComparatorFolder, Comparison
from segserve_operator.adapters.traffic.envoy_admin import EnvoyAdmin
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.adapters.traffic.envoy_mirror import CLUSTER, MAX_COPIES
from segserve_operator.api.session_affinity import SessionAffinity
from segserve_operator.core.rollout.counters import PairCounts, Series
from segserve_operator.core.traffic import Mirror, RouteAffinity, Share, TrafficPlan

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager

pytestmark = [pytest.mark.platform, pytest.mark.asyncio(loop_scope="module")]

INFER = "/v2/models/coins/infer"
BIG = 20 * 2**20
ALL = Mirror("main", "coins-new", percent=100, requests_per_s=100_000.0)


@pytest.fixture(scope="module")
def old() -> Iterator[StubTriton]:
    with StubTriton("old") as triton:
        yield triton


@pytest.fixture(scope="module")
def new() -> Iterator[StubTriton]:
    with StubTriton("new") as triton:
        yield triton


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningGateway]:
    folder = tmp_path_factory.mktemp("mirror")
    affinity = SessionAffinity(header="X-Camera")
    async with running_gateway(folder, max_request_bytes=64 * 2**20, affinity=affinity) as running:
        yield running


def shared_with(gateway: RunningGateway) -> ComparatorFolder:
    return EnvoyFiles(gateway.folder).comparator


def plan(old: StubTriton, new: StubTriton, mirror: Mirror | None = ALL) -> TrafficPlan:
    told = served(old, new)
    return replace(told, routes=(replace(told.routes[0], mirror=mirror),))


def compared(gateway: RunningGateway) -> dict[str, Comparison]:
    return COMPARISONS.validate_json(shared_with(gateway).comparisons.read_bytes())


async def arrived(comparator: StubComparator, copies: int) -> None:
    async def all_are() -> bool:
        return len(comparator.copies) >= copies

    await eventually(all_are, f"{copies} copies")


async def test_the_comparator_gets_the_same_bytes_over_both_protocols_and_callers_get_stables_answer(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    async with running_comparator(shared_with(gateway)) as comparator:
        await gateway.traffic.apply(plan(old, new))

        assert (await ask(gateway, INFER, content=b"image")).json()["model_version"] == "old"
        assert await asyncio.to_thread(by_grpc, gateway.authority) == "old"
        await arrived(comparator, 2)

    by_path = {copy.path: copy for copy in comparator.copies}
    message = by_path["/inference.GRPCInferenceService/ModelInfer"]
    assert by_path[INFER].body == b"image"
    assert by_path[INFER].headers["host"] == gateway.authority
    assert message.headers["content-type"].startswith("application/grpc")
    assert pb.ModelInferRequest.FromString(message.body[5:]).model_name == "coins"
    assert compared(gateway) == {"coins": Comparison(stable="main", candidate="coins-new", requests_per_s=100_000.0)}
    assert new.asked == []


async def test_nothing_but_whole_inferences_of_the_model_is_copied(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    async with running_comparator(shared_with(gateway)) as comparator:
        await gateway.traffic.apply(plan(old, new))

        assert (await ask(gateway, "/v2/models/coins.network/infer", content=b"image")).status_code == 200
        assert (await ask(gateway, "/v2/models/coins", method="GET")).status_code == 200
        assert (await ask(gateway, INFER, content=b"last")).status_code == 200
        await arrived(comparator, 1)

        assert [copy.body for copy in comparator.copies] == [b"last"]


async def test_a_copy_has_the_label_of_its_request_and_no_other_header_of_segserves_own(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    own = ("x-segserve-key", "x-segserve-slic", "x-segserve-slices", "X-Segserve-Slide", "x-segserve-sl-ice")
    async with running_comparator(shared_with(gateway)) as comparator:
        await gateway.traffic.apply(plan(old, new))

        headers = {"X-Segserve-Slice": "camera-7", "baggage": "segserve.slice=x", **dict.fromkeys(own, "forged")}
        assert (await ask(gateway, INFER, content=b"image", headers=headers)).status_code == 200
        await arrived(comparator, 1)

    copied = comparator.copies[0].headers
    assert (copied["x-segserve-slice"], copied["baggage"]) == ("camera-7", "segserve.slice=x")
    assert "forged" not in copied.values()


async def test_a_caller_cannot_ask_for_a_copy(gateway: RunningGateway, old: StubTriton, new: StubTriton) -> None:
    async with running_comparator(shared_with(gateway)) as comparator:
        await gateway.traffic.apply(plan(old, new, mirror=None))

        answer = await ask(gateway, INFER, content=b"image", headers={"x-segserve-mirror": "//comparator/http"})

        assert answer.status_code == 200
        assert "x-segserve-mirror" not in old.asked[-1].headers
        assert comparator.connections == 0
        assert compared(gateway) == {}


async def test_only_the_share_and_the_rate_of_a_mirror_is_copied(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    async with running_comparator(shared_with(gateway)) as comparator:
        await gateway.traffic.apply(plan(old, new, replace(ALL, percent=30)))
        for _ in range(400):
            await asyncio.to_thread(by_http, gateway.authority)
        await copies_have_ended(gateway)
        share = len(comparator.copies) / 400
        began_s, before = time.monotonic(), len(comparator.copies)
        await gateway.traffic.apply(plan(old, new, replace(ALL, requests_per_s=2.0)))
        for _ in range(100):
            await asyncio.to_thread(by_http, gateway.authority)
        most = 2 + 2.0 * (time.monotonic() - began_s)
        await copies_have_ended(gateway)

        assert abs(share - 0.3) < 0.1
        assert len(comparator.copies) - before <= most


def slow(folder: ComparatorFolder) -> AbstractAsyncContextManager[Any]:
    return running_comparator(folder, delay_s=8.0)


def deaf(folder: ComparatorFolder) -> AbstractAsyncContextManager[Any]:
    return running_comparator(folder, deaf=True)


def dead(_: ComparatorFolder) -> AbstractAsyncContextManager[Any]:
    return nullcontext()


@pytest.mark.parametrize("comparator", [dead, deaf, slow])
async def test_a_large_request_is_answered_whatever_the_comparator_does(
    gateway: RunningGateway, old: StubTriton, new: StubTriton, comparator: Any
) -> None:
    """More of them than may be copied at once; without an answer each would take until the time limit of a minute."""
    await gateway.traffic.apply(plan(old, new))
    async with comparator(shared_with(gateway)):
        before_mib = gateway.rss_mib
        if comparator is deaf:
            assert await asyncio.to_thread(by_http, gateway.authority, size=BIG) == "old"
            assert await copies_under_way(gateway)  # so the answer has not waited for the copy
        for _ in range(MAX_COPIES + 1):
            answers = (
                await asyncio.to_thread(by_http, gateway.authority, size=BIG),
                await asyncio.to_thread(by_grpc, gateway.authority, size=BIG),
            )

            assert answers == ("old", "old")
        assert gateway.rss_mib - before_mib < 2 * MAX_COPIES * 2 * BIG / 2**20


async def test_requests_are_answered_by_the_same_servers_while_a_mirror_comes_changes_and_goes(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    """Also under load, and while copies hang; none of them is in a count of callers' requests."""
    mirrors = [ALL, None, replace(ALL, percent=50), None]
    await gateway.traffic.apply(plan(old, new, mirror=None))
    load = Load(gateway)
    async with running_comparator(shared_with(gateway), delay_s=8.0) as comparator:
        before = await attempts(gateway)
        async with load:
            for mirror in mirrors:
                await gateway.traffic.apply(plan(old, new, mirror=mirror))
                await load.goes_on()
        after = await attempts(gateway)

        assert comparator.copies
    assert load.failures == []
    assert set(load.answers) == {"old"}
    assert after["main"] - before.get("main", 0) == load.answers["old"]
    assert not after.get("coins-new")


async def test_an_id_keeps_its_server_when_its_requests_are_copied(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    async def servers(mirror: Mirror | None) -> list[str]:
        told = plan(old, new, mirror)
        shares = (Share("main", "coins-old", 100, (old.endpoint, new.endpoint)),)
        route = replace(told.routes[0], shares=shares, affinity=RouteAffinity(salt="coins"))
        await gateway.traffic.apply(replace(told, routes=(route,)))
        answers = [await ask(gateway, INFER, content=b"x", headers={"x-camera": f"{n}"}) for n in range(12)]
        return [answer.headers["x-segserve-server"] for answer in answers]

    without = await servers(None)

    assert len(set(without)) == 2
    assert await servers(ALL) == without


COUNTED = PairCounts("7", "main", "coins-new", (5, 1, 0, 2), (((1.1, 5),), ((2.0, 6),)), (0, 3, 2), (1, 4), 3)


async def test_counts_of_pairs_come_with_those_of_callers(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(plan(old, new))
    async with running_comparator(shared_with(gateway), pairs={"coins": asdict(COUNTED), "cells": 7}):
        await ask(gateway, INFER, content=b"image")

        counted = (await gateway.traffic.count(["coins"]))["coins"]

    assert counted.pairs == COUNTED
    assert counted.by_series[Series("main", "http")].attempts >= 1


@pytest.mark.parametrize("said", [b"{", b"[" * 100_000, b'{"coins": {"epoch": 7}}', b"x" * 2**21, None])
async def test_a_comparator_that_tells_nothing_of_use_leaves_out_pairs_alone(
    gateway: RunningGateway, old: StubTriton, new: StubTriton, said: bytes | None
) -> None:
    await gateway.traffic.apply(plan(old, new))
    await ask(gateway, INFER, content=b"image")
    async with running_comparator(shared_with(gateway), pairs=said) if said is not None else nullcontext():
        counted = (await gateway.traffic.count(["coins"]))["coins"]

    assert counted.pairs is None
    assert counted.by_series[Series("main", "http")].attempts >= 1


async def copies_under_way(gateway: RunningGateway) -> int:
    async with EnvoyAdmin(EnvoyFiles(gateway.folder).admin_socket, timeout_s=HANG_S) as admin:
        return (await admin.active([CLUSTER])).get(CLUSTER, 0)


async def copies_have_ended(gateway: RunningGateway) -> None:
    async def none_is_under_way() -> bool:
        return not await copies_under_way(gateway)

    await eventually(none_is_under_way, "no copy is under way")


async def attempts(gateway: RunningGateway) -> dict[str, int]:
    """Return the attempts that were counted, by group."""
    counted = (await gateway.traffic.count(["coins"])).get("coins")
    totals = Counter[str]()
    for series, counts in counted.by_series.items() if counted is not None else ():
        totals[series.group] += counts.attempts
    return totals
