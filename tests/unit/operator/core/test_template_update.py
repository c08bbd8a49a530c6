"""The steps of an update: how many servers each main group has, in any state of the servers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from fakes.observed_models import FIRST, group
from segserve_operator.api.pool_update import Update
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.update import STALLED_S, spread, with_template
from segserve_operator.core.traffic import Route, Share, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import (
    GroupObserved,
    ModelObserved,
    ModelStatus,
    Observed,
    PoolObserved,
    PoolStatus,
    RoleHolder,
    Roles,
    Template,
    UpdateClaim,
)

OLD, NEW = "main-00000000", "main-11111111"
KEPT = Template("00000000", settings="a", next="11111111", since_s=10.0)
POOL = PoolObserved(
    "default", template="11111111", settings="b", replicas=4, status=PoolStatus(main_group=OLD, template=KEPT)
)


def servers(name: str, ready: int, replicas: int | None = None, **changes: Any) -> GroupObserved:
    return replace(group(name, servers=ready), replicas=ready if replicas is None else replicas, **changes)


def seen(*groups: GroupObserved, pool: PoolObserved = POOL, now_s: float = 20.0, **update: Any) -> Observed:
    pool = replace(pool, update=Update(**update))
    return Observed(now_s=now_s, pool=pool, groups={each.name: each for each in groups})


def updated(world: Observed) -> PoolObserved:
    pool = with_template(world).pool
    assert pool is not None
    return pool


def counts(world: Observed) -> tuple[int, int]:
    replicas = updated(world).counts
    return replicas.get(OLD, 0), replicas.get(NEW, 0)


@pytest.mark.parametrize(
    ("old", "new", "update", "expected"),
    [
        pytest.param((4, 4), (0, 0), {}, (4, 1), id="it begins with what is beyond replicas"),
        pytest.param((4, 4), (0, 1), {}, (4, 1), id="it waits for a new server"),
        pytest.param((4, 4), (1, 1), {}, (3, 1), id="an old one ends for a new one that answers"),
        pytest.param((4, 3), (1, 1), {}, (3, 1), id="not before the old one is gone"),
        pytest.param((3, 3), (1, 1), {}, (3, 2), id="then another one starts"),
        pytest.param((3, 4), (1, 1), {}, (3, 1), id="a missing old one is replaced by a new one"),
        pytest.param((0, 0), (4, 4), {}, (0, 4), id="all are new"),
        pytest.param((4, 4), (0, 0), {"max_surge": 0, "max_unavailable": 1}, (3, 0), id="without room one ends first"),
        pytest.param((3, 3), (0, 0), {"max_surge": 0, "max_unavailable": 1}, (3, 1), id="and one starts"),
        pytest.param((4, 4), (0, 0), {"max_surge": "100%"}, (4, 4), id="all at once if there is room"),
        pytest.param((4, 4), (4, 4), {"max_surge": "100%"}, (0, 4), id="and the old ones end at once"),
        pytest.param((4, 4), (0, 0), {"strategy": "Recreate"}, (0, 0), id="recreated: all end"),
        pytest.param((0, 0), (0, 0), {"strategy": "Recreate"}, (0, 4), id="recreated: then all start"),
    ],
)
def test_a_step(old: tuple[int, int], new: tuple[int, int], update: dict[str, Any], expected: tuple[int, int]) -> None:
    world = seen(servers(OLD, *old), servers(NEW, *new), **update)

    assert counts(world) == expected


@pytest.mark.parametrize(("surge", "unavailable"), [(1, 0), (2, 0), (0, 1), (0, 2), (1, 1), (3, 2), ("25%", "50%")])
def test_no_state_leads_to_more_servers_or_fewer_that_answer_than_allowed(surge: Any, unavailable: Any) -> None:
    most = 4 + (1 if surge == "25%" else surge)
    least = 4 - (2 if unavailable == "50%" else unavailable)
    for old, new in product(range(5), range(5)):
        for old_ready, new_ready in product(range(old + 1), range(new + 1)):
            world = seen(
                servers(OLD, old_ready, old),
                servers(NEW, new_ready, new),
                max_surge=surge,
                max_unavailable=unavailable,
            )
            after = counts(world)
            kept = min(old_ready, after[0]) + min(new_ready, after[1])

            assert after[1] >= new, "a new server never ends"
            assert old + after[1] <= max(most, old + new), (old, new, after)
            assert kept >= min(least, old_ready + new_ready), (old_ready, old, new_ready, new, after)


@pytest.mark.parametrize(
    ("told", "pending", "expected"),
    [
        pytest.param((OLD,), frozenset(), 1, id="no gateway is told of the new one"),
        pytest.param((OLD, NEW), frozenset({"coins"}), 1, id="one does not follow yet"),
        pytest.param((OLD, NEW), frozenset({"other"}), 0, id="all follow"),
    ],
)
def test_a_server_ends_only_once_all_gateways_send_requests_to_the_one_that_replaces_it(
    told: tuple[str, ...], pending: frozenset[str], expected: int
) -> None:
    """A gateway that is to end may refuse the servers that it will not see."""
    assert counts(replaced_one(told, pending)) == (expected, 1)


def replaced_one(told: tuple[str, ...], pending: frozenset[str] = frozenset(), now_s: float = 20.0) -> Observed:
    """Return the world of an update with an old and a new server; gateways are told of those that are `told`."""
    groups = [group(name, FIRST, servers=1) for name in (OLD, NEW)]
    endpoints = tuple(server.endpoint for each in groups if each.name in told for server in each.servers)
    plan = TrafficPlan((Route("coins", (Share(OLD, FIRST.revision, 100, endpoints),)),))
    world = seen(*groups, pool=replace(POOL, replicas=1), now_s=now_s)
    return replace(world, traffic=TrafficState(plan if told else None, pending=pending))


def test_an_old_server_stays_where_no_plan_of_the_gateways_can_be_read() -> None:
    assert counts(replaced_one(())) == (1, 1)


@pytest.mark.parametrize(("now_s", "stalled"), [(20.0, False), (KEPT.since_s + STALLED_S, True)], ids=["soon", "late"])
def test_an_update_that_waits_for_a_gateway_is_stalled_in_the_end(now_s: float, stalled: bool) -> None:
    pool = with_template(replaced_one((OLD, NEW), frozenset({"coins"}), now_s)).pool

    assert pool is not None
    assert (pool.stuck.reason if pool.stuck is not None else "") == ("GatewaysBehind" if stalled else "")


def test_servers_that_terminate_still_have_their_machines() -> None:
    leaving = servers(OLD, 3, leaving=group(OLD, servers=1).servers)

    assert counts(seen(leaving, servers(NEW, 1))) == (3, 1)


def test_servers_that_cannot_come_up_make_room_at_once() -> None:
    stuck = servers(OLD, 0, 4, problem=FailureReason("ImagePullBackOff", "no such image"))

    assert counts(seen(stuck)) == (0, 4)


def test_a_silent_fleet_is_not_given_up() -> None:
    """Agents that nobody hears may be a fault of the operator's own: without a known problem their servers stay."""
    silent = servers(OLD, 0, 4)

    assert counts(seen(silent, servers(NEW, 0, 1))) == (4, 1)


def claims(*, first: bool, begun: bool, since_s: float, stalled: bool = False) -> dict[str, Any]:
    return {"claims": (UpdateClaim("b", first=first, begun=begun, since_s=since_s, stalled=stalled),)}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        pytest.param({"update": Update(paused=True)}, "UpdatePaused", id="paused"),
        pytest.param({"status": PoolStatus(template=Template("00000000", "a"))}, "UpdateQueued", id="not yet recorded"),
        pytest.param(claims(first=True, begun=False, since_s=9.0), "UpdateQueued", id="one that waits longer"),
        pytest.param(claims(first=False, begun=True, since_s=99.0), "UpdateQueued", id="one that has begun"),
        pytest.param(claims(first=True, begun=False, since_s=10.0), "UpdateQueued", id="one of an earlier name"),
        pytest.param(
            claims(first=True, begun=True, since_s=1.0, stalled=True) | {"settings": "a", "request": "now"},
            "UpdateQueued",
            id="one that what an operator offers has stalled",
        ),
    ],
)
def test_what_an_update_waits_for(changes: dict[str, Any], reason: str) -> None:
    world = Observed(now_s=20.0, pool=replace(POOL, **changes), groups={OLD: servers(OLD, 4)})
    progress = updated(world).progress

    assert progress is not None
    assert (progress.status, progress.reason) == ("False", reason)
    assert counts(world) == (4, 0)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(UpdateClaim("b", first=True, begun=False, since_s=11.0), id="later"),
        pytest.param(UpdateClaim("b", first=False, begun=False, since_s=10.0), id="equal"),
        pytest.param(UpdateClaim("b", first=True, begun=True, since_s=1.0, stalled=True), id="stalled"),
    ],
)
def test_a_pool_whose_turn_it_is_does_not_wait(claim: UpdateClaim) -> None:
    assert counts(seen(servers(OLD, 4), pool=replace(POOL, claims=(claim,)))) == (4, 1)


def test_several_pools_may_go_at_once() -> None:
    claims = (UpdateClaim("b", first=True, begun=True, since_s=1.0),)

    assert counts(seen(servers(OLD, 4), pool=replace(POOL, claims=claims), max_parallel_pools=2)) == (4, 1)


@pytest.mark.parametrize(
    ("replicas", "expected"), [(6, (5, 1)), (4, (3, 1)), (2, (2, 1))], ids=["more", "as many", "fewer"]
)
def test_a_paused_update_follows_the_scale(replicas: int, expected: tuple[int, int]) -> None:
    pool = replace(POOL, replicas=replicas)

    assert counts(seen(servers(OLD, 3), servers(NEW, 1), pool=pool, paused=True)) == expected


def test_the_servers_of_all_templates_are_one_group_with_one_name() -> None:
    roles = Roles(stable=RoleHolder("coins-1", NEW, 1.0))
    plan = TrafficPlan((Route("coins", (Share(NEW, "coins-1", 100),)),))
    world = replace(
        seen(servers(OLD, 3), servers(NEW, 1)),
        models=(ModelObserved("coins", 1, None, status=ModelStatus(roles=roles)),),
        traffic=TrafficState(plan, {("coins", OLD): 2, ("coins", NEW): 3}),
    )
    one = with_template(world)

    assert one.main == OLD
    assert one.groups.keys() == {OLD}
    assert len(one.groups[OLD].servers) == 4
    assert one.models[0].roles.stable == RoleHolder("coins-1", OLD, 1.0)
    assert one.traffic.active == {("coins", OLD): 5}
    assert one.traffic.share("coins", OLD) is not None


def test_all_main_groups_are_told_to_hold_the_same() -> None:
    world = seen(servers(OLD, 3), servers(NEW, 1))
    told = group(OLD).assignment
    groups, replicas = spread({OLD: told, "coins-1-00000000": told}, {}, updated(world), world.groups)

    assert groups == {OLD: told, NEW: told, "coins-1-00000000": told}
    assert replicas == {OLD: 3, NEW: 2, "coins-1-00000000": 4}


def test_the_new_template_is_adopted_when_no_former_server_is_left() -> None:
    one = with_template(seen(servers(OLD, 0), servers(NEW, 4)))

    assert one.pool is not None
    assert one.pool.kept == Template("11111111", "b")
    assert one.main == NEW


def test_a_platform_without_templates_has_no_updates() -> None:
    world = Observed(now_s=0.0, pool=PoolObserved("default"), groups={"main": group("main", servers=1)})

    assert updated(world) is world.pool
    assert spread({"main": group("main").assignment}, {}, updated(world), world.groups)[1] == {"main": 1}
