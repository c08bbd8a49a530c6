"""What every gateway promises to the reconcile loop, the fake of the convergence tests included."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fakes.gateway import running_gateway
from fakes.platform import RecordedTraffic
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.service import Traffic

OLD = Share("main", "coins-aaaaaaaaaa", 100, (Endpoint("127.0.0.1", 8000, 8001),))
NEW = Share("coins-bbbbbbbbbb", "coins-bbbbbbbbbb", 100, (Endpoint("127.0.0.1", 8010, 8011),))


def split(new_weight: int, model: str = "coins") -> Route:
    old = Share(OLD.group, OLD.revision, 100 - new_weight, OLD.endpoints)
    new = Share(NEW.group, NEW.revision, new_weight, NEW.endpoints)
    return Route(model, (old, new), steps=("segserve--pre--1",), exposed=(f"{model}.network",))


@pytest.fixture(params=["memory", pytest.param("envoy", marks=pytest.mark.platform)])
async def traffic(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Traffic]:
    if request.param == "memory":
        yield RecordedTraffic()
        return
    async with running_gateway(tmp_path) as running:
        yield running.traffic


async def test_a_new_gateway_routes_nothing(traffic: Traffic) -> None:
    state = await traffic.observe()

    assert (state.plan or TrafficPlan()).routes == ()
    assert state.active == {}


@pytest.mark.parametrize("weight", [0, 30, 100])
async def test_an_applied_plan_is_the_plan_observed(traffic: Traffic, weight: int) -> None:
    plan = TrafficPlan((split(weight),), OLD.endpoints)

    await traffic.apply(plan)

    assert (await traffic.observe()).plan == plan


async def test_applying_a_plan_twice_is_applying_it_once(traffic: Traffic) -> None:
    plan = TrafficPlan((split(30),), OLD.endpoints)

    await traffic.apply(plan)
    await traffic.apply(plan)

    assert (await traffic.observe()).plan == plan


async def test_a_later_plan_replaces_the_whole_of_an_earlier_one(traffic: Traffic) -> None:
    await traffic.apply(TrafficPlan((split(30), split(0, "cells")), OLD.endpoints))
    later = TrafficPlan((split(100, "cells"),))

    await traffic.apply(later)

    assert (await traffic.observe()).plan == later


async def test_a_share_without_servers_is_kept_as_planned(traffic: Traffic) -> None:
    plan = TrafficPlan((Route("coins", (Share("main", "coins-aaaaaaaaaa", 100),)),))

    await traffic.apply(plan)

    assert (await traffic.observe()).plan == plan


async def test_nothing_is_in_flight_where_nobody_calls(traffic: Traffic) -> None:
    await traffic.apply(TrafficPlan((split(30),), OLD.endpoints))

    assert (await traffic.observe()).active == {}


async def test_a_model_that_nobody_calls_has_no_requests_in_its_samples(traffic: Traffic) -> None:
    await traffic.apply(TrafficPlan((split(30),), OLD.endpoints))

    first, later = [await traffic.samples({"coins": (OLD.group, NEW.group)}) for _ in range(2)]

    assert set(first) == {"coins"}
    assert window_between(first["coins"], later["coins"], OLD.group, NEW.group).window.requests.sum() == 0


async def test_nothing_is_said_of_models_where_none_is_asked_for(traffic: Traffic) -> None:
    assert await traffic.samples({}) == {}
