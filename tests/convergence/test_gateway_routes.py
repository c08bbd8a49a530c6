"""A pool's routes of the Gateway API follow its spec, on clusters that have that API."""

from __future__ import annotations

import logging

import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from segserve_common.kube.kinds import GATEWAY_ROUTES, GRPC_ROUTES, HTTP_ROUTES, MODELS, POOLS

TOLD = {"provider": "gatewayApi", "parentRefs": [{"name": "public"}], "hostnames": ["a.example"]}


def routes(world: ClusterWorld) -> dict[str, list[str]]:
    """Return the host names of each route there is."""
    found = [(kind.name, route) for kind in GATEWAY_ROUTES for route in world.kube.all(kind, NAMESPACE)]
    return {name: route["spec"]["hostnames"] for name, route in found}


async def test_routes_come_and_go_with_the_pools_wish_and_nothing_is_written_at_rest() -> None:
    world = ClusterWorld(has_gateway_api=True)
    world.apply_pool(gateway=TOLD)
    await world.turns(3)
    assert routes(world) == {"HTTPRoute": ["a.example"]}
    before = world.kube.revision
    assert await world.run_pass() == 0
    assert world.kube.revision == before

    world.apply_pool(gateway={**TOLD, "hostnames": ["b.example"], "grpcHostnames": ["c.example"]})
    await world.turns(3)
    assert routes(world) == {"HTTPRoute": ["b.example"], "GRPCRoute": ["c.example"]}

    world.apply_pool(gateway={"provider": "envoy"})
    await world.turns(3)
    assert routes(world) == {}


@pytest.mark.parametrize("kind", [HTTP_ROUTES, GRPC_ROUTES], ids=lambda kind: kind.plural)
async def test_a_route_that_somebody_deleted_comes_back(kind) -> None:
    world = ClusterWorld(has_gateway_api=True)
    world.apply_pool(gateway={**TOLD, "grpcHostnames": ["c.example"]})
    await world.turns(3)
    before = routes(world)
    (route,) = world.kube.all(kind, NAMESPACE)

    world.delete(kind, route["metadata"]["name"])
    await world.turns(3)

    assert routes(world) == before


async def test_routes_end_with_their_pool() -> None:
    world = ClusterWorld(has_gateway_api=True)
    world.apply_pool(gateway=TOLD)
    await world.turns(3)

    world.delete(POOLS, "default")
    await world.turns(3)

    assert world.left() == []


async def test_a_cluster_without_the_gateway_api_serves_and_the_log_says_what_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = ClusterWorld()
    world.apply_pool(gateway=TOLD)
    world.apply(model_manifest("coins"))
    with caplog.at_level(logging.WARNING):
        await world.turns()

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.kube.all(MODELS, NAMESPACE)
    assert "the cluster had no Gateway API" in caplog.text
