"""Servers come to speak TLS, and no more: gateways are told so of each server, and callers lose nothing."""

from __future__ import annotations

from typing import Any

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from segserve_common.kube.kinds import PODS
from segserve_common.kube.names import COMPONENT_LABEL, SERVER, TLS_CONTAINER

TLS: dict[str, Any] = {"servers": {"secretName": "servers"}, "gateway": {"secretName": "gateway"}}
IDENTITY = f"servers.default.{NAMESPACE}.svc"


async def served(**spec: Any) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(**spec)
    world.apply(model_manifest("coins"))
    await world.turns()
    return world


def identities(world: ClusterWorld) -> set[str | None]:
    """Return the identities of the servers that get requests, None for plain text; there are some."""
    shares = [share for share in world.routes()["coins"]["shares"] if share["weight"]]
    found = {server.get("identity") for share in shares for server in share["endpoints"]}
    assert found
    return found


async def test_gateways_are_told_of_tls_by_server_while_a_pool_moves_there_and_back() -> None:
    world = await served()
    assert identities(world) == {None}
    plain = world.groups()

    world.apply_pool(serverTls=TLS)
    seen = []
    for _ in range(60):
        await world.turns(1, seconds_each=20)
        assert sum(world.weights("coins").values()) == 100
        seen.append(identities(world))
    assert seen[-1] == {IDENTITY}
    assert not world.groups() & plain

    world.apply_pool()
    await world.turns(60, seconds_each=20)
    assert identities(world) == {None}
    assert world.groups() == plain


async def test_a_server_whose_certificate_cannot_be_used_gets_no_request_and_what_served_goes_on() -> None:
    world = await served()
    plain = world.groups()
    world.apply_pool(serverTls=TLS)
    for _ in range(60):
        await world.turns(1, seconds_each=20)
        break_certificates(world)
        assert identities(world) == {None}
        assert sum(world.weights("coins").values()) == 100

    assert plain < world.groups()


def break_certificates(world: ClusterWorld) -> None:
    """Say what the kubelet says of an Envoy whose probe fails."""
    for pod in world.kube.all(PODS, NAMESPACE):
        containers = pod["status"]["containerStatuses"]
        if pod["metadata"]["labels"][COMPONENT_LABEL] == SERVER and any(
            each["name"] == TLS_CONTAINER and each["ready"] for each in containers
        ):
            changed = [{**each, "ready": each["ready"] and each["name"] != TLS_CONTAINER} for each in containers]
            world.kube.edit_status(PODS, NAMESPACE, pod["metadata"]["name"], {"status": {"containerStatuses": changed}})
