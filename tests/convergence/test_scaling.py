"""Servers as an autoscaler sees and sets them: those that get requests, of every group."""

from __future__ import annotations

import re

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from segserve_common.kube.kinds import DEPLOYMENTS, PODS, POOLS
from segserve_common.kube.names import GROUP_LABEL

KEEP = "600s"


async def served(**spec: object) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool(**spec)
    world.apply(model_manifest("coins", keepPrevious=KEEP))
    await world.turns()
    return world


def scaled_groups(world: ClusterWorld) -> set[str]:
    """Return the groups of the pods that the selector in the pool's status selects, as an API server would."""
    pool = world.kube.peek(POOLS, NAMESPACE, KEY.pool)
    selector = pool["status"]["selector"]
    left_out = re.search(rf",{GROUP_LABEL} notin \((.*)\)$", selector)
    labels = dict(term.split("=") for term in (selector[: left_out.start()] if left_out else selector).split(","))
    groups = {pod["metadata"]["labels"].get(GROUP_LABEL) for pod in world.kube.all(PODS, NAMESPACE, labels)}
    return groups - set(left_out[1].split(",") if left_out else ())


async def test_at_rest_an_autoscaler_sees_the_main_group() -> None:
    world = await served(replicas=2)

    assert scaled_groups(world) == world.groups()
    assert await world.run_pass() == 0


async def test_a_candidate_without_requests_is_not_seen_and_one_that_got_all_of_them_is_all_that_is_seen() -> None:
    world = await served(replicas=2)
    (main,) = world.groups()
    world.unpullable.add("server:1")
    world.apply(model_manifest("coins", "2", keepPrevious=KEEP))
    await world.turns(3)

    assert len(world.groups()) == 2
    assert scaled_groups(world) == {main}

    world.unpullable.clear()
    for pod in world.kube.all(PODS, NAMESPACE):
        if pod["status"]["phase"] == "Pending":
            world.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])
    await world.turns()
    (own,) = world.weights("coins")

    assert own != main
    assert scaled_groups(world) == {own}


async def test_an_autoscaler_sees_every_group_that_serves_a_model() -> None:
    world = await served(replicas=2)
    (main,) = world.groups()
    world.apply(model_manifest("cells"))
    await world.turns()
    world.apply(model_manifest("coins", "2", keepPrevious=KEEP))
    await world.turns()
    (own,) = world.weights("coins")

    assert world.weights("cells") == {main: 100}
    assert scaled_groups(world) == {main, own}


async def test_a_number_of_servers_is_that_of_each_group_that_serves() -> None:
    world = await served(replicas=2)
    world.apply(model_manifest("coins", "2", keepPrevious=KEEP))
    await world.turns()
    world.apply_pool(replicas=3)
    await world.turns()

    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_candidate_of_a_rollout_starts_with_servers_for_its_first_weight() -> None:
    world = await served(replicas=4)
    (main,) = world.groups()
    world.apply(model_manifest("coins", "2", keepPrevious=KEEP, rollout={}))
    await world.turns()
    replicas = {
        each["metadata"]["labels"][GROUP_LABEL]: each["spec"]["replicas"]
        for each in world.kube.all(DEPLOYMENTS, NAMESPACE)
        if GROUP_LABEL in each["metadata"]["labels"]
    }

    assert replicas.pop(main) == 4
    assert list(replicas.values()) == [1]
    assert world.status("coins")["rollout"]["phase"] in ("Golden", "Progressing")
    assert world.weights("coins")[main] >= 95
