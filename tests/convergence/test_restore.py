"""A lost status is built from the revisions' records and the rollouts': what was rolled back is not promoted again."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest

from fakes.cluster_world import NAMESPACE, ClusterWorld, model_manifest
from fakes.kube_faults import Fault, Faulty, refusal
from segserve_common.api_errors import ForbiddenError
from segserve_common.kube.kinds import MODELS, PODS, POOLS, REVISIONS, ROLLOUTS, Kind
from segserve_common.kube.names import FORCE_DELETE, OUTCOME_LABEL, REVISION_LABEL, ROLE_LABEL

Json = dict[str, Any]
BAD, GOOD = "2", "1"
POLICY: Json = {"strategy": "canary", "gates": []}
EXPORTED = (POOLS, MODELS, REVISIONS, ROLLOUTS)


async def rolled_back(**spec: object) -> ClusterWorld:
    """Return a world in which a person went back from the spec's revision to the former one."""
    world = ClusterWorld()
    world.apply_pool()
    world.apply(model_manifest("coins", GOOD, **spec))
    await world.turns()
    world.apply(model_manifest("coins", BAD, **spec))
    await world.turns(12)
    bad = world.status("coins")["roles"]["stable"]["revision"]
    annotate(world, {"segserve.dev/rollback": bad})
    await world.turns(4)
    assert world.status("coins")["roles"]["candidate"] == {
        **world.status("coins")["roles"]["candidate"],
        "revision": bad,
        "state": "Failed",
        "reason": "RolledBack",
    }
    return world


def annotate(world: ClusterWorld, annotations: dict[str, str]) -> None:
    world.kube.edit(MODELS, NAMESPACE, "coins", {"metadata": {"annotations": annotations}})


def revisions(world: ClusterWorld) -> dict[str, str]:
    """Return the role of each revision, as its record says."""
    labels = [record["metadata"]["labels"] for record in world.kube.all(REVISIONS, NAMESPACE)]
    return {each[REVISION_LABEL]: each[ROLE_LABEL] for each in labels}


def exported(world: ClusterWorld, kinds: Iterable[Kind] = EXPORTED) -> list[tuple[Kind, Json]]:
    """Return objects as a backup has them: without statuses, uids and owners."""
    found = []
    for kind in kinds:
        for item in copy.deepcopy(world.kube.all(kind, NAMESPACE)):
            metadata = {
                key: item["metadata"][key]
                for key in ("name", "namespace", "labels", "annotations")
                if key in item["metadata"]
            }
            plain = {key: value for key, value in item.items() if key != "status"}
            found.append((kind, {**plain, "metadata": metadata}))
    return found


async def restored(objects: Iterable[tuple[Kind, Json]], turns: int = 12) -> ClusterWorld:
    """Return another cluster after a restore of objects."""
    world = ClusterWorld(now_s=1_800_100_000.0)
    for kind, item in objects:
        world.kube.put(kind, item)
    await world.turns(turns)
    return world


def stable(world: ClusterWorld) -> str:
    return str(world.status("coins")["roles"]["stable"]["revision"])


async def test_what_a_person_rolled_back_stays_so_after_a_restore_without_statuses() -> None:
    before = await rolled_back()
    good, bad = stable(before), before.status("coins")["roles"]["candidate"]["revision"]

    after = await restored(exported(before))

    (main,) = after.groups()
    assert (stable(after), after.held(main)["coins"]) == (good, good)
    assert after.weights("coins") == {main: 100}
    assert after.status("coins")["roles"]["candidate"]["revision"] == bad
    assert after.condition("coins", "Degraded") == ("True", "RolledBack")
    assert after.status("coins")["handledAnnotations"] == before.status("coins")["handledAnnotations"]


@pytest.mark.parametrize(
    "order",
    [(REVISIONS, ROLLOUTS, MODELS, POOLS), (MODELS, REVISIONS, ROLLOUTS, POOLS), (POOLS, REVISIONS, MODELS, ROLLOUTS)],
    ids=["records first", "pool last", "pool first"],
)
async def test_objects_may_come_back_one_kind_after_the_other_if_records_come_before_pool_and_model_are_both_there(
    order: tuple[Kind, ...],
) -> None:
    before = await rolled_back()
    objects = exported(before)
    world = ClusterWorld(now_s=1_800_100_000.0)
    for kind in order:
        for each, item in objects:
            if each == kind:
                world.kube.put(kind, item)
        await world.turns(3)
    await world.turns(12)

    assert stable(world) == stable(before)
    assert world.condition("coins", "Degraded") == ("True", "RolledBack")


async def test_a_status_that_is_wiped_in_place_is_as_it_was() -> None:
    world = await rolled_back()
    before, routes = world.status("coins"), world.routes()
    world.kube.edit_status(MODELS, NAMESPACE, "coins", {"status": dict.fromkeys(before)})
    world.restart()
    await world.turns(6)

    after = world.status("coins")
    assert {role: after["roles"][role]["revision"] for role in after["roles"]} == {
        role: before["roles"][role]["revision"] for role in before["roles"]
    }
    assert world.routes() == routes
    assert after["handledAnnotations"] == before["handledAnnotations"]


async def test_a_rollback_that_nobody_had_handled_is_handled_after_the_restore() -> None:
    before = ClusterWorld()
    before.apply_pool()
    before.apply(model_manifest("coins", GOOD))
    await before.turns()
    before.apply(model_manifest("coins", BAD))
    await before.turns(12)
    good, bad = before.status("coins")["roles"]["previous"]["revision"], stable(before)
    annotate(before, {"segserve.dev/rollback": bad})

    after = await restored(exported(before), turns=30)

    assert stable(after) == good
    assert after.status("coins")["handledAnnotations"] == [f"rollback={bad}"]


async def test_without_records_an_annotation_that_asks_to_leave_the_revision_keeps_it_from_being_promoted() -> None:
    before = await rolled_back()

    after = await restored(exported(before, (POOLS, MODELS)))

    assert "stable" not in after.status("coins")["roles"]
    assert after.routes() == {}
    assert after.condition("coins", "Degraded") == ("True", "RolledBack")

    bad = after.status("coins")["roles"]["candidate"]["revision"]
    annotate(after, {"segserve.dev/retry": bad})
    await after.turns(12)

    assert stable(after) == bad


async def test_the_record_of_a_rollout_that_was_rolled_back_is_enough_to_refuse_its_revision() -> None:
    before = ClusterWorld()
    before.apply_pool()
    before.apply(model_manifest("coins", GOOD))
    await before.turns()
    before.apply(model_manifest("coins", BAD, rollout=POLICY))
    await before.turns(3)
    candidate = before.status("coins")["roles"]["candidate"]["revision"]
    annotate(before, {"segserve.dev/abort": candidate})
    await before.turns(6)
    (record,) = before.kube.all(ROLLOUTS, NAMESPACE)
    assert record["metadata"]["labels"][OUTCOME_LABEL] == "RolledBack"

    objects = exported(before, (POOLS, MODELS, ROLLOUTS))
    for kind, item in objects:
        if kind == MODELS:
            del item["metadata"]["annotations"]
    after = await restored(objects)

    assert "stable" not in after.status("coins")["roles"]
    assert after.status("coins")["roles"]["candidate"]["revision"] == candidate
    assert after.condition("coins", "Degraded")[0] == "True"


async def test_restored_records_belong_to_the_new_model_and_end_with_it() -> None:
    before = ClusterWorld()
    before.apply_pool()
    before.apply(model_manifest("coins", GOOD))
    await before.turns()
    before.apply(model_manifest("coins", BAD, rollout=POLICY))
    await before.turns(12)
    after = await restored(exported(before))
    after.delete(MODELS, "coins")
    await after.turns(12)

    assert after.kube.all(REVISIONS, NAMESPACE) == []
    assert after.kube.all(ROLLOUTS, NAMESPACE) == []


async def test_a_pool_that_is_deleted_and_made_again_serves_what_it_served() -> None:
    world = await rolled_back()
    good = stable(world)
    world.kube.edit(POOLS, NAMESPACE, "default", {"metadata": {"annotations": {FORCE_DELETE: "true"}}})
    world.delete(POOLS, "default")
    await world.turns(4)

    assert good in revisions(world)

    for pod in world.kube.all(PODS, NAMESPACE):
        world.kube.vanish(PODS, NAMESPACE, pod["metadata"]["name"])
    world.apply_pool()
    await world.turns(12)

    assert stable(world) == good


async def test_the_records_tell_the_role_of_each_revision_and_nothing_is_written_at_rest() -> None:
    world = await rolled_back()
    roles = world.status("coins")["roles"]
    before = world.kube.revision
    await world.turns(3)

    assert revisions(world) == {roles["stable"]["revision"]: "stable", roles["candidate"]["revision"]: "refused"}
    assert world.kube.revision == before


async def test_while_former_rollouts_cannot_be_read_nothing_is_promoted() -> None:
    objects = exported(await rolled_back(), (POOLS, MODELS))
    world = ClusterWorld()
    faulty = Faulty(world.kube)
    world.api = faulty
    world.restart()
    for kind, item in objects:
        item["metadata"].pop("annotations", None)
        world.kube.put(kind, item)
    faulty.add(Fault(refusal(ForbiddenError), verb="versions", kind=ROLLOUTS, times=None))
    await world.turns(6)

    assert world.condition("coins", "Degraded") == ("True", "RecordsUnread")
    assert world.routes() == {}
