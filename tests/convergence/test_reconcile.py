"""A change of a resource becomes what is served: in the right order, also when the operator dies on the way."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.deaths import deaths
from fakes.platform import CountedWrites, Crash, Verdict, World, assigned
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.spec.model_spec import Golden
from segserve_operator.core.models.actions import EmitEvent, SaveStatus, SetTraffic

FIRST, SECOND, THIRD = (assigned("coins", network) for network in "123")


async def served(told=FIRST, **options) -> World:
    world = World()
    world.store.apply(told, **options)
    await world.passes()
    return world


async def test_the_first_revision_is_proved_in_main_and_gets_all_requests() -> None:
    world = await served()

    assert world.role("coins", "stable") == (FIRST.revision, "main")
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert set(world.fleet.members) == {"main"}


async def test_nothing_is_written_when_nothing_changes() -> None:
    world = await served()

    assert [await world.service.run_once() for _ in range(3)] == [(), (), ()]


async def test_a_newcomer_does_not_share_a_server_with_somebodys_stable_until_it_is_proved() -> None:
    world = await served()
    world.store.apply(assigned("cells"))
    await world.passes(1)

    assert world.role("cells", "candidate") == (assigned("cells").revision,) * 2
    assert [told.model for told in world.fleet.members["main"].assignment.models] == ["coins"]

    await world.passes()

    assert world.role("cells", "stable") == (assigned("cells").revision, "main")
    assert set(world.fleet.members) == {"main"}


async def test_an_edit_moves_traffic_only_after_its_proof_and_keeps_the_old_revision() -> None:
    world = await served()
    world.store.apply(SECOND)
    await world.passes(1)

    assert world.traffic.groups_of("coins") == {"main": 100}

    await world.passes(4)

    assert world.traffic.groups_of("coins") == {SECOND.revision: 100}
    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert world.role("coins", "previous") == (FIRST.revision, "main")
    assert world.fleet.members["main"].complete(FIRST.revision)


async def test_the_new_revision_settles_into_main_after_keep_previous_and_its_group_ends() -> None:
    world = await served(keep_previous_s=60)
    world.store.apply(SECOND, keep_previous_s=60)
    await world.passes(6)
    await world.passes(10, seconds_each=10)

    assert world.role("coins", "stable") == (SECOND.revision, "main")
    assert world.role("coins", "previous") is None
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert set(world.fleet.members) == {"main"}
    assert set(world.store.records) == {SECOND.revision}


async def test_going_back_while_the_previous_revision_is_kept_is_one_weight_write() -> None:
    world = await served()
    world.store.apply(SECOND)
    await world.passes()
    world.store.apply(FIRST)

    actions = await world.service.run_once()

    assert [type(action) for action in actions] == [EmitEvent, SaveStatus, SetTraffic]
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.role("coins", "previous") == (SECOND.revision, SECOND.revision)


async def test_a_third_revision_replaces_the_second_before_the_first_was_let_go() -> None:
    world = await served()
    world.store.apply(SECOND)
    await world.passes()
    world.store.apply(THIRD)
    await world.passes(12)

    assert world.role("coins", "stable") == (THIRD.revision, "main")
    assert world.role("coins", "previous") == (SECOND.revision, SECOND.revision)
    assert set(world.fleet.members) == {"main", SECOND.revision}


@pytest.mark.parametrize("reason", ["GoldenFailed", "SignatureMismatch", "LoadFailed"])
async def test_a_candidate_that_fails_for_good_gives_its_group_back_and_is_not_retried(reason: str) -> None:
    world = await served()
    world.fleet.verdicts[SECOND.revision] = Verdict(reason)
    world.store.apply(SECOND)
    await world.passes()

    assert world.role("coins", "stable") == (FIRST.revision, "main")
    assert world.role("coins", "candidate") == (SECOND.revision, None)
    assert set(world.fleet.members) == {"main"}
    assert world.fleet.starts.count(SECOND.revision) == 1
    assert world.condition("coins", "Degraded") == ("True", reason)
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_a_failed_candidate_is_tried_again_when_its_golden_set_or_address_was_corrected() -> None:
    world = await served()
    world.fleet.verdicts[SECOND.revision] = Verdict("GoldenFailed")
    world.store.apply(SECOND)
    await world.passes()
    world.fleet.verdicts.clear()
    artifact = SECOND.artifact.model_copy(update={"uri": "file:///elsewhere.onnx"})
    world.store.apply(SECOND.model_copy(update={"artifact": artifact}))
    await world.passes()

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)


def with_golden(told: AssignedModel, digit: str) -> AssignedModel:
    """Return the same revision with a golden set that is told by one digit."""
    return told.model_copy(update={"golden": Golden(uri="file:///golden", sha256=digit * 64)})


@pytest.mark.parametrize(
    ("former", "edited", "passed"),
    [
        pytest.param(with_golden(FIRST, "1"), with_golden(FIRST, "2"), "AnswersMatch", id="another set"),
        pytest.param(FIRST, with_golden(FIRST, "2"), "AnswersMatch", id="a first set"),
        pytest.param(with_golden(FIRST, "1"), FIRST, "BuiltinOnly", id="no set any more"),
    ],
)
async def test_an_edited_golden_set_is_proved_in_place_and_kept(
    former: AssignedModel, edited: AssignedModel, passed: str
) -> None:
    world = await served(former)
    traffic = world.traffic.plan
    world.store.apply(edited)
    await world.service.run_once()

    assert world.condition("coins", "GoldenPassed") == ("Unknown", "GoldenPending")
    assert world.condition("coins", "Progressing") == ("True", "GoldenPending")
    assert world.store.objects["coins"].status.observed_generation == 2

    await world.passes()

    assert world.condition("coins", "GoldenPassed") == ("True", passed)
    assert world.condition("coins", "Progressing") == ("False", "Idle")
    assert world.store.records == {FIRST.revision: edited}
    assert world.fleet.members["main"].assignment.models == (edited,)
    assert world.traffic.plan == traffic
    assert set(world.fleet.members) == {"main"}
    assert [await world.service.run_once() for _ in range(3)] == [(), (), ()]


@pytest.mark.parametrize("reason", ["DigestMismatch", "ArtifactMissing", "GoldenFailed"])
async def test_a_golden_set_that_fails_its_trial_takes_nothing_and_the_former_one_restores_all(reason: str) -> None:
    former, wrong = with_golden(FIRST, "1"), with_golden(FIRST, "2")
    world = await served(former)
    world.fleet.verdicts["2" * 64] = Verdict(reason)
    world.store.apply(wrong)
    await world.passes()

    assert world.condition("coins", "GoldenPassed") == ("False", reason)
    assert world.condition("coins", "Degraded") == ("True", reason)
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "Progressing") == ("False", "Idle")
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.store.records == {FIRST.revision: former}
    assert [await world.service.run_once() for _ in range(3)] == [(), (), ()]

    # All servers are new: they are proved with what the record says, and tried again with what the spec says.
    world.fleet.kill("main")
    await world.passes()

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "GoldenPassed") == ("False", reason)

    world.store.apply(former)
    await world.passes()

    assert world.condition("coins", "GoldenPassed") == ("True", "AnswersMatch")
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.fleet.members["main"].assignment.models == (former,)


async def test_a_golden_set_and_a_network_that_are_edited_together_are_proved_together() -> None:
    world = await served(with_golden(FIRST, "1"))
    world.store.apply(with_golden(SECOND, "2"))
    await world.passes()

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)
    assert world.store.records == {
        FIRST.revision: with_golden(FIRST, "1"),
        SECOND.revision: with_golden(SECOND, "2"),
    }
    assert all(told.trial is None for group in world.fleet.members.values() for told in group.assignment.models)


async def test_a_candidate_whose_artifact_is_missing_waits_and_heals() -> None:
    world = await served()
    world.fleet.verdicts[SECOND.revision] = Verdict("ArtifactMissing", retryable=True)
    world.store.apply(SECOND)
    await world.passes()

    assert world.condition("coins", "ArtifactVerified") == ("False", "ArtifactMissing")
    assert world.condition("coins", "Degraded") == ("True", "ArtifactMissing")

    world.fleet.verdicts.clear()
    await world.passes()

    assert world.role("coins", "stable") == (SECOND.revision, SECOND.revision)


async def test_a_deleted_model_leaves_nothing_and_the_others_alone() -> None:
    world = await served()
    world.store.apply(assigned("cells"))
    await world.passes()
    world.store.delete("coins")
    await world.passes()

    assert set(world.store.objects) == {"cells"}
    assert [told.model for told in world.fleet.members["main"].assignment.models] == ["cells"]
    assert world.traffic.groups_of("cells") == {"main": 100}
    assert set(world.store.records) == {assigned("cells").revision}


async def test_a_deleted_model_is_unloaded_only_after_its_last_request() -> None:
    world = await served()
    world.traffic.active["coins", "main"] = 2
    world.store.delete("coins")
    await world.passes()

    assert world.traffic.groups_of("coins") == {}
    assert [told.model for told in world.fleet.members["main"].assignment.models] == ["coins"]

    world.traffic.active.clear()
    await world.passes()

    assert world.fleet.members["main"].assignment.models == ()
    assert world.store.objects == {}


async def test_a_dead_server_is_started_again_and_gets_requests_once_it_is_proved() -> None:
    world = await served()
    world.fleet.kill("main")
    await world.service.run_once()

    (route,) = world.traffic.plan.routes
    assert route.shares[0].endpoints == ()

    world.fleet.work()
    await world.passes()

    (route,) = world.traffic.plan.routes
    assert route.shares[0].endpoints
    assert world.condition("coins", "Ready") == ("True", "Serving")


async def test_going_back_while_the_new_revision_settles_into_main_is_a_change_like_any_other() -> None:
    world = await served(keep_previous_s=0)
    world.store.apply(SECOND, keep_previous_s=0)
    await world.passes(4)
    assert world.role("coins", "previous") is None
    world.store.apply(FIRST, keep_previous_s=0)
    await world.passes(12)

    assert world.role("coins", "stable") == (FIRST.revision, "main")
    assert set(world.fleet.members) == {"main"}


def final_state(world: World) -> tuple[object, ...]:
    roles = {name: (world.role(name, "stable"), world.role(name, "candidate")) for name in world.store.objects}
    held = {name: group.assignment for name, group in world.fleet.members.items()}
    routes = {name: world.traffic.groups_of(name) for name in world.store.objects}
    return roles, held, routes, world.store.records


async def story(world: World, die_at: int = -1, *, after: bool = False) -> list[str]:
    """An apply, an edit that settles, a delete, and another golden set, with the operator dying once at a given write.

    Returns the names of the writes.
    """
    writes = CountedWrites(die_at, after)
    ports = [writes.around(port) for port in (world.store, world.fleet, world.traffic)]
    service = world.service_over(*ports)

    async def passes(count: int) -> None:
        for _ in range(count):
            with suppress(Crash):
                await service.run_once()
            world.check()
            world.fleet.work()
            world.now_s += 5

    world.store.apply(FIRST, keep_previous_s=20)
    world.store.apply(assigned("cells"), keep_previous_s=20)
    await passes(7)
    world.store.apply(SECOND, keep_previous_s=20)
    world.store.delete("cells")
    await passes(20)
    world.store.apply(with_golden(SECOND, "2"), keep_previous_s=20)
    await passes(7)
    return writes.names


async def test_dying_at_any_write_delays_a_change_but_never_alters_its_outcome() -> None:
    undisturbed = World()
    writes = await story(undisturbed)

    assert undisturbed.store.records == {SECOND.revision: with_golden(SECOND, "2")}
    for die_at, after in deaths(writes, every=True):
        world = World()
        await story(world, die_at, after=after)
        assert final_state(world) == final_state(undisturbed), f"died at write {die_at}, {after=}"


@settings(max_examples=60, deadline=None)
@given(st.data())
async def test_any_sequence_of_edits_failures_and_deletes_converges_on_the_last_one(data: st.DataObject) -> None:
    world = World()
    networks = st.sampled_from("12345")
    for _ in range(data.draw(st.integers(1, 6))):
        model = data.draw(st.sampled_from(["coins", "cells"]))
        if model in world.store.objects and data.draw(st.booleans()):
            world.store.delete(model)
        else:
            told, golden = assigned(model, data.draw(networks)), data.draw(st.sampled_from(["", "a", "b"]))
            told = with_golden(told, golden) if golden else told
            world.store.apply(told, keep_previous_s=data.draw(st.sampled_from([0, 30])))
        await world.passes(data.draw(st.integers(0, 5)), seconds_each=3)
    await world.passes(40, seconds_each=5)

    for name, model in world.store.objects.items():
        assert model.wanted is not None
        assert world.role(name, "stable") == (model.wanted.assigned.revision, "main")
        assert world.store.records[model.wanted.assigned.revision] == model.wanted.assigned
        assert world.condition(name, "GoldenPassed")[0] == "True"
    assert set(world.fleet.members) == {"main"}
    assert not any(model.deleting for model in world.store.objects.values())
