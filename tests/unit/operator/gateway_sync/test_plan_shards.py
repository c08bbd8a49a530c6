"""A plan put together from the ConfigMaps that the API shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from segserve_common.kube.names import SHARDS, plan_name
from segserve_common.kube.shards import pack, shard_of, version_of
from segserve_operator.adapters.traffic.plans import pack_plan
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.gateway_sync.plan_shards import PlanShards
from segserve_operator.gateway_sync.settings import Settings, SidecarSettingsError

AT = Endpoint("10.0.0.1", 8000, 8001)
PLAN = TrafficPlan(
    tuple(Route(f"m{number}", (Share("main-00000000", f"m{number}-aa", 100, (AT,)),)) for number in range(9)), (AT,)
)
ENVIRONMENT = {
    "POD_NAME": "gateway-0",
    "POD_UID": "1",
    "POD_NAMESPACE": "default",
    "SEGSERVE_POOL": "main",
    "SEGSERVE_GATEWAY": '{"port": 8080, "maxRequestBytes": 1000000, "requestTimeoutSeconds": 60, "workers": 2}',
}


def content(told: TrafficPlan, shard: int) -> str:
    routes = tuple(route for route in told.routes if shard_of(route.model) == shard)
    part = replace(told, routes=routes, servers=told.servers if shard == 0 else ())
    return pack_plan(part)


def config_map(text: str) -> dict[str, Any]:
    return {"binaryData": {"content": text}}


@pytest.fixture
def shards() -> PlanShards:
    """Shards that all were read."""
    read = PlanShards("main")
    for shard in range(SHARDS):
        read.take(plan_name("main", shard), config_map(content(PLAN, shard)))
    return read


def test_nothing_is_told_until_every_shard_was_read() -> None:
    read = PlanShards("main")

    for shard in range(SHARDS):
        assert read.content is None
        read.take(plan_name("main", shard), config_map(content(PLAN, shard)))

    assert read.content is not None


def test_the_shards_make_up_the_plan(shards: PlanShards) -> None:
    assert shards.content.plan == PLAN
    assert shards.content.versions == {str(shard): version_of(content(PLAN, shard)) for shard in range(SHARDS)}


@pytest.mark.parametrize(
    "bad",
    [
        "no base64",
        pack({"routes": [{"model": "m1", "shares": []}]}),
        pack({"routes": 5}),
        pack([1]),
        pack({"routes": [{"model": "m1", "shares": [{"group": "g", "revision": "r", "weight": 99}]}]}),
    ],
)
def test_a_shard_that_cannot_be_read_keeps_what_it_said_and_is_told(shards: PlanShards, bad: str) -> None:
    before = shards.content

    shards.take(plan_name("main", 2), config_map(bad))

    assert (shards.content.plan, shards.content.versions) == (before.plan, before.versions)
    assert list(shards.content.refused) == ["2"]
    assert shards.content.refused["2"].startswith(f"version {version_of(bad)}: ")


def test_a_shard_that_can_be_read_again_is_not_refused_any_more(shards: PlanShards) -> None:
    shards.take(plan_name("main", 2), config_map("bad"))
    shards.take(plan_name("main", 2), config_map(content(PLAN, 2)))

    assert shards.content.refused == {}


@pytest.mark.parametrize("seen", [None, {}, {"binaryData": None}, {"binaryData": {}}])
def test_a_shard_that_is_gone_or_empty_changes_no_route(shards: PlanShards, seen: dict[str, Any] | None) -> None:
    before = shards.content

    shards.take(plan_name("main", 1), seen)

    assert shards.content == before


def test_an_environment_says_what_the_gateway_is() -> None:
    settings = Settings.of(ENVIRONMENT)

    assert (settings.pod, settings.gateway.workers, settings.gateway.internal_port) == ("gateway-0", 2, 8081)
    assert str(settings.folder) == "/run/segserve"


@pytest.mark.parametrize("name", sorted(ENVIRONMENT))
def test_a_variable_that_is_missing_is_named(name: str) -> None:
    with pytest.raises(SidecarSettingsError, match=name):
        Settings.of({**ENVIRONMENT, name: ""})


@pytest.mark.parametrize("value", ["{}", "no json", '{"port": 8080, "other": 1}'])
def test_a_gateway_that_makes_no_sense_is_shown(value: str) -> None:
    with pytest.raises(SidecarSettingsError, match="SEGSERVE_GATEWAY"):
        Settings.of({**ENVIRONMENT, "SEGSERVE_GATEWAY": value})


def test_a_change_leaves_the_other_routes_of_its_shard_the_objects_that_they_were(shards: PlanShards) -> None:
    before = {route.model: route for route in shards.content.plan.routes}
    (changed, *_), shard = PLAN.routes, shard_of(PLAN.routes[0].model)
    told = replace(PLAN, routes=(replace(changed, steps=("a-step",)), *PLAN.routes[1:]))

    shards.take(plan_name("main", shard), config_map(content(told, shard)))

    after = {route.model: route for route in shards.content.plan.routes}
    assert after[changed.model].steps == ("a-step",)
    assert {model for model, route in after.items() if route is not before[model]} == {changed.model}
    assert shards.content.plan == told
