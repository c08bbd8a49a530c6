"""What the operator and its servers store stays below the limits of Kubernetes, with many models and servers."""

from __future__ import annotations

import base64
import json

from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Faulty
from fakes.pools import MINIMAL, pool_context
from segserve_builder.agent.protocol import ModelReport, ModelState, ProofReport, TrialReport
from segserve_builder.cluster.report_sender import MAX_LENGTH
from segserve_builder.spec.model_spec import Golden
from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import DEPLOYMENTS, PODS, POOLS, REVISIONS, ROLLOUTS
from segserve_common.kube.names import AGENT_CONTAINER, reports_name
from segserve_common.kube.shards import pack
from segserve_operator.adapters.kube.objects import own_report_objects
from segserve_operator.adapters.kube.reports import MAX_SHARED_LENGTH, MAX_SHARED_REPORTS

CONFIG_MAP_BYTES = 1024 * 1024
OBJECT_BYTES = 1536 * 1024
"""What etcd takes by default."""


def report(models: int) -> str:
    """Return the packed report of a server with so many models, as long as one in service gets."""
    said = [
        ModelReport(
            model=f"segmentation-model-{number}",
            revision=f"segmentation-model-{number}-{json_digest(number, 10)}",
            state=ModelState.READY,
            artifact_verified=True,
            loaded=True,
            proof="golden",
            steps=("pre", "network", "post"),
            load_s=1.234 + number,
            proved=ProofReport(golden_sha256=json_digest(["golden", number], 64)),
            trial=TrialReport(
                golden=Golden(uri=f"s3://bucket/golden-{number}", sha256=json_digest(["trial", number], 64)), images=20
            ),
        )
        for number in range(models)
    ]
    return pack(
        {"uid": "a" * 36, "serverReady": True, "models": [m.model_dump(mode="json", by_alias=True) for m in said]}
    )


def stored_bytes(packed: str) -> int:
    return len(base64.b64decode(packed))


def test_a_shared_map_of_reports_has_room_for_all_pods_and_as_many_successors() -> None:
    for models in (1, 50, 200, 1000):
        servers = max(MAX_SHARED_REPORTS // models, 1)
        # Servers of few models have reports with more overhead, but not so many: their length alone ends the sharing.
        total = min(servers * len(report(models)), MAX_SHARED_LENGTH)
        assert 2 * total * 3 / 4 < CONFIG_MAP_BYTES, models


def test_a_report_on_a_thousand_models_is_far_below_a_maps_limit_however_many_servers_there_are() -> None:
    assert stored_bytes(report(1000)) < CONFIG_MAP_BYTES / 4
    assert MAX_LENGTH * 3 / 4 < CONFIG_MAP_BYTES / 2


def test_the_right_of_a_thousand_agents_to_their_maps_is_one_object_below_the_limit() -> None:
    context = pool_context(MINIMAL)
    pods = [
        {"metadata": {"name": f"segserve-default--main-0000000a-{n:010d}-abcde", "uid": f"{n:036d}"}}
        for n in range(1000)
    ]
    role, binding, *maps = own_report_objects(context, "main-0000000a", pods)

    assert role["metadata"]["name"] == binding["roleRef"]["name"] == reports_name("default", "main-0000000a")
    assert len(json.dumps(role)) < OBJECT_BYTES / 10
    assert len(maps) == 1000
    assert {each["metadata"]["ownerReferences"][0]["kind"] for each in maps} == {"Pod"}


async def test_statuses_stay_small_and_are_not_rewritten_however_much_a_cluster_has_to_say() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns()
    world.unpullable.add("server:1")
    world.apply(model_manifest("coins", "2"))
    await world.turns(3)
    words = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": "no, and so on " * 10_000}
    for found in world.kube.all(DEPLOYMENTS, NAMESPACE):
        name = found["metadata"]["name"]
        world.kube.edit_status(DEPLOYMENTS, NAMESPACE, name, {"status": {"conditions": [words]}})
    await world.turns()
    before = world.kube.revision
    await world.turns(3)
    pool = world.kube.peek(POOLS, NAMESPACE, KEY.pool)

    assert world.pool_condition("Degraded") == ("True", "FailedCreate")
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert len(json.dumps([world.status("coins"), pool["status"]])) < 64 * 1024
    assert world.kube.revision == before


async def test_the_records_of_a_models_revisions_are_as_few_as_its_roles_however_often_it_changes() -> None:
    world = ClusterWorld()
    world.apply_pool()
    for number in range(10):
        world.apply(model_manifest("coins", str(number), keepPrevious="5s"))
        await world.turns(8)
        assert len(world.kube.all(REVISIONS)) <= 4
    handled = world.status("coins").get("handledAnnotations", [])
    assert len(handled) <= 32


async def test_a_first_start_lists_former_rollouts_once_however_many_models_there_are() -> None:
    world = ClusterWorld()
    calls = Faulty(world.kube)
    world.api = calls
    world.restart()
    world.apply_pool()
    for number in range(12):
        world.apply(model_manifest(f"coins-{number}"))
    await world.turns()

    assert world.condition("coins-11", "Ready") == ("True", "Serving")
    assert len([call for call in calls.calls if call.kind == ROLLOUTS and call.verb in ("list", "versions")]) == 1


async def test_a_pool_at_rest_stays_as_it_is_however_much_time_passes() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    world.apply(model_manifest("cells", rollout={"strategy": "canary", "gates": []}))
    await world.turns()
    assert (await world.passes.reconcile(KEY)).at_rest

    before = world.kube.revision
    for seconds in (60, 3600, 86_400, 30 * 86_400):
        world.now_s += seconds
        assert await world.run_pass() == 0
    assert world.kube.revision == before


async def test_a_pool_with_something_in_progress_is_not_at_rest() -> None:
    world = ClusterWorld(verdicts={"3": "LoadFailed"})
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns()

    world.apply(model_manifest("coins", "2"))
    await world.turns()
    assert world.status("coins")["roles"]["previous"]
    assert not (await world.passes.reconcile(KEY)).at_rest, "the former revision is kept for an hour"

    await world.turns(2, seconds_each=4000)
    await world.turns()
    assert (await world.passes.reconcile(KEY)).at_rest

    world.bad_pods = {pod["metadata"]["name"]: "LoadFailed" for pod in world.kube.all(PODS, NAMESPACE)}
    world.apply(model_manifest("coins", "3"))
    await world.turns(3)
    assert not (await world.passes.reconcile(KEY)).at_rest, "a revision that failed may be tried again"


async def test_a_pool_whose_agent_is_silent_is_not_at_rest_and_its_server_is_given_up_in_time() -> None:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins"))
    await world.turns()
    assert (await world.passes.reconcile(KEY)).at_rest

    server = next(pod for pod in world.kube.all(PODS, NAMESPACE) if "main" in pod["metadata"]["name"])
    containers = [{**each, "ready": each["name"] != AGENT_CONTAINER} for each in server["status"]["containerStatuses"]]
    world.kube.edit_status(PODS, NAMESPACE, server["metadata"]["name"], {"status": {"containerStatuses": containers}})
    world.kube.deliver()

    assert not (await world.passes.reconcile(KEY)).at_rest
