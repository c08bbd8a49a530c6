"""Samples before and after: servers change, Envoy starts again, requests hang."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc
import pytest

from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import served
from fakes.gateway_counts import GRPC, HTTP, by_grpc_status, by_http_status, counted, timed
from fakes.waiting import eventually
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.rollout.counters import HungRequests, Sample
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.traffic import Route, Share, TrafficPlan

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from fakes.triton import StubTriton
    from segserve_operator.core.rollout.windows import WindowResult

pytestmark = pytest.mark.platform


async def test_a_change_of_servers_loses_nothing_that_was_counted(
    serving: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    """To Envoy it is another cluster, and some of its statistics begin at zero."""
    old.status, old.grpc_status = 503, grpc.StatusCode.UNAVAILABLE
    for _ in range(3):
        await by_http_status(serving)
        await by_grpc_status(serving)
    before = await counted(serving)

    share = Share("main", "coins-old", 100, (new.endpoint,))
    await serving.traffic.apply(TrafficPlan((Route("coins", (share,)),)))
    between = await counted(serving)
    await by_http_status(serving)
    await by_grpc_status(serving)
    after = await counted(serving)

    assert between.by_series == before.by_series
    for series in (HTTP, GRPC):
        assert (after.by_series[series].attempts, after.by_series[series].failed) == (4, 3)
        assert timed(after.by_series[series]) == 4


async def test_failures_in_the_moment_before_servers_change_are_not_lost(
    serving: RunningGateway, old: StubTriton
) -> None:
    """Nobody has asked between them and the change."""
    first = {"local": await counted(serving)}
    await by_http_status(serving)
    first = {"local": await counted(serving)}
    old.status = 500
    for _ in range(3):
        await by_http_status(serving)
    await serving.traffic.apply(TrafficPlan((Route("coins", (Share("main", "coins-old", 100, ()),)),)))

    window = window_between(first, {"local": await counted(serving)}, "main", "none").window

    assert (window.requests[STABLE], window.errors[STABLE]) == (6, 6)


async def test_an_envoy_that_starts_again_adds_nothing_and_loses_nothing_that_was_sampled(
    serving: RunningGateway,
) -> None:
    for _ in range(5):
        await by_http_status(serving)
    before = await counted(serving)

    serving.kill()
    with pytest.raises(EnvoyUnreachableError):
        await serving.traffic.count(["coins"])
    await serving.resume()
    empty = await serving.traffic.count(["coins"])
    for _ in range(2):
        await by_http_status(serving)
    after = await counted(serving)

    assert empty == {}
    assert after.epoch != before.epoch
    assert after.began_s > before.at_s
    window = window_between({"local": before}, {"local": after}, "main", "none").window
    assert window.requests[STABLE] == 2
    assert window.latencies[STABLE].sum() == 2


async def follow(gateway: RunningGateway, slow: int, *, slow_after_s: float) -> list[WindowResult]:
    """Take looks until so many requests are in the last bin of latencies."""
    seen: Sample = {"local": (await gateway.traffic.count(["coins"]))["coins"]}
    hung = HungRequests()
    windows: list[WindowResult] = []

    async def window() -> bool:
        nonlocal seen, hung
        now = {"local": (await gateway.traffic.count(["coins"]))["coins"]}
        windows.append(window_between(seen, now, "coins-new", "main", hung=hung, slow_after_s=slow_after_s))
        seen, hung = windows[-1].seen, windows[-1].hung
        return in_last_bin(windows) >= slow

    await eventually(window, f"{slow} slow requests")
    return windows


def in_last_bin(windows: list[WindowResult]) -> float:
    return sum(measured.window.latencies[CANDIDATE, -1] for measured in windows)


@pytest.fixture
async def patient(tmp_path: Path, old: StubTriton) -> AsyncIterator[RunningGateway]:
    """A gateway that waits much longer for an answer than a look takes to find that it is slow."""
    async with running_gateway(tmp_path / "patient", timeout_s=10.0) as running:
        await running.traffic.apply(served(old))
        yield running


@pytest.mark.parametrize("ask", [by_http_status, by_grpc_status])
async def test_requests_that_hang_are_seen_as_slow_before_they_end(
    patient: RunningGateway, old: StubTriton, ask: Callable[[RunningGateway], Coroutine[None, None, object]]
) -> None:
    """They count as slow after 0.4 s; the last bin has each of them once."""
    old.hold()
    asked = [asyncio.create_task(ask(patient)) for _ in range(3)]
    await patient.in_flight({("coins", "main"): 3})

    early = await follow(patient, 3, slow_after_s=0.4)

    assert in_last_bin(early) == 3
    assert not any(task.done() for task in asked)
    assert set(await asyncio.gather(*asked)) <= {504, grpc.StatusCode.DEADLINE_EXCEEDED}
    later = window_between(
        early[-1].seen,
        {"local": await counted(patient)},
        "coins-new",
        "main",
        hung=early[-1].hung,
        slow_after_s=0.4,
    )
    assert (later.window.requests[CANDIDATE], later.window.errors[CANDIDATE]) == (3, 3)
    assert later.window.latencies[CANDIDATE].sum() == 0
