"""Changes on a cluster become what is served: the reconcile core over the cluster's adapters and a fake API server."""

from __future__ import annotations

import pytest

from convergence.story import Undisturbed, final_state, story
from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.deaths import SWEEP, deaths
from fakes.kube_faults import Faulty, crash_at
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, MODELS, POOLS, REVISIONS, SERVICES
from segserve_common.kube.names import FORCE_DELETE, reports_name
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS

CONDITIONS = ("Ready", "Degraded", "Progressing")


async def served(**spec: object) -> ClusterWorld:
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins", **spec))
    await world.turns()
    return world


async def test_a_pool_and_a_model_are_ready_and_every_request_goes_to_main() -> None:
    world = await served()

    (main,) = world.groups()
    assert main.startswith("main-")
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.pool_condition("Ready") == ("True", "Serving")
    assert world.weights("coins") == {main: 100}
    assert ("coins", "Promoted") in world.told()


async def test_nothing_is_done_when_nothing_changes() -> None:
    world = await served()
    for name in ("cells", "roads", "tumours", "parts"):
        world.apply(model_manifest(name))
    await world.turns(20)
    before = world.kube.revision

    for _ in range(20):
        assert await world.run_pass() == 0

    assert world.kube.revision == before


async def test_a_model_without_a_pool_says_so_and_is_served_once_there_is_one() -> None:
    world = ClusterWorld()
    world.apply(model_manifest("coins"))
    await world.turns(3)

    assert world.condition("coins", "Degraded") == ("True", "PoolNotFound")

    world.apply_pool()
    await world.turns()

    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_an_edit_is_proved_in_its_own_group_known_at_weight_0_and_settles() -> None:
    world = await served(keepPrevious="60s")
    (main,) = world.groups()
    first = world.held(main)["coins"]
    world.apply(model_manifest("coins", "2", keepPrevious="60s"))
    await world.turns(2)

    assert world.weights("coins") == {main: 100}
    assert {share["weight"] for share in world.routes()["coins"]["shares"]} == {100, 0}

    await world.turns(6)
    (own,) = world.weights("coins")

    assert own.startswith("coins-")
    assert world.held(main)["coins"] == first
    assert world.status("coins")["roles"]["previous"]["revision"] == first

    await world.turns(20, seconds_each=10)

    assert world.groups() == {main}
    assert world.weights("coins") == {main: 100}
    assert world.held(main)["coins"] != first
    assert [r["metadata"]["labels"]["segserve.dev/revision"] for r in world.kube.all(REVISIONS)] == [
        world.held(main)["coins"]
    ]
    assert {reason for _, reason in world.told()} >= {"CandidateStarted", "Promoted", "Settled"}


async def test_an_edited_golden_set_is_proved_in_place_and_the_record_is_replaced_by_another() -> None:
    world = await served(golden={"uri": "file:///golden", "sha256": "1" * 64})
    (main,), routes = world.groups(), world.routes()
    (former,) = world.kube.all(REVISIONS)
    world.verdicts["2" * 64] = "GoldenFailed"
    world.apply(model_manifest("coins", golden={"uri": "file:///golden", "sha256": "2" * 64}))
    await world.turns()

    assert world.condition("coins", "GoldenPassed") == ("False", "GoldenFailed")
    assert world.condition("coins", "Degraded") == ("True", "GoldenFailed")
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.kube.all(REVISIONS) == [former]

    world.apply(model_manifest("coins", golden={"uri": "file:///golden", "sha256": "3" * 64}))
    await world.turns()
    before = world.kube.revision
    await world.turns(3)

    assert world.condition("coins", "GoldenPassed") == ("True", "AnswersMatch")
    (record,) = world.kube.all(REVISIONS)
    assert (record["data"]["golden"]["sha256"], "trial" in record["data"]) == ("3" * 64, False)
    assert record["metadata"]["name"] != former["metadata"]["name"]
    assert (world.groups(), world.routes()) == ({main}, routes)
    assert world.kube.revision == before

    world.apply(model_manifest("coins"))
    await world.turns()

    assert world.condition("coins", "GoldenPassed") == ("True", "BuiltinOnly")
    assert "golden" not in world.kube.all(REVISIONS)[0]["data"]


async def test_a_change_of_the_template_makes_a_new_main_group_to_which_models_move() -> None:
    world = await served()
    (first,) = world.groups()
    world.apply_pool(server={"image": "server:2", "version": "26.05"})
    await world.turns(2)

    assert len(world.groups()) == 2
    assert world.weights("coins") == {first: 100}

    await world.turns(8)

    (second,) = world.groups()
    assert second != first
    assert world.weights("coins") == {second: 100}


async def test_an_image_that_cannot_be_pulled_leaves_what_serves_alone_and_a_corrected_one_heals() -> None:
    world = await served()
    (first,) = world.groups()
    world.unpullable.add("server:bad")
    world.apply_pool(server={"image": "server:bad", "version": "26.05"})
    world.apply(model_manifest("coins", "2"))
    await world.turns(8)

    assert world.pool_condition("Degraded") == ("True", "ImagePullBackOff")
    assert world.condition("coins", "Degraded") == ("True", "ImagePullBackOff")
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.weights("coins") == {first: 100}

    world.apply_pool(server={"image": "server:2", "version": "26.05"})
    await world.turns(20)

    assert world.pool_condition("Degraded") == ("False", "AsWanted")
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.status("coins")["roles"].get("candidate") is None


async def test_requests_move_only_once_all_wanted_servers_have_proved_the_revision() -> None:
    world = await served()
    (main,) = world.groups()
    world.apply_pool(replicas=3)
    await world.turns()

    assert len(world.routes()["coins"]["shares"][0]["endpoints"]) == 3
    assert world.groups() == {main}


async def test_a_model_and_its_pool_leave_nothing() -> None:
    world = await served()
    world.delete(MODELS, "coins")
    await world.turns(8)

    assert world.kube.all(MODELS) == []
    assert world.kube.all(REVISIONS) == []
    assert world.routes() == {}

    world.delete(POOLS, "default")
    await world.turns(3)

    assert world.left() == []


async def test_many_models_at_once_are_proved_a_few_at_a_time_and_all_of_them_in_the_end() -> None:
    world = await served()
    for number in range(20):
        world.apply(model_manifest(f"model-{number}"))
    most = 0
    for _ in range(30):
        await world.turns(1)
        most = max(most, len(world.groups()))

    assert most <= 1 + MAX_CANDIDATE_GROUPS
    assert len(world.groups()) == 1
    assert {world.condition(f"model-{number}", "Ready") for number in range(20)} == {("True", "Serving")}


async def test_with_shared_isolation_candidates_share_one_group() -> None:
    world = ClusterWorld()
    world.apply_pool(isolation="shared")
    world.apply(model_manifest("coins"))
    await world.turns()
    for number in range(12):
        world.apply(model_manifest(f"model-{number}"))
    most = 0
    for _ in range(20):
        await world.turns(1)
        most = max(most, len(world.groups()))

    assert most == 2
    assert {world.condition(f"model-{number}", "Ready") for number in range(12)} == {("True", "Serving")}


async def test_a_pool_that_is_deleted_serves_its_models_and_goes_with_the_last_of_them() -> None:
    world = await served()
    world.apply(model_manifest("roads"))
    await world.turns()
    (main,) = world.groups()

    world.delete(POOLS, "default")
    await world.turns(3)
    assert (world.weights("coins"), world.weights("roads")) == ({main: 100}, {main: 100})
    assert world.pool_condition("Progressing") == ("True", "HasModels")
    assert "coins, roads" in world.pool_message("Progressing")

    former = world.status("coins")["roles"]["stable"]["revision"]
    world.apply(model_manifest("coins", "2"))
    await world.turns()
    assert world.status("coins")["roles"]["stable"]["revision"] != former

    world.delete(MODELS, "coins")
    await world.turns(6)
    assert world.weights("roads") == {main: 100}

    world.delete(MODELS, "roads")
    await world.turns(6)
    assert world.left() == []


async def test_a_kept_pool_writes_nothing_at_rest() -> None:
    world = await served()
    world.delete(POOLS, "default")
    await world.turns(3)
    before = world.kube.revision

    for _ in range(5):
        assert await world.run_pass() == 0

    assert world.kube.revision == before


@pytest.mark.parametrize("before", [True, False], ids=["before it is deleted", "after"])
async def test_a_pool_that_is_told_to_goes_although_it_has_models(before: bool) -> None:
    world = await served()
    told = {"metadata": {"annotations": {FORCE_DELETE: "true"}}}

    if before:
        world.kube.edit(POOLS, NAMESPACE, "default", told)
        world.delete(POOLS, "default")
    else:
        world.delete(POOLS, "default")
        await world.turns(3)
        world.kube.edit(POOLS, NAMESPACE, "default", told)
    await world.turns(3)

    assert world.kube.all(POOLS) == []
    assert world.condition("coins", "Degraded") == ("True", "PoolNotFound")
    world.delete(MODELS, "coins")
    await world.turns(3)
    assert world.left() == []


async def test_a_pool_without_models_goes_at_once() -> None:
    world = ClusterWorld()
    world.apply_pool()
    await world.turns(3)

    world.delete(POOLS, "default")
    await world.turns(2)

    assert world.left() == []


@pytest.mark.parametrize("kind", [CONFIG_MAPS, DEPLOYMENTS, SERVICES, REVISIONS], ids=lambda kind: kind.plural)
async def test_whatever_child_is_deleted_by_hand_comes_back_without_harm(kind) -> None:
    world = await served()
    before = {found["metadata"]["name"] for found in world.kube.all(kind)}
    for name in before:
        world.delete(kind, name)
        await world.turns(6)

    assert {found["metadata"]["name"] for found in world.kube.all(kind)} == before
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_report_that_somebody_deleted_takes_no_server_out() -> None:
    world = await served()
    (main,) = world.groups()
    world.delete(CONFIG_MAPS, reports_name("default", main))
    await world.run_pass()
    await world.run_pass()

    assert world.routes()["coins"]["shares"][0]["endpoints"]
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_child_edited_by_hand_is_put_right() -> None:
    world = await served()
    (deployment,) = (d for d in world.kube.all(DEPLOYMENTS) if "main" in d["metadata"]["name"])
    world.kube.edit(DEPLOYMENTS, NAMESPACE, deployment["metadata"]["name"], {"spec": {"replicas": 0}})
    await world.turns(6)

    repaired = world.kube.peek(DEPLOYMENTS, NAMESPACE, deployment["metadata"]["name"])
    assert repaired["spec"]["replicas"] == 1


@SWEEP
async def test_dying_at_any_write_delays_a_change_but_never_alters_its_outcome(
    every: bool, undisturbed: Undisturbed
) -> None:
    assert len(undisturbed.writes) > 40

    for number, after in deaths(undisturbed.writes, every=every):
        world = ClusterWorld()
        world.api = Faulty(world.kube, crash_at(number, after=after))
        world.restart()
        await story(world)
        assert final_state(world) == undisturbed.state, f"died at write {number}, {after=}"
