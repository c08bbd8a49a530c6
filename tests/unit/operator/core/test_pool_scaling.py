"""A pool decides its number of servers from what its gateways and its servers tell, whatever fails meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import pytest

from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.scaling import with_scaling
from segserve_operator.core.scaling import GatewayLoad, PoolLoad, ScalingPolicy, ScalingTarget
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import (
    MAIN,
    GroupObserved,
    Observed,
    PoolObserved,
    PoolStatus,
    ScalingState,
    ServerObserved,
    Template,
)
from segserve_operator.core.world.quorum import needed

POLICY = ScalingPolicy(1, 30, ScalingTarget(concurrency=4.0), 300.0)
AWAY = FailureReason("ImagePullBackOff", "the registry is away")
SERVICE_S = 0.1


@dataclass
class Played:
    """A pool that is looked at each second: its servers start at once, but for those for which there is no `room`."""

    policy: ScalingPolicy = POLICY
    now_s: float = 2e9
    per_s: float = 140.0
    room: int = 100
    problem: FailureReason | None = None
    gateways: tuple[str, ...] = ("a",)
    silent: bool = False
    arrived: float = 0.0
    load: PoolLoad = field(default_factory=PoolLoad)
    status: PoolStatus = field(default_factory=PoolStatus)
    world: Observed = field(default_factory=lambda: Observed(now_s=0.0))
    beside: GroupObserved | None = None
    """A candidate's group, which gets half of the requests."""

    @property
    def desired(self) -> int:
        return self.scaling.desired if self.status.scaling is not None else self.policy.minimum

    @property
    def scaling(self) -> ScalingState:
        assert self.status.scaling is not None
        return self.status.scaling

    @property
    def active(self) -> tuple[str, str]:
        found = self.world.pool.scaling_active
        return found.status, found.reason

    def loads(self, ready: int) -> Mapping[str, GatewayLoad | None]:
        in_flight = round(self.per_s * SERVICE_S) if ready else 0
        told = GatewayLoad("first", self.now_s, 1e9, int(self.arrived), in_flight)
        return dict.fromkeys(self.gateways, None if self.silent else told)

    def play(self, seconds: int) -> list[int]:
        numbers = []
        for _ in range(seconds):
            self.now_s += 1
            self.arrived += self.per_s
            ready = min(self.desired, self.room)
            servers = tuple(ServerObserved(f"s{n}", Endpoint("10.0.0.1", 1, 1), n < ready) for n in range(self.desired))
            main = GroupObserved(MAIN, servers, replicas=self.desired, problem=self.problem)
            pool = PoolObserved(replicas=self.policy.minimum, scaling=self.policy, status=self.status)
            groups = {group.name: group for group in (main, self.beside) if group is not None}
            shares = tuple(Share(name, "1", 100 // len(groups)) for name in groups)
            world = Observed(now_s=self.now_s, pool=pool, groups=groups, load=self.load)
            plan = TrafficPlan((Route("coins", shares),))
            world = replace(world, traffic=TrafficState(plan), gateway_loads=self.loads(ready))
            self.world = with_scaling(world)
            self.load, self.status = self.world.load, replace(self.status, scaling=self.world.pool.scaled)
            numbers.append(self.desired)
        return numbers


def test_an_outage_of_all_servers_gives_up_none_however_long_it_lasts() -> None:
    pool = Played()
    before = pool.play(600)[-1]
    pool.room, pool.problem = 0, AWAY
    outage = pool.play(1500)
    pool.room, pool.problem = 100, None
    after = pool.play(400)

    assert before > 3
    assert {*outage, *after} == {before}


def test_callers_that_went_away_in_an_outage_find_the_servers_there_for_the_delay_after_it() -> None:
    pool = Played()
    before = pool.play(600)[-1]
    pool.room, pool.problem, pool.per_s = 0, AWAY, 0.0
    pool.play(500)
    pool.room, pool.problem = 100, None

    assert set(pool.play(290)) == {before}
    assert pool.play(60)[-1] == 1


def test_servers_that_answered_before_they_failed_are_not_given_up_while_as_many_are_needed() -> None:
    pool = Played()
    before = pool.play(600)[-1]
    pool.room, pool.problem = before - 2, AWAY

    assert set(pool.play(900)) == {before}


def test_fewer_requests_need_fewer_servers_also_where_some_of_them_fail_for_long() -> None:
    pool = Played()
    before = pool.play(600)[-1]
    pool.room, pool.problem, pool.per_s = before - 2, AWAY, 10.0
    failing = pool.play(900)

    assert set(failing[:590]) == {before}
    assert failing[-1] == 1


@pytest.mark.parametrize("template", [None, Template("old", next="new")], ids=["calm", "while servers are updated"])
def test_servers_that_never_came_are_given_up(template: Template | None) -> None:
    pool = Played(per_s=20.0, room=2)
    pool.play(60)
    pool.status = replace(pool.status, template=template)
    pool.per_s, pool.problem = 140.0, AWAY
    pool.play(1)
    pool.problem = None
    asked = pool.play(30)[-1]
    pool.problem = AWAY
    pool.play(620)

    assert asked > 2
    assert (pool.desired, pool.scaling.reason) == (2, "ServersFail")
    pool.problem = None
    pool.play(60)
    assert (pool.desired, pool.active) == (2, ("False", "ServersFail"))
    pool.room = 100
    pool.play(600)
    assert pool.desired > 2
    assert pool.active == ("True", "FollowsRequests" if template is None else "RolloutInProgress")


def test_a_clock_that_is_set_back_puts_off_nothing() -> None:
    pool = Played(per_s=20.0, room=2)
    pool.play(60)
    pool.per_s = 140.0
    pool.play(30)
    pool.problem = AWAY
    pool.play(10)
    pool.now_s -= 3600
    pool.play(620)

    assert (pool.desired, pool.scaling.reason) == (2, "ServersFail")


def test_without_any_counts_a_lower_minimum_gives_up_no_server() -> None:
    pool = Played(per_s=10.0, policy=replace(POLICY, minimum=4))
    pool.play(600)
    pool.silent = True
    pool.play(20)
    pool.policy = POLICY

    assert set(pool.play(60)) == {4}
    assert pool.active == ("False", "NoCounts")


def test_while_servers_start_a_candidate_still_needs_those_for_its_weight_and_the_pool_those_that_have_come() -> None:
    pool = Played(per_s=20.0, room=1)
    pool.play(60)
    pool.per_s = 300.0
    pool.play(30)
    wanted, pool.room = pool.desired, pool.desired - 1
    pool.play(1)

    assert wanted > 6
    assert needed(pool.world.groups[MAIN], pool.world) >= 0.8 * (wanted - 1) - 1
    assert needed(GroupObserved("coins-2", wanted=4), pool.world) == 3


def test_servers_of_a_candidate_that_gets_requests_have_room_for_them() -> None:
    pool = Played()
    servers = pool.play(600)[-1]
    alone = pool.load.history.room
    pool.beside = GroupObserved("coins-2", pool.world.groups[MAIN].servers[:3])
    pool.play(1)

    assert alone == servers * 4.0
    assert pool.load.history.room == (servers + 3) * 4.0


def test_servers_that_another_leader_asked_for_meanwhile_are_kept_for_the_delay() -> None:
    pool = Played(per_s=10.0)
    pool.play(600)
    pool.now_s += 20  # another one had the Lease
    pool.status = replace(pool.status, scaling=replace(pool.scaling, desired=6))

    assert set(pool.play(290)) == {6}
    assert pool.play(60)[-1] == 1


def test_a_status_that_is_read_late_takes_no_decision_back() -> None:
    pool = Played()
    stale = pool.play(600)[-1]
    pool.per_s = 10.0
    while pool.play(1) == [stale]:
        pass
    fewer, pool.status = pool.desired, replace(pool.status, scaling=replace(pool.scaling, desired=stale))
    pool.play(1)

    assert pool.desired <= fewer < stale
