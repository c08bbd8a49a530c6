"""The operator asks all gateway pods that are ready at once, and does without those that do not answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from fakes.cases import cases
from fakes.waiting import HANG_S
from segserve_builder.cluster.probe_server import ProbeResponse, ProbeServer
from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import GATEWAY, SYNC_PORT
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.adapters.kube.view import PoolKey
from segserve_operator.adapters.samples import wire
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

KEY = PoolKey("vision", "main")
HELD = {"coins": Counters("1", 100.0, {Series("main", "http"): SeriesCounts(7)}, 40.0)}


class OnePool:
    """The part of `View` that is asked, of fixed pods."""

    def __init__(self, *pods: dict[str, Any]) -> None:
        self._pods = pods

    def of_pool(self, kind: object, key: PoolKey) -> list[dict[str, Any]]:
        assert kind is PODS
        assert key == KEY
        return list(self._pods)


def pod(
    name: str, host: str, *, component: str = GATEWAY, ready: bool = True, owner: str = "segserve-main--gateway-5d8f"
) -> dict[str, Any]:
    return {
        "metadata": {
            "name": name,
            "labels": {"app.kubernetes.io/component": component},
            "ownerReferences": [{"kind": "ReplicaSet", "name": owner}],
        },
        "status": {
            "podIP": host,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def traffic(*pods: dict[str, Any]) -> ClusterTraffic:
    return ClusterTraffic(None, OnePool(*pods), None, KEY, {}, clock=lambda: 1000.0)  # type: ignore[arg-type]


@pytest.fixture
def gateways() -> Iterator[list[Mapping[str, list[str]]]]:
    """Answers as a gateway pod does, at every address of this machine, and notes what was asked."""
    asked: list[Mapping[str, list[str]]] = []

    def counts(query: Mapping[str, list[str]]) -> ProbeResponse:
        asked.append(query)
        return ProbeResponse(200, wire.encode(HELD, uid=f"uid-{len(asked)}"), "application/json")

    server = ProbeServer(SYNC_PORT, {}, {wire.PATH: counts})
    server.start()
    yield asked
    server.stop()


async def test_every_gateway_that_is_ready_is_in_the_sample(gateways: list[Mapping[str, list[str]]]) -> None:
    pods = (pod("gw-a", "127.0.0.1"), pod("gw-b", "127.0.0.2"), pod("gw-c", "127.0.0.3", ready=False))
    servers = pod("server", "127.0.0.4", component="server")

    found = await traffic(*pods, servers).samples({"coins": ("main", "new"), "cells": ("main", "new")})

    assert {model: set(sample) for model, sample in found.items()} == {"coins": {"gw-a", "gw-b"}, "cells": set()}
    assert found["coins"]["gw-a"].by_series == HELD["coins"].by_series
    assert {count.epoch for count in found["coins"].values()} == {"uid-1/1", "uid-2/1"}
    assert [(count.at_s, count.began_s) for count in found["coins"].values()] == [(1000.0, 940.0)] * 2
    assert gateways == [{"model": ["cells", "coins"]}] * 2


async def test_a_pod_that_only_has_the_labels_of_a_gateway_is_asked_nothing(
    gateways: list[Mapping[str, list[str]]],
) -> None:
    strangers = [pod("evil", "127.0.0.1", owner=""), pod("other", "127.0.0.2", owner="segserve-other--gateway-5d8f")]
    unowned = pod("bare", "127.0.0.3")
    del unowned["metadata"]["ownerReferences"]

    assert await traffic(*strangers, unowned).samples({"coins": ("main", "new")}) == {"coins": {}}
    assert gateways == []


@pytest.mark.own_deadlines
async def test_a_gateway_that_does_not_answer_is_left_out_in_time(gateways: list[Mapping[str, list[str]]]) -> None:
    pods = (pod("gw-a", "127.0.0.1"), pod("gw-b", "203.0.113.1"))

    asking = traffic(*pods)
    async with asyncio.timeout(HANG_S):  # the kernel tries for longer to connect
        # On a busy machine the other one may be late, too; it is asked again, as it is each second.
        while not (found := await asking.samples({"coins": ("main", "new")}))["coins"]:
            pass

    assert set(found["coins"]) == {"gw-a"}


async def test_where_no_gateway_is_ready_samples_are_empty() -> None:
    assert await traffic().samples({"coins": ("main", "new")}) == {"coins": {}}
    assert await traffic(pod("gw-a", "127.0.0.1")).samples({}) == {}


async def test_the_internal_listener_is_that_of_a_gateway_that_is_ready() -> None:
    assert await traffic(pod("gw-b", "10.0.0.2"), pod("gw-a", "10.0.0.1", ready=False)).internal_url() == (
        "http://10.0.0.2:8081"
    )
    assert await traffic(pod("gw-a", "fd00::1")).internal_url() == "http://[fd00::1]:8081"
    assert await traffic().internal_url() is None


@cases(
    "tallies",
    {
        "an infinite count": '["main","http",9,1,0,2,[[0.001,1e999]]]',
        "a bin without a count": '["main","http",9,1,0,2,[[0.001]]]',
        "no counts": '["main","http"]',
    },
)
def test_counts_that_are_none_are_refused_by_one_error(tallies: str) -> None:
    with pytest.raises(ValueError, match="not the counts of a gateway"):
        wire.decode(f'{{"coins":{{"epoch":"e","age":1.5,"tallies":[{tallies}]}}}}'.encode(), 0.0)
