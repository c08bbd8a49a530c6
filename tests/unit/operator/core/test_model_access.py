"""Who may use a model, in the plan that the gateways get."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, world
from segserve_operator.core.failure import STATUS_UNREADABLE, FailureReason
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.traffic import AccessRule, Callers, CredentialKind, Route, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import Observed, PoolGateway, PoolObserved, Roles

RULES = (AccessRule(keys=("team-a",)),)
FORMER = (AccessRule(keys=("team-b",)),)
MAIN = group("main", FIRST)
SERVED = Roles(holder(FIRST, "main"))


def route_of(seen: Observed) -> Route:
    (route,) = desired_state(seen).traffic.routes
    return route


def routed(access: tuple[AccessRule, ...] | None) -> TrafficState:
    """Return the state of gateways that have the model with these rules."""
    before = route_of(world(model(FIRST, SERVED), groups=[MAIN]))
    return TrafficState(TrafficPlan((replace(before, access=access),)))


@pytest.mark.parametrize("access", [None, RULES])
def test_the_rules_of_a_spec_are_in_the_route_of_its_model(access: tuple[AccessRule, ...] | None) -> None:
    coins = replace(model(FIRST, SERVED), access=access)

    assert route_of(replace(world(coins, groups=[MAIN]), traffic=routed(FORMER))).access == access


@pytest.mark.parametrize(("present", "expected"), [(FORMER, FORMER), (None, ()), ((), ())])
def test_rules_that_cannot_be_read_leave_those_of_the_gateways_and_open_nothing(
    present: tuple[AccessRule, ...] | None, expected: tuple[AccessRule, ...]
) -> None:
    coins = replace(model(FIRST, SERVED), access=())

    assert route_of(replace(world(coins, groups=[MAIN]), traffic=routed(present))).access == expected


def test_rules_that_cannot_be_read_admit_nobody_where_no_gateway_has_any() -> None:
    coins = replace(model(FIRST, SERVED), access=())

    assert route_of(replace(world(coins, groups=[MAIN]), traffic=TrafficState(None))).access == ()


def test_rules_hold_for_a_model_whose_status_cannot_be_read() -> None:
    unread = FailureReason(STATUS_UNREADABLE, "the status cannot be read")
    coins = replace(model(FIRST, Roles()), access=RULES, problem=unread, wanted=None)

    assert route_of(replace(world(coins, groups=[MAIN]), traffic=routed(None))).access == RULES


def test_a_change_of_the_rules_is_no_new_revision_and_holds_for_all_revisions() -> None:
    changing = Roles(holder(FIRST, "main"), candidate(SECOND))
    coins = replace(model(SECOND, changing), access=RULES)
    own = group(SECOND.revision, SECOND)

    before = desired_state(world(replace(coins, access=None), groups=[MAIN, own]))
    after = desired_state(world(coins, groups=[MAIN, own]))

    assert after.statuses == before.statuses
    assert [route.access for route in after.traffic.routes] == [RULES]


ANONYMOUS, AUTHENTICATED = AccessRule(callers=Callers.ANONYMOUS), AccessRule(callers=Callers.AUTHENTICATED)
BY_CLAIM, BY_CERTIFICATE = AccessRule(claim="groups", values=("a",)), AccessRule(certificates=("spiffe://a",))


@pytest.mark.parametrize(
    ("access", "credentials", "shut"),
    [
        (None, frozenset(), False),
        (RULES, None, False),
        (RULES, frozenset(), True),
        ((*RULES, AUTHENTICATED, BY_CLAIM, BY_CERTIFICATE), frozenset(), True),
        ((*RULES, ANONYMOUS), frozenset(), False),
        (RULES, frozenset({CredentialKind.KEY}), False),
        (RULES, frozenset({CredentialKind.TOKEN, CredentialKind.CERTIFICATE}), True),
        ((BY_CLAIM,), frozenset({CredentialKind.TOKEN}), False),
        ((BY_CERTIFICATE,), frozenset({CredentialKind.CERTIFICATE}), False),
        ((AUTHENTICATED,), frozenset({CredentialKind.KEY}), False),
    ],
)
def test_a_model_whose_rules_admit_nobody_at_its_pool_s_gateway_says_so(
    access: tuple[AccessRule, ...] | None, credentials: frozenset[CredentialKind] | None, *, shut: bool
) -> None:
    coins = replace(model(FIRST, SERVED), access=access)

    decided = desired_state(
        world(coins, groups=[MAIN], pool=PoolObserved("default", gateway=PoolGateway(credentials=credentials)))
    )

    (status,) = decided.statuses.values()
    degraded = {each.type: each for each in status.conditions}["Degraded"]
    assert (degraded.status, degraded.reason) == (("True", "NobodyAdmitted") if shut else ("False", "AsWanted"))
