"""From one world to the next: what is routed, loaded and written down, and in which order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from typing import Any, get_args

import numpy as np

from fakes.cases import cases
from fakes.observed_models import (
    CELLS,
    FAILURE,
    FIRST,
    NOW_S,
    SECOND,
    THEN_S,
    THIRD,
    candidate,
    group,
    holder,
    lost,
    model,
    report,
    server,
    state,
    world,
)
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelState
from segserve_operator.api.drift import Drift
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.drift.watch import DriftedHistogram, DriftWatch
from segserve_operator.core.models.actions import (
    Action,
    Announce,
    AnnounceDrift,
    Assign,
    DropRevision,
    EmitEvent,
    EmitPoolEvent,
    Forget,
    SavePoolStatus,
    SaveRevision,
    SaveRollout,
    SaveStatus,
    SetTraffic,
    StartGroup,
    StopGroup,
)
from segserve_operator.core.models.effects import effects
from segserve_operator.core.models.planning import DesiredState, desired_state, intents
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.traffic import Route, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import (
    GroupObserved,
    ModelObserved,
    Observed,
    PoolObserved,
    PoolStatus,
    Roles,
)

POLICY = RolloutPolicy(gates=())
MAIN = group("main", FIRST)
STILL_LOADED = group("main", reports=[report(FIRST, ModelState.UNLOADING)])
OWN = group(SECOND.revision, SECOND)
LOADING = group(SECOND.revision, SECOND, state=ModelState.LOADING)
SERVED = Roles(holder(FIRST, "main"))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
CHANGED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
ELSEWHERE = Roles(holder(SECOND))
SETTLED = Roles(holder(SECOND, "main"))
NAMES = {FIRST.revision: "first", SECOND.revision: "second", THIRD.revision: "third", CELLS.revision: "cells"}


def as_it_is(seen: Observed) -> DesiredState:
    """Return what follows from the roles and rollouts as they are: none of them moves."""
    return desired_state(seen, frozenset(each.name for each in seen.models))


def at_rest(seen: Observed) -> Observed:
    """Return the world once all that was decided of statuses is written down."""
    desired = desired_state(seen)
    pool = replace(seen.pool, status=desired.pool) if seen.pool is not None else None
    models = tuple(replace(each, status=desired.statuses[each.name]) for each in seen.models)
    return replace(seen, models=models, pool=pool)


def actions(seen: Observed) -> list[Action]:
    """Return all that one pass does, in its order."""
    desired = desired_state(seen)
    stages = chain.from_iterable(effects(desired, seen))
    return [*chain.from_iterable(intents(desired, seen).values()), *chain.from_iterable(stages)]


def lines(seen: Observed) -> list[str]:
    return [line(each) for each in actions(seen)]


def line(action: Action) -> str:
    """Return what an action does, with the revisions by their order."""
    text = LINES[type(action)](action)
    for revision, name in NAMES.items():
        text = text.replace(revision, name)
    return text


def shown(route: Route) -> str:
    return f"{route.model} " + ", ".join(f"{share.group} {share.weight} %" for share in route.shares)


LINES: dict[type[Action], Callable[[Any], str]] = {
    SaveRevision: lambda it: f"record {it.revision}",
    EmitEvent: lambda it: f"event of {it.model}: {it.event.reason}",
    SaveStatus: lambda it: f"status of {it.model}",
    StartGroup: lambda it: f"start {it.group}",
    Assign: lambda it: f"assign {it.group}: {', '.join(told.revision for told in it.assignment.models) or 'nothing'}",
    SetTraffic: lambda it: f"route {'; '.join(map(shown, it.plan.routes)) or 'nothing'}",
    SaveRollout: lambda it: f"record the rollout of {it.record.candidate}",
    Announce: lambda it: f"announce {it.model}: {', '.join(event.reason for event in it.events)}",
    AnnounceDrift: lambda it: f"announce drift of {it.model}: {it.event.reason}",
    StopGroup: lambda it: f"stop {it.group}",
    Forget: lambda it: f"forget {it.model}",
    DropRevision: lambda it: f"drop {it.revision}",
    EmitPoolEvent: lambda it: f"event of the pool: {it.event.reason}",
    SavePoolStatus: lambda _: "status of the pool",
}


def drifted(coins: ModelObserved) -> Observed:
    """Return a world in which the answers of a model have just been found to drift."""
    assert coins.wanted is not None
    watched = replace(coins, wanted=replace(coins.wanted, drift=Drift()))
    darker = DriftedHistogram("brightness", 4.2, 1.5, (0.0, 1.0), (0.9, 0.1))
    watch = replace(DriftWatch.start(FIRST.revision, NOW_S, Drift()), complete=True, since_s=NOW_S, found=(darker,))
    return replace(at_rest(world(watched, groups=[MAIN])), drifts={coins.name: watch})


def asks_for(seen: Observed, wanted: AssignedModel) -> Observed:
    """Return the world after the spec of coins was edited."""
    return replace(seen, models=tuple(replace(each, wanted=model(wanted).wanted) for each in seen.models))


def routed_as(seen: Observed, other: Observed) -> Observed:
    """Return a world whose gateways still follow what another world told them."""
    return replace(seen, traffic=other.traffic)


def rollout_record(told: AssignedModel, phase: Phase, sequence: int) -> Record:
    progress = replace(Progress.begun(THEN_S), phase=np.array(phase, np.int8))
    name = state(told, phase).rollout
    return Record(name, told.model, FIRST.revision, told.revision, POLICY, Slo(), progress, sequence)


AT_REST = at_rest(world(model(FIRST, SERVED), groups=[MAIN]))
PROMOTING = world(model(SECOND, CHANGING), groups=[MAIN, OWN])
ROLLING = model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PROGRESSING))
ROLLED = world(ROLLING, groups=[MAIN, OWN], weights={"main": 75, SECOND.revision: 25})
BAKING = model(SECOND, CHANGED, policy=POLICY, rollout=state(SECOND, Phase.BAKING))
SUCCEEDED = model(SECOND, CHANGED, policy=POLICY, rollout=state(SECOND, Phase.SUCCEEDED))
ABORT = {"segserve.dev/abort": SECOND.revision}

PASSES: dict[str, tuple[Observed, list[str]]] = {
    "nothing is written where nothing differs": (AT_REST, []),
    "a first revision is written down before servers are started for it": (
        world(model(FIRST)),
        ["record first", "event of coins: CandidateStarted", "status of coins", "start main", "assign main: first"],
    ),
    "an edit is written down before a group is started for it": (
        asks_for(AT_REST, SECOND),
        [
            "record second",
            "event of coins: CandidateStarted",
            "status of coins",
            "start second",
            "assign second: second",
        ],
    ),
    "nothing is written while a candidate is loaded": (
        at_rest(world(model(SECOND, CHANGING), groups=[MAIN, LOADING])),
        [],
    ),
    "a proved candidate is made known to the gateway at weight 0": (
        at_rest(routed_as(PROMOTING, AT_REST)),
        ["route coins main 100 %, second 0 %"],
    ),
    "a promotion is one write of the status and one of the weights": (
        PROMOTING,
        ["event of coins: Promoted", "status of coins", "route coins second 100 %, main 0 %"],
    ),
    "a return to the former revision is one write of the status and one of the weights": (
        asks_for(at_rest(world(model(SECOND, CHANGED), groups=[MAIN, OWN], weights={SECOND.revision: 100})), FIRST),
        ["event of coins: RolledBack", "status of coins", "route coins main 100 %, second 0 %"],
    ),
    "a candidate that is dropped before the gateway knew it gives its group back at once": (
        asks_for(at_rest(world(model(SECOND, CHANGING), groups=[MAIN, OWN], traffic=AT_REST.traffic)), FIRST),
        ["status of coins", "stop second"],
    ),
    "a candidate that the gateway knows keeps its group until the gateway has forgotten it": (
        asks_for(at_rest(replace(ROLLED, traffic=PROMOTING.traffic)), FIRST),
        [
            "event of coins: Cancelled",
            "status of coins",
            "route coins main 100 %",
            "record the rollout of second",
            "announce coins: Cancelled",
        ],
    ),
    "a stable revision is loaded in main once the former one has left": (
        at_rest(world(model(SECOND, ELSEWHERE), groups=[MAIN, OWN])),
        ["assign main: second"],
    ),
    "the group of a candidate ends once its revision serves from main": (
        at_rest(world(model(SECOND, SETTLED), groups=[group("main", SECOND), OWN])),
        ["stop second"],
    ),
    "the record of a revision without a role is dropped": (
        at_rest(world(model(FIRST, SERVED), groups=[MAIN], records=[FIRST, THIRD])),
        ["drop third"],
    ),
    "requests end before servers let a deleted model go": (
        world(model(FIRST, SERVED, deleting=True), groups=[MAIN]),
        ["status of coins", "route nothing"],
    ),
    "servers let a deleted model go once no request can come": (
        at_rest(world(model(FIRST, deleting=True), groups=[MAIN], records=[FIRST])),
        ["assign main: nothing"],
    ),
    "a deleted model is forgotten once no server holds it": (
        at_rest(world(model(FIRST, deleting=True), groups=[group("main")], records=[FIRST])),
        ["drop first", "forget coins"],
    ),
    "all servers end with their pool": (at_rest(world(model(FIRST, SERVED), groups=[MAIN], pool=None)), ["stop main"]),
    "the gateway forgets a lost server before it is started again": (
        at_rest(routed_as(world(model(FIRST, SERVED), groups=[lost("main", FIRST)]), AT_REST)),
        ["route coins main 100 %", "start main"],
    ),
    "weights over what servers hold come before the groups of other models": (
        at_rest(world(model(SECOND, CHANGING), model(CELLS), groups=[MAIN, OWN])),
        ["record cells", "route coins second 100 %, main 0 %", "start cells", "assign cells: cells"],
    ),
    "a gateway that was never told anything is told once the servers are started": (
        at_rest(world(model(FIRST, SERVED), groups=[lost("main", FIRST)], traffic=TrafficState(None))),
        ["start main", "route coins main 100 %"],
    ),
    "a group that differs from what it should be is put right": (
        at_rest(world(model(FIRST, SERVED), groups=[replace(MAIN, intact=False)])),
        ["start main"],
    ),
    "an assignment that agents cannot read is written again": (
        at_rest(world(model(FIRST, SERVED), groups=[replace(MAIN, written=False)])),
        ["assign main: first"],
    ),
    "gateways that differ from what they should be are put right": (
        at_rest(replace(AT_REST, traffic=replace(AT_REST.traffic, intact=False))),
        ["route coins main 100 %"],
    ),
    "the pool's status comes last": (
        world(model(FIRST, SERVED), groups=[MAIN], pool=PoolObserved("default", status=PoolStatus())),
        ["event of coins: Ready", "status of coins", "event of the pool: Ready", "status of the pool"],
    ),
    "a pool's status is written once": (
        at_rest(world(model(FIRST, SERVED), groups=[MAIN], pool=PoolObserved("default", status=PoolStatus()))),
        [],
    ),
    "a rollback is written down and announced": (
        replace(ROLLED, models=(replace(ROLLING, annotations=ABORT),)),
        [
            "event of coins: RequestTaken",
            "event of coins: Ready",
            "event of coins: Aborted",
            "event of coins: RolledBack",
            "status of coins",
            "route coins main 100 %",
            "record the rollout of second",
            "announce coins: RolledBack",
        ],
    ),
    "a promoted revision's rollback is written down and announced": (
        world(replace(BAKING, annotations=ABORT), groups=[MAIN, OWN], weights={SECOND.revision: 95, "main": 5}),
        [
            "event of coins: RequestTaken",
            "event of coins: Ready",
            "event of coins: Aborted",
            "event of coins: RolledBack",
            "status of coins",
            "route coins main 100 %",
            "record the rollout of second",
            "announce coins: RolledBack",
        ],
    ),
    "a rollout ends where its servers never came": (
        world(
            model(SECOND, CHANGING, policy=POLICY, rollout=state(SECOND, Phase.PENDING), annotations=ABORT),
            groups=[MAIN],
        ),
        [
            "event of coins: RequestTaken",
            "event of coins: Ready",
            "event of coins: Aborted",
            "event of coins: RolledBack",
            "status of coins",
            "record the rollout of second",
            "announce coins: RolledBack",
        ],
    ),
    "drift is written down and then announced": (
        drifted(model(FIRST, SERVED)),
        [
            "event of coins: ImagesChanged",
            "status of coins",
            "assign main: first",
            "announce drift of coins: ImagesChanged",
        ],
    ),
}


@cases(("seen", "expected"), PASSES)
def test_one_pass_writes(seen: Observed, expected: list[str]) -> None:
    assert lines(seen) == expected


def shares(seen: Observed, desired: DesiredState) -> list[tuple[str, int, int]]:
    """Return the shares of coins: the group, the weight, and how many of its servers answer."""
    found = [share for route in desired.traffic.routes if route.model == "coins" for share in route.shares]
    return [(line(StopGroup(share.group)).removeprefix("stop "), share.weight, len(share.endpoints)) for share in found]


LOST = lost(SECOND.revision, SECOND)
HALF = replace(OWN, wanted=2)

ROUTES = {
    "a model without a stable revision has no route": (world(model(FIRST)), []),
    "stable gets all requests": (world(model(FIRST, SERVED), groups=[MAIN]), [("main", 100, 1)]),
    "all servers of a group get requests": (
        world(model(FIRST, SERVED), groups=[group("main", FIRST, servers=3)]),
        [("main", 100, 3)],
    ),
    "a server that is about to end gets requests where no other answers": (
        world(model(FIRST, SERVED), groups=[replace(MAIN, servers=(), leaving=MAIN.servers)]),
        [("main", 100, 1)],
    ),
    "a stable revision whose group is gone keeps its route": (world(model(FIRST, SERVED)), [("main", 100, 0)]),
    "a stable revision that the spec asks for is known from there": (
        world(model(FIRST, SERVED), groups=[MAIN], records=[SECOND]),
        [("main", 100, 1)],
    ),
    "a stable revision without a record keeps its route while servers are told to load it": (
        world(model(SECOND, SERVED), groups=[MAIN], records=[]),
        [("main", 100, 1)],
    ),
    "a stable revision that is written down nowhere has no route": (
        world(model(SECOND, SERVED), groups=[replace(MAIN, assignment=Assignment())], records=[]),
        [],
    ),
    "a candidate is known before it gets requests": (
        world(model(SECOND, CHANGING), groups=[MAIN, OWN]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "a candidate is not known before all its servers have proved it": (
        world(model(SECOND, CHANGING), groups=[MAIN, HALF]),
        [("main", 100, 1)],
    ),
    "a candidate that is not written down yet is known from the spec": (
        world(model(SECOND, CHANGING), groups=[MAIN, OWN], records=[FIRST]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "a candidate without a record is known while servers are told to load it": (
        world(model(THIRD, CHANGING), groups=[MAIN, OWN], records=[FIRST]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "a candidate that waits for its turn is not known": (
        world(model(SECOND, replace(CHANGING, candidate=candidate(SECOND, None))), groups=[MAIN]),
        [("main", 100, 1)],
    ),
    "a candidate gets the weight of its rollout": (
        world(ROLLING, groups=[MAIN, OWN]),
        [("main", 75, 1), ("second", 25, 1)],
    ),
    "a candidate keeps its weight while one of its servers answers": (
        world(ROLLING, groups=[MAIN, HALF]),
        [("main", 75, 1), ("second", 25, 1)],
    ),
    "a candidate whose server is lost keeps the stable serving": (
        world(ROLLING, groups=[MAIN, LOST]),
        [("main", 100, 1)],
    ),
    "a candidate whose group is gone keeps the stable serving": (world(ROLLING, groups=[MAIN]), [("main", 100, 1)]),
    "a candidate gets nothing of another revision's rollout": (
        world(model(SECOND, CHANGING, policy=POLICY, rollout=state(THIRD, Phase.PROGRESSING)), groups=[MAIN, OWN]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "a candidate gets nothing of a rollout that ended before it was wanted anew": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.SUCCEEDED)), groups=[MAIN, OWN]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "a candidate in quarantine gets our own requests alone": (
        world(model(SECOND, CHANGING, rollout=state(SECOND, Phase.QUARANTINED)), groups=[MAIN, OWN]),
        [("main", 100, 1), ("second", 0, 1)],
    ),
    "the former revision keeps a few requests while the new one is watched": (
        world(BAKING, groups=[MAIN, OWN]),
        [("second", 95, 1), ("main", 5, 1)],
    ),
    "a former revision whose server is lost keeps no requests": (
        world(BAKING, groups=[OWN, lost("main", FIRST)]),
        [("second", 100, 1)],
    ),
    "a watched revision without a former one gets all requests": (
        world(model(SECOND, ELSEWHERE, policy=POLICY, rollout=state(SECOND, Phase.BAKING)), groups=[OWN]),
        [("second", 100, 1)],
    ),
    "a bake of another revision leaves the former one nothing": (
        world(model(THIRD, CHANGED, policy=POLICY, rollout=state(THIRD, Phase.BAKING)), groups=[MAIN, OWN]),
        [("second", 100, 1), ("main", 0, 1)],
    ),
    "the former revision is known for as long as it is kept": (
        world(SUCCEEDED, groups=[MAIN, OWN]),
        [("second", 100, 1), ("main", 0, 1)],
    ),
    "candidate and former revision are both known": (
        world(
            model(THIRD, replace(CHANGED, candidate=candidate(THIRD))), groups=[MAIN, OWN, group(THIRD.revision, THIRD)]
        ),
        [("second", 100, 1), ("third", 0, 1), ("main", 0, 1)],
    ),
}


@cases(("seen", "expected"), ROUTES)
def test_requests_go_where_they_are_answered(seen: Observed, expected: list[tuple[str, int, int]]) -> None:
    assert shares(seen, as_it_is(seen)) == expected


def plan_of(seen: Observed) -> TrafficPlan:
    plan = as_it_is(seen).traffic
    assert plan is not None
    return plan


def test_nothing_is_said_of_requests_without_a_pool() -> None:
    assert as_it_is(world(model(FIRST, SERVED), groups=[MAIN], pool=None)).traffic is None


def test_routes_are_in_the_order_of_their_models_names() -> None:
    both = world(model(FIRST, SERVED), model(CELLS, Roles(holder(CELLS, "main"))), groups=[group("main", FIRST, CELLS)])

    assert [route.model for route in plan_of(both).routes] == ["cells", "coins"]


@cases(
    ("groups", "expected"),
    {
        "the servers of main answer": ([group("main", FIRST, servers=2), OWN], ["main-0", "main-1"]),
        "servers that are about to end answer where there are no others": (
            [replace(MAIN, servers=(), leaving=(server("leaving"),))],
            ["leaving"],
        ),
        "nobody answers while there is no main group": ([OWN], []),
    },
)
def test_questions_about_no_model_are_answered(groups: list[GroupObserved], expected: list[str]) -> None:
    assert [each.host for each in plan_of(world(model(FIRST, SERVED), groups=groups)).servers] == expected


def test_a_route_tells_what_stands_in_a_servers_report_and_in_the_spec() -> None:
    told = FIRST.model_copy(update={"expose": ("network",)})
    main = group("main", FIRST, reports=[report(FIRST, steps=("coins.network", "coins.post"))])
    route = plan_of(world(model(told, SERVED), groups=[main])).routes[0]

    assert route.steps == ("coins.network", "coins.post")
    assert route.exposed == ("coins.network",)
    assert route.shares[0].max_requests == FIRST.pipeline.runtime.max_requests


def test_a_route_tells_no_steps_where_no_server_reports() -> None:
    route = plan_of(world(model(FIRST, SERVED), groups=[lost("main", FIRST)])).routes[0]

    assert (route.steps, route.exposed) == ((), ())


ASSIGNMENTS = {
    "there is always a main group": (world(model(FIRST)), {"main": []}),
    "main holds the stable revisions of all models": (
        world(model(FIRST, SERVED), model(CELLS, Roles(holder(CELLS, "main")))),
        {"main": ["cells", "first"]},
    ),
    "a candidate is held in its group": (world(model(SECOND, CHANGING)), {"main": ["first"], "second": ["second"]}),
    "a candidate without a group is held nowhere": (
        world(model(SECOND, replace(SERVED, candidate=candidate(SECOND, None)))),
        {"main": ["first"]},
    ),
    "a candidate that has failed is held nowhere": (
        world(model(SECOND, replace(SERVED, candidate=candidate(SECOND, failure=FAILURE)))),
        {"main": ["first"]},
    ),
    "the former revision is still held": (world(model(SECOND, CHANGED)), {"main": ["first"], "second": ["second"]}),
    "a stable revision is loaded in main while it serves elsewhere": (
        world(model(SECOND, ELSEWHERE)),
        {"main": ["second"], "second": ["second"]},
    ),
    "a former revision leaves main once the gateway has forgotten it": (
        world(model(SECOND, ELSEWHERE), groups=[MAIN, OWN], weights={SECOND.revision: 100}),
        {"main": ["second"], "second": ["second"]},
    ),
    "a former revision stays in main until the gateway has forgotten it": (
        world(
            model(SECOND, ELSEWHERE),
            groups=[MAIN, OWN],
            traffic=world(model(SECOND, CHANGED), groups=[MAIN, OWN], weights={SECOND.revision: 100}).traffic,
        ),
        {"main": ["first"], "second": ["second"]},
    ),
    "a former revision stays in main while a request is on its way to it": (
        world(model(SECOND, ELSEWHERE), groups=[MAIN, OWN], traffic=TrafficState(None, active={("coins", "main"): 1})),
        {"main": ["first"], "second": ["second"]},
    ),
    "a dropped candidate stays in its group until the gateway has forgotten it": (
        world(model(FIRST, SERVED), groups=[MAIN, OWN], traffic=PROMOTING.traffic),
        {"main": ["first"], "second": ["second"]},
    ),
    "the group of a dropped candidate ends once the gateway has forgotten it": (
        world(model(FIRST, SERVED), groups=[MAIN, OWN]),
        {"main": ["first"]},
    ),
    "without a pool there is no group": (world(model(SECOND, CHANGING), groups=[MAIN, OWN], pool=None), {}),
    "a revision that is written down nowhere is held nowhere": (world(model(SECOND, SERVED), records=[]), {"main": []}),
}


@cases(("seen", "expected"), ASSIGNMENTS)
def test_groups_hold_revisions(seen: Observed, expected: dict[str, list[str]]) -> None:
    found = as_it_is(seen).groups.items()

    assert {NAMES.get(name, name): [NAMES[told.revision] for told in each.models] for name, each in found} == expected


@cases(
    ("seen", "expected"),
    {
        "revisions with a role are written down": (world(model(SECOND, CHANGING)), {"first", "second"}),
        "what the spec asks for is written down": (
            world(model(SECOND, CHANGING), records=[FIRST]),
            {"first", "second"},
        ),
        "what a server still holds stays written down and nothing else does": (
            world(model(FIRST, SERVED), groups=[MAIN, OWN], records=[FIRST, SECOND, THIRD]),
            {"first", "second"},
        ),
        "what a server holds and nothing tells of is not written down": (
            world(model(FIRST, SERVED), groups=[MAIN, OWN], records=[FIRST]),
            {"first"},
        ),
        "a role of what nothing tells of is not written down": (
            world(model(THIRD, CHANGING), records=[FIRST]),
            {"first"},
        ),
    },
)
def test_revisions_are_written_down(seen: Observed, expected: set[str]) -> None:
    assert {NAMES[revision] for revision in as_it_is(seen).revisions} == expected


@cases(
    ("seen", "expected"),
    {
        "a deleted model that nobody holds is forgotten": (world(model(FIRST, deleting=True)), ("coins",)),
        "a deleted model that a group was told to hold is not forgotten": (
            world(model(FIRST, deleting=True), groups=[MAIN]),
            (),
        ),
        "a deleted model that a server still has is not forgotten": (
            world(model(FIRST, deleting=True, deleted_s=NOW_S - 1.0), groups=[STILL_LOADED]),
            (),
        ),
        "one that a server does not unload in time is forgotten": (
            world(model(FIRST, deleting=True, deleted_s=THEN_S), groups=[STILL_LOADED]),
            ("coins",),
        ),
        "one that may still get requests is not": (
            world(model(FIRST, SERVED, deleting=True, deleted_s=THEN_S), groups=[MAIN]),
            (),
        ),
        "a model that is not deleted is not forgotten": (world(model(FIRST)), ()),
    },
)
def test_models_are_forgotten(seen: Observed, expected: tuple[str, ...]) -> None:
    assert desired_state(seen).forgotten == expected


def test_a_model_that_cannot_be_written_down_stays_as_it_is_and_others_go_on() -> None:
    both = world(model(SECOND, SERVED), model(CELLS), groups=[MAIN])
    desired = desired_state(both, frozenset({"coins"}))

    assert desired.statuses["coins"].roles == SERVED
    assert desired.statuses["cells"].roles.candidate is not None


RECORD = rollout_record(SECOND, Phase.SUCCEEDED, sequence=1)


@cases(
    ("written", "expected"),
    {
        "a record that was never written is written": ({}, ["record the rollout of second"]),
        "a new decision is written at once": ({RECORD.name: (0, NOW_S)}, ["record the rollout of second"]),
        "what is written of an ended rollout is not written again": ({RECORD.name: (1, NOW_S - 3600)}, []),
    },
)
def test_a_record_of_an_ended_rollout_is_written(written: dict[str, tuple[int, float]], expected: list[str]) -> None:
    seen = at_rest(world(SUCCEEDED, groups=[MAIN, OWN], weights={SECOND.revision: 100}))

    assert lines(replace(seen, records={RECORD.name: RECORD}, written=written)) == expected


def test_what_a_process_did_not_write_of_an_ended_rollout_is_written_by_the_next() -> None:
    behind = rollout_record(SECOND, Phase.BAKING, sequence=0)
    seen = at_rest(world(SUCCEEDED, groups=[MAIN, OWN], weights={SECOND.revision: 100}))
    seen = replace(seen, records={behind.name: behind}, written={behind.name: (0, NOW_S)})

    assert lines(seen) == ["record the rollout of second"]
    assert desired_state(seen).records[behind.name].decisions[-1].signal == "LOST"


@cases(
    ("written_s", "expected"),
    {
        "what was written just now is not written again": (NOW_S - 1, []),
        "what was written a while ago is written again": (NOW_S - 60, ["record the rollout of second"]),
    },
)
def test_what_a_rollout_under_way_has_seen_is_written_now_and_then(written_s: float, expected: list[str]) -> None:
    paused = state(SECOND, Phase.PROGRESSING, paused=True)
    coins = model(SECOND, CHANGING, policy=POLICY, rollout=paused)
    seen = at_rest(world(coins, groups=[MAIN, OWN], weights={"main": 75, SECOND.revision: 25}))

    assert lines(replace(seen, written={paused.rollout: (1, written_s)})) == expected


def test_every_action_has_a_row() -> None:
    """An action that no pass of the table takes has an order that nobody has thought of."""
    assert {type(each) for seen, _ in PASSES.values() for each in actions(seen)} == set(get_args(Action))
