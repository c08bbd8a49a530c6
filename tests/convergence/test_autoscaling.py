"""Servers of a pool follow its requests (`spec.scaling`), and no request fails for that."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Faulty, crash_at
from fakes.loaded_gateways import LoadedGateways
from segserve_common.kube.kinds import DEPLOYMENTS, EVENTS, PODS, POOLS
from segserve_common.kube.names import GROUP_LABEL, object_name
from segserve_operator import service
from segserve_operator.core.models.planning import DesiredState, desired_state
from segserve_operator.core.world.observed import Observed
from segserve_operator.worker import RESYNC_S

SCALING = {"minimum": 1, "maximum": 4, "target": {"concurrency": 4}, "scaleDownDelay": "1m"}
CALM, BURST = 10.0, 140.0
"""Requests a second that one server answers easily, and that four do."""
MODEL = "coins"


async def served(monkeypatch: pytest.MonkeyPatch, *, per_s: float = CALM, **spec: Any) -> LoadedGateways:
    world = ClusterWorld()
    gateways = LoadedGateways(world, MODEL)
    gateways.attach(monkeypatch)
    world.apply_pool(**{"scaling": SCALING, **spec})
    world.apply(model_manifest(MODEL, keepPrevious="0s"))
    await world.turns(10)
    gateways.per_s = per_s
    return gateways


def wanted(world: ClusterWorld) -> int:
    """Return the number of servers that the main group was told to have."""
    main = pool_status(world)["mainGroup"]
    found = world.kube.all(DEPLOYMENTS, NAMESPACE)
    return next(int(d["spec"]["replicas"]) for d in found if d["metadata"]["labels"].get(GROUP_LABEL) == main)


def pool_status(world: ClusterWorld) -> dict[str, Any]:
    pool = world.kube.peek(POOLS, NAMESPACE, KEY.pool)
    status: dict[str, Any] = pool["status"]
    return status


def failed_pod(world: ClusterWorld) -> dict[str, Any]:
    """Return a pod of the main group as an eviction leaves it."""
    main = pool_status(world)["mainGroup"]
    pods = world.kube.all(PODS, NAMESPACE)
    pod = copy.deepcopy(next(pod for pod in pods if pod["metadata"]["labels"].get(GROUP_LABEL) == main))
    del pod["metadata"]["uid"], pod["metadata"]["resourceVersion"], pod["status"]
    pod["metadata"]["name"] = "evicted"
    return pod


async def test_a_burst_has_four_servers_and_then_one_again_and_no_request_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch)
    world = gateways.world
    assert set((await gateways.play(40))[10:]) == {1}

    gateways.per_s = BURST
    burst = await gateways.play(60)
    assert burst[-1] == 4
    assert burst == sorted(burst)
    assert gateways.waiting == 0
    scaling = pool_status(world)["scaling"]
    assert (scaling["desired"], scaling["reason"]) == (4, "MoreRequests")
    assert world.pool_condition("ScalingActive") == ("True", "Maximum")

    gateways.per_s = CALM
    calm = await gateways.play(160)
    assert calm[40] == 4, "none is given up before the delay has passed"
    assert calm[-1] == 1
    assert gateways.failed == 0
    assert world.pool_condition("ScalingActive") == ("True", "FollowsRequests")
    messages = [event["message"] for event in world.kube.all(EVENTS, NAMESPACE) if event["reason"] == "Scaled"]
    assert any(message.startswith("1 to ") for message in messages)
    assert any(" to 1 servers: FewerRequests" in message for message in messages)


async def test_a_pool_is_ready_and_takes_a_new_revision_while_more_of_its_servers_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch)
    world = gateways.world
    await gateways.play(40)
    world.homeless.add("-1")
    world.homeless.add("-2")
    world.homeless.add("-3")
    gateways.per_s = BURST
    await gateways.play(30)

    assert wanted(world) > 1
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert world.pool_condition("Progressing") == ("True", "WaitingForServers")
    assert gateways.failed == 0


async def test_no_server_is_given_up_while_a_rollout_is_in_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch, per_s=BURST)
    world = gateways.world
    await gateways.play(60)
    assert wanted(world) == 4
    rollout = {"steps": [{"weight": 50, "pause": True}], "gates": []}
    world.apply(model_manifest(MODEL, "2", keepPrevious="0s", rollout=rollout))
    gateways.per_s = CALM
    await gateways.play(200, step_s=5)

    assert wanted(world) == 4
    assert world.pool_condition("ScalingActive") == ("True", "RolloutInProgress")
    assert gateways.failed == 0


async def test_a_restarted_operator_gives_up_no_server_before_the_delay_has_passed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch, per_s=BURST)
    world = gateways.world
    await gateways.play(60)
    gateways.per_s = CALM
    for _ in range(3):
        await gateways.play(15)
        world.restart()
        assert set(await gateways.play(30)) == {4}
    await gateways.play(160, step_s=5)

    assert wanted(world) == 1
    assert gateways.failed == 0


@pytest.mark.parametrize("after", [False, True], ids=["before it", "after it"])
async def test_an_operator_that_dies_at_any_write_of_a_burst_goes_on_with_it_and_ends_no_server(
    after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for write in range(1, 6):
        gateways = await served(monkeypatch)
        world = gateways.world
        await gateways.play(20)
        world.api = faulty = Faulty(world.kube, crash_at(write, after=after))
        world.restart()
        gateways.per_s = BURST
        burst = await gateways.play(30)

        assert faulty.writes >= write, "nothing died"
        assert burst == sorted(burst), f"died at write {write}"
        assert burst[-1] == 4
        assert gateways.failed == 0


async def test_the_measured_time_of_a_start_outlives_a_restart(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch)
    world = gateways.world
    await gateways.play(40)
    gateways.per_s = BURST
    await gateways.play(30)
    measured = pool_status(world)["scaling"]["startupSeconds"]
    assert measured < 60
    world.restart()
    await gateways.play(3)

    assert pool_status(world)["scaling"]["startupSeconds"] == measured


async def test_without_one_gateways_counts_no_server_is_given_up_and_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch)
    world = gateways.world
    await gateways.play(40)
    gateways.silent.add("gateway-1")
    gateways.per_s = BURST
    await gateways.play(60)
    assert wanted(world) == 4

    gateways.per_s = CALM
    await gateways.play(160, step_s=5)
    assert wanted(world) == 4
    assert world.pool_condition("ScalingActive") == ("True", "CountsMissing")

    gateways.silent.clear()
    await gateways.play(160, step_s=5)
    assert wanted(world) == 1
    assert gateways.failed == 0


async def test_without_any_counts_the_number_of_servers_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch, per_s=BURST)
    world = gateways.world
    await gateways.play(60)
    gateways.silent.update(gateways.names)
    gateways.per_s = CALM
    await gateways.play(200, step_s=5)

    assert wanted(world) == 4
    assert world.pool_condition("ScalingActive") == ("False", "NoCounts")

    reads = gateways.reads
    await gateways.play(60)
    assert gateways.reads - reads <= 6, "silent gateways are asked now and then"
    gateways.silent.clear()
    gateways.per_s = BURST
    await gateways.play(60)
    assert world.pool_condition("ScalingActive") == ("True", "Maximum")
    assert wanted(world) == 4


async def test_no_more_servers_are_asked_for_than_there_is_room_for_and_those_that_never_came_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scaling = {**SCALING, "maximum": 30}
    gateways = await served(monkeypatch, scaling=scaling)
    world = gateways.world
    await gateways.play(40)
    world.room = 2
    gateways.per_s = BURST / 2
    await gateways.play(30)
    first = wanted(world)
    gateways.per_s = BURST
    await gateways.play(30)
    assert wanted(world) == first
    assert first < 30
    assert world.pool_condition("ScalingActive") == ("False", "Unschedulable")

    await gateways.play(630, step_s=10)
    assert wanted(world) == 2
    assert pool_status(world)["scaling"]["reason"] == "ServersFail"
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert gateways.failed == 0


async def test_a_server_that_fails_after_hours_is_awaited_and_a_failed_pod_beside_whole_servers_hinders_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch, per_s=BURST, scaling={**SCALING, "minimum": 2})
    world = gateways.world
    await gateways.play(60)
    await gateways.play(1000, step_s=20)
    (main,) = world.groups()
    world.homeless.add("-3")
    world.evict(object_name(KEY.pool, main), 3)
    await gateways.play(300, step_s=10)
    assert wanted(world) == 4

    world.homeless.clear()
    gateways.per_s = CALM
    await gateways.play(200, step_s=5)
    assert wanted(world) == 2
    world.kube.put(PODS, failed_pod(world), manager="kubelet")
    world.kube.edit_status(PODS, NAMESPACE, "evicted", {"status": {"phase": "Failed", "reason": "Evicted"}})
    gateways.per_s = BURST
    await gateways.play(60)
    assert wanted(world) == 4


async def test_replicas_and_open_hours_of_the_schedule_are_lower_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch)
    world = gateways.world
    await gateways.play(40)
    world.kube.edit(POOLS, NAMESPACE, KEY.pool, {"spec": {"replicas": 2}})
    await gateways.play(5)
    assert wanted(world) == 2

    always = {"start": "00:00", "duration": "24h", "minimum": 3}
    world.apply_pool(scaling={**SCALING, "schedule": [always]}, replicas=2)
    await gateways.play(5)
    assert wanted(world) == 3
    assert pool_status(world)["scaling"]["reason"] == "Minimum"

    world.apply_pool(scaling=SCALING)
    await gateways.play(200, step_s=5)
    assert wanted(world) == 1
    assert gateways.failed == 0


async def test_the_operator_looks_again_within_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch)
    await gateways.play(20)
    result = await gateways.world.passes.reconcile(KEY)
    gateways.world.apply_pool(replicas=1)
    await gateways.play(5)
    without = await gateways.world.passes.reconcile(KEY)

    assert (result.writes, result.at_rest) == (0, False)
    assert result.due_s <= 1.0
    assert without.at_rest


async def test_requests_that_change_no_number_need_no_decision_about_the_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateways = await served(monkeypatch)
    await gateways.play(40)
    decided: list[Observed] = []

    def noted(world: Observed, *rest: Any, **others: Any) -> DesiredState:
        decided.append(world)
        return desired_state(world, *rest, **others)

    monkeypatch.setattr(service, "desired_state", noted)
    await gateways.play(int(RESYNC_S))
    assert len(decided) <= 1

    gateways.per_s = BURST
    await gateways.play(10)
    assert wanted(gateways.world) == 4


async def test_without_the_field_nothing_is_read_and_replicas_is_the_number(monkeypatch: pytest.MonkeyPatch) -> None:
    gateways = await served(monkeypatch, per_s=BURST)
    world = gateways.world
    await gateways.play(60)
    world.apply_pool(replicas=2)
    await gateways.play(5)
    reads = gateways.reads
    await gateways.play(5)

    assert wanted(world) == 2
    assert gateways.reads == reads
    assert "scaling" not in pool_status(world)
    assert world.pool_condition("ScalingActive") == ("", "")
    assert await world.run_pass() == 0
