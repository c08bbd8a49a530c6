"""What the failure of one effect withholds, and what it does not; when it is tried again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.observed_models import CELLS, FIRST, NOW_S, SECOND, candidate, group, holder, lost, model, world
from segserve_builder.agent.protocol import Assignment
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.actions import Assign, Effect, Forget, SetTraffic, StartGroup, StopGroup
from segserve_operator.core.models.effects import effects, permitted
from segserve_operator.core.models.failures import LASTING, failed, is_due, refusal_of
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.traffic import TrafficPlan, TrafficState
from segserve_operator.core.world.observed import EffectFailure, Observed, Roles

MAIN, OWN = group("main", FIRST), group(SECOND.revision, SECOND)
SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
REFUSED = FailureReason("Forbidden", "exceeded quota")


def stages(seen: Observed) -> list[list[Effect]]:
    return [[effect for sequence in stage for effect in sequence] for stage in effects(desired_state(seen), seen)]


def plans(seen: Observed) -> list[TrafficPlan]:
    return [effect.plan for stage in stages(seen) for effect in stage if isinstance(effect, SetTraffic)]


def shares(plan: TrafficPlan) -> dict[str, tuple[int, int]]:
    """Return the weight and the number of servers of each group of coins."""
    return {
        s.group: (s.weight, len(s.endpoints)) for route in plan.routes for s in route.shares if route.model == "coins"
    }


# Its servers have loaded the candidate, of which the present assignment says nothing.
UNASSIGNED = replace(OWN, assignment=Assignment())
WAITING = world(
    model(SECOND, CHANGING), groups=[MAIN, UNASSIGNED], traffic=world(model(FIRST, SERVED), groups=[MAIN]).traffic
)


def test_a_route_waits_for_the_assignment_that_it_needs() -> None:
    kinds = [type(effect) for stage in stages(WAITING) for effect in stage]
    assert kinds.index(Assign) < kinds.index(SetTraffic)
    (plan,) = plans(WAITING)

    assert shares(plan) == {"main": (100, 1), SECOND.revision: (0, 1)}
    assert permitted(SetTraffic(plan), [Assign(SECOND.revision, OWN.assignment)], WAITING) is None


def test_a_route_that_waits_holds_no_other() -> None:
    seen = replace(WAITING, traffic=replace(WAITING.traffic, plan=TrafficPlan(servers=WAITING.traffic.plan.servers)))
    first, second = plans(seen)

    assert shares(first) == {"main": (100, 1), SECOND.revision: (0, 0)}
    assert shares(second) == {"main": (100, 1), SECOND.revision: (0, 1)}


def test_a_weight_over_what_gateways_know_waits_for_nothing() -> None:
    seen = world(model(SECOND, CHANGING), model(CELLS), groups=[MAIN, OWN])
    first = stages(seen)[0]

    assert [type(effect) for effect in first] == [SetTraffic]


def test_a_gateway_that_was_never_told_anything_is_told_after_the_assignments() -> None:
    seen = replace(WAITING, traffic=TrafficState(None))
    (plan,) = plans(seen)
    told = permitted(SetTraffic(plan), [Assign(SECOND.revision, OWN.assignment)], seen)

    assert isinstance(told, SetTraffic)
    assert shares(told.plan) == {"main": (100, 1), SECOND.revision: (0, 0)}


LOST = world(
    model(FIRST, SERVED), groups=[lost("main", FIRST)], traffic=world(model(FIRST, SERVED), groups=[MAIN]).traffic
)


def test_a_server_is_not_restarted_while_the_gateway_cannot_be_told_to_leave_it() -> None:
    (plan,) = plans(LOST)

    assert permitted(StartGroup("main"), [SetTraffic(plan)], LOST) is None
    assert permitted(StartGroup("another"), [SetTraffic(plan)], LOST) == StartGroup("another")


def test_a_gateway_whose_objects_are_refused_holds_no_restart() -> None:
    followed = replace(LOST, traffic=replace(LOST.traffic, plan=plans(LOST)[0], intact=False))

    assert permitted(StartGroup("main"), [SetTraffic(plans(LOST)[0])], followed) == StartGroup("main")


def test_a_model_is_not_forgotten_while_the_gateway_cannot_be_told_to_forget_its_route() -> None:
    assert permitted(Forget("coins"), [SetTraffic(TrafficPlan())], LOST) is None
    assert permitted(Forget("cells"), [SetTraffic(TrafficPlan())], LOST) == Forget("cells")


def after(action: Effect, seen: Observed, *, passing: bool = False, times: int = 1) -> Observed:
    """Return the world after an action failed so many times in a row."""
    for _ in range(times):
        failure = failed(action, REFUSED, seen, passing=passing, wait_s=0.0)
        seen = replace(seen, failures={(failure.kind, failure.subject): failure})
    return seen


def only(seen: Observed) -> EffectFailure:
    (failure,) = seen.failures.values()
    return failure


def test_what_is_refused_is_tried_again_after_a_delay_that_doubles_up_to_half_a_minute() -> None:
    seen = world(model(FIRST, SERVED), groups=[MAIN])
    delays = [only(after(StartGroup("main"), seen, times=times)).retry_s - NOW_S for times in range(1, 8)]

    assert delays == [1, 2, 4, 8, 16, 30, 30]


def test_another_content_is_tried_at_once_and_the_same_one_when_its_delay_is_over() -> None:
    seen = after(SetTraffic(TrafficPlan()), world(model(FIRST, SERVED), groups=[MAIN]), times=4)

    assert not is_due(SetTraffic(TrafficPlan()), seen)
    assert is_due(SetTraffic(world(model(FIRST, SERVED), groups=[MAIN]).traffic.plan), seen)
    assert is_due(SetTraffic(TrafficPlan()), replace(seen, now_s=seen.now_s + 8))
    assert is_due(SetTraffic(TrafficPlan()), replace(seen, now_s=seen.now_s - 86_400)), "the clock was set back"


def test_the_delay_that_the_server_asks_for_is_kept() -> None:
    failure = failed(StopGroup("a"), REFUSED, world(model(FIRST, SERVED), groups=[MAIN]), passing=True, wait_s=12.0)

    assert failure.retry_s == NOW_S + 12


@pytest.mark.parametrize("times", range(1, LASTING + 2))
def test_what_may_pass_is_told_once_it_has_lasted(times: int) -> None:
    seen = world(model(SECOND, CHANGING), groups=[MAIN, OWN])
    roles = seen.models[0].roles

    told = refusal_of(seen.models[0], roles, after(StartGroup(SECOND.revision), seen, passing=True, times=times))

    assert (told is not None) == (times >= LASTING)
    assert refusal_of(seen.models[0], roles, after(StartGroup(SECOND.revision), seen)) == REFUSED
