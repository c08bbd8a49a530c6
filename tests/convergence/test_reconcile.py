"""A change of a resource becomes what is served: in the right order, also when the operator dies on the way."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.deaths import deaths
from fakes.platform import CountedWrites, Crash, Verdict, World, assigned
from segserve_builder.agent.protocol import AssignedModel
from segserve_builder.spec.model_spec import Golden

FIRST, SECOND, THIRD = (assigned("coins", network) for network in "123")


async def served(told=FIRST, **options) -> World:
    world = World()
    world.store.apply(told, **options)
    await world.passes()
    return world


def with_golden(told: AssignedModel, digit: str) -> AssignedModel:
    """Return the same revision with a golden set that is told by one digit."""
    return told.model_copy(update={"golden": Golden(uri="file:///golden", sha256=digit * 64)})


async def test_a_golden_set_that_fails_its_trial_takes_nothing_and_the_former_one_restores_all() -> None:
    former, wrong = with_golden(FIRST, "1"), with_golden(FIRST, "2")
    world = await served(former)
    world.fleet.verdicts["2" * 64] = Verdict("GoldenFailed")
    world.store.apply(wrong)
    await world.passes()

    assert world.condition("coins", "GoldenPassed") == ("False", "GoldenFailed")
    assert world.condition("coins", "Degraded") == ("True", "GoldenFailed")
    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "Progressing") == ("False", "Idle")
    assert world.traffic.groups_of("coins") == {"main": 100}
    assert world.store.records == {FIRST.revision: former}
    assert [await world.service.run_once() for _ in range(3)] == [(), (), ()]

    # All servers are new: they are proved with what the record says, and tried again with what the spec says.
    world.fleet.kill("main")
    await world.passes()

    assert world.condition("coins", "Ready") == ("True", "Serving")
    assert world.condition("coins", "GoldenPassed") == ("False", "GoldenFailed")

    world.store.apply(former)
    await world.passes()

    assert world.condition("coins", "GoldenPassed") == ("True", "AnswersMatch")
    assert world.condition("coins", "Degraded") == ("False", "AsWanted")
    assert world.fleet.members["main"].assignment.models == (former,)


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
        assert world.role(name, "stable") == (model.wanted.assigned.revision, "main")
        assert world.store.records[model.wanted.assigned.revision] == model.wanted.assigned
        assert world.condition(name, "GoldenPassed")[0] == "True"
    assert set(world.fleet.members) == {"main"}
    assert not any(model.deleting for model in world.store.objects.values())
