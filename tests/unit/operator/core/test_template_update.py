"""The steps of an update: how many servers each main group has, in any state of the servers."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from fakes.cases import cases
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
    ServerUpdate,
    Template,
)

OLD, NEW = "main-00000000", "main-11111111"
KEPT = Template("00000000", settings="a", next="11111111", since_s=10.0)
POOL = PoolObserved(
    "default",
    template="11111111",
    update=ServerUpdate(settings="b"),
    replicas=4,
    status=PoolStatus(main_group=OLD, template=KEPT),
)


def servers(name: str, ready: int, replicas: int | None = None, **changes: Any) -> GroupObserved:
    return replace(group(name, servers=ready), replicas=ready if replicas is None else replicas, **changes)


def seen(*groups: GroupObserved, pool: PoolObserved = POOL, now_s: float = 20.0, **update: Any) -> Observed:
    pool = replace(pool, update=replace(pool.update, policy=Update(**update)))
    return Observed(now_s=now_s, pool=pool, groups={each.name: each for each in groups})


def updated(world: Observed) -> PoolObserved:
    pool = with_template(world).pool
    assert pool is not None
    return pool


def counts(world: Observed) -> tuple[int, int]:
    replicas = updated(world).update.counts
    return replicas.get(OLD, 0), replicas.get(NEW, 0)


@cases(
    ("old", "new", "update", "expected"),
    {
        "it begins with what is beyond replicas": ((4, 4), (0, 0), {}, (4, 1)),
        "it waits for a new server": ((4, 4), (0, 1), {}, (4, 1)),
        "an old one ends for a new one that answers": ((4, 4), (1, 1), {}, (3, 1)),
        "not before the old one is gone": ((4, 3), (1, 1), {}, (3, 1)),
        "then another one starts": ((3, 3), (1, 1), {}, (3, 2)),
        "a missing old one is replaced by a new one": ((3, 4), (1, 1), {}, (3, 1)),
        "all are new": ((0, 0), (4, 4), {}, (0, 4)),
        "without room one ends first": ((4, 4), (0, 0), {"max_surge": 0, "max_unavailable": 1}, (3, 0)),
        "and one starts": ((3, 3), (0, 0), {"max_surge": 0, "max_unavailable": 1}, (3, 1)),
        "all at once if there is room": ((4, 4), (0, 0), {"max_surge": "100%"}, (4, 4)),
        "and the old ones end at once": ((4, 4), (4, 4), {"max_surge": "100%"}, (0, 4)),
        "recreated: all end": ((4, 4), (0, 0), {"strategy": "Recreate"}, (0, 0)),
        "recreated: then all start": ((0, 0), (0, 0), {"strategy": "Recreate"}, (0, 4)),
    },
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
                servers(OLD, old_ready, old), servers(NEW, new_ready, new), max_surge=surge, max_unavailable=unavailable
            )
            after = counts(world)
            kept = min(old_ready, after[0]) + min(new_ready, after[1])

            assert after[1] >= new, "a new server never ends"
            assert old + after[1] <= max(most, old + new), (old, new, after)
            assert kept >= min(least, old_ready + new_ready), (old_ready, old, new_ready, new, after)


@cases(
    ("told", "pending", "expected"),
    {
        "no gateway is told of the new one": ((OLD,), frozenset(), 1),
        "one does not follow yet": ((OLD, NEW), frozenset({"coins"}), 1),
        "all follow": ((OLD, NEW), frozenset({"other"}), 0),
    },
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

    assert (pool.update.stuck.reason if pool.update.stuck is not None else "") == ("GatewaysBehind" if stalled else "")


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


def test_a_paused_update_says_so_and_changes_no_server() -> None:
    world = seen(servers(OLD, 4), paused=True)
    progress = updated(world).progress

    assert progress is not None
    assert (progress.status, progress.reason) == ("False", "UpdatePaused")
    assert counts(world) == (4, 0)


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


@pytest.mark.parametrize(
    ("stable", "proved", "update", "adopted"),
    [
        pytest.param(None, False, {}, NEW, id="at once if no model has served"),
        pytest.param(None, False, {"paused": True}, OLD, id="not if updates are paused"),
        pytest.param(None, True, {}, OLD, id="nor if a server could serve one"),
        pytest.param(RoleHolder(FIRST.revision, OLD, 0.0), False, {}, OLD, id="nor if one has served"),
    ],
)
def test_a_pool_adopts_a_new_template(
    stable: RoleHolder | None, proved: bool, update: dict[str, Any], adopted: str
) -> None:
    old = servers(OLD, 4) if not proved else replace(group(OLD, FIRST, servers=4), replicas=4)
    waiting = replace(KEPT, next="", since_s=0.0)
    pool = replace(POOL, update=ServerUpdate(settings="a"), status=PoolStatus(main_group=OLD, template=waiting))
    coins = ModelObserved("coins", 1, None, status=ModelStatus(roles=Roles(stable)))

    assert updated(replace(seen(old, pool=pool, **update), models=(coins,))).main == adopted


@cases(
    ("text", "updates"),
    {
        "a text that names nothing starts an update": ("monday", True),
        "so does the name of the offered template": ("11111111", True),
        "that of another one does not": ("22222222", False),
    },
)
def test_a_request(text: str, updates: bool) -> None:
    status = PoolStatus(main_group=OLD, template=replace(KEPT, next="", since_s=0.0))
    pool = replace(POOL, update=ServerUpdate(settings="a", request=text), status=status)

    kept = updated(seen(servers(OLD, 4), pool=pool)).update.kept
    assert kept is not None
    assert bool(kept.next) is updates


def test_a_former_operator_does_not_take_the_request_for_the_template_of_the_next_one() -> None:
    waiting = replace(KEPT, next="", since_s=0.0)
    pool = replace(
        POOL,
        template="00000000",
        update=ServerUpdate(settings="a"),
        status=PoolStatus(main_group=OLD, template=waiting),
    )
    by_name, by_text = (
        updated(seen(servers(OLD, 4), pool=replace(pool, update=ServerUpdate(settings="a", request=text)))).update.kept
        for text in ("11111111", "monday")
    )

    assert by_name == waiting
    assert by_text == replace(waiting, request="monday")


def test_the_new_template_is_adopted_when_no_former_server_is_left() -> None:
    one = with_template(seen(servers(OLD, 0), servers(NEW, 4)))

    assert one.pool.update.kept == Template("11111111", "b")
    assert one.main == NEW


def test_a_platform_without_templates_has_no_updates() -> None:
    world = Observed(now_s=0.0, pool=PoolObserved("default"), groups={"main": group("main", servers=1)})

    assert updated(world) is world.pool
    assert spread({"main": group("main").assignment}, {}, updated(world), world.groups)[1] == {"main": 1}
