"""Worlds as one pass sees them: coins in any of its roles, groups whose servers answer, a gateway that follows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from fakes.platform import assigned
from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, ModelState
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.rollout.batches import answered
from segserve_operator.core.rollout.decisions import Deciding, decide_all
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan, TrafficState
from segserve_operator.core.world.observed import (
    Candidate,
    GroupObserved,
    ModelObserved,
    ModelStatus,
    Observed,
    ObservedCondition,
    RoleHolder,
    Roles,
    ServerObserved,
    Wanted,
)

T = TypeVar("T")

NOW_S = 1_000_020.0
THEN_S = NOW_S - 60.0
"""When whatever a world begins with had begun."""

FIRST, SECOND, THIRD = (assigned("coins", network) for network in "123")
CELLS = assigned("cells")
FAILURE = FailureReason("LoadFailed", "Triton said no")

_KNOWN = {told.revision: told for told in (FIRST, SECOND, THIRD, CELLS)}
_STATES = (ModelState.FETCHING, ModelState.LOADING, ModelState.PROVING, ModelState.READY)
_WEIGHTS = {Phase.PROGRESSING: 25, Phase.BAKING: 95, Phase.SUCCEEDED: 100}


def decided(routine: Deciding[T]) -> T:
    """Return what a routine comes to, with its decisions made at once."""
    return answered({"coins": routine}, decide_all)["coins"]


def holder(told: AssignedModel, group: str = "", *, since_s: float = THEN_S) -> RoleHolder:
    """Return who holds a revision; unless told otherwise in the group that it was proved in."""
    return RoleHolder(told.revision, group or told.revision, since_s)


def candidate(
    told: AssignedModel, group: str | None = "", *, since_s: float = THEN_S, failure: FailureReason | None = None
) -> Candidate:
    """Return a revision on its way: in a group of its own, or with None in no group."""
    group = told.revision if group == "" and failure is None else group or None
    return Candidate(told.revision, group, since_s, failure)


def state(told: AssignedModel, phase: Phase, **changes: Any) -> RolloutState:
    """Return where the rollout of a revision stands: with the weight that the phase has."""
    known = {
        "step": -1 if phase in (Phase.PENDING, Phase.GOLDEN, Phase.SHADOW) else 1,
        "sequence": 1,
        "started_s": THEN_S,
        "since_s": THEN_S,
        "step_since_s": THEN_S,
        "weight": _WEIGHTS.get(phase, 0),
    }
    return RolloutState(f"{told.revision}-1", told.revision, phase, **(known | changes))


def rollout_record(state: RolloutState, *verdicts: Verdict, policy: RolloutPolicy) -> Record:
    """Return the record of the second revision's rollout, without evidence yet."""
    return Record(
        state.rollout,
        "coins",
        FIRST.revision,
        SECOND.revision,
        policy,
        Slo(),
        Progress.begun(THEN_S),
        verdicts=verdicts,
    )


def model(
    wanted: AssignedModel | None,
    roles: Roles | None = None,
    *,
    keep_previous_s: float = 3600.0,
    allow_class_changes: bool = False,
    policy: RolloutPolicy | None = None,
    slo: Slo | None = None,
    rollout: RolloutState | None = None,
    said: Collection[ObservedCondition] = (),
    **changes: Any,
) -> ModelObserved:
    """Return a model whose spec asks for a revision (None: it cannot be read), and whose status has these roles."""
    return ModelObserved(
        name=wanted.model if wanted is not None else "coins",
        generation=1,
        wanted=Wanted(wanted, keep_previous_s, allow_class_changes, policy, slo) if wanted is not None else None,
        status=ModelStatus(roles=roles or Roles(), rollout=rollout, conditions=tuple(said)),
        **changes,
    )


def report(told: AssignedModel, state: ModelState = ModelState.READY, **changes: Any) -> ModelReport:
    """Return what an agent says of a revision that has come so far."""
    progress = _STATES.index(state) if state in _STATES else -1
    known = {"artifact_verified": progress >= 1, "loaded": progress >= 2, "proof": "golden" if progress == 3 else None}
    return ModelReport(model=told.model, revision=told.revision, state=state, **(known | changes))


def failed(told: AssignedModel, reason: str, message: str = "it failed", *, retryable: bool = False) -> ModelReport:
    """Return what an agent says of a revision that failed on its server."""
    return report(told, ModelState.FAILED, reason=reason, message=message, retryable=retryable)


def server(name: str, *reports: ModelReport, ready: bool = True) -> ServerObserved:
    """Return a server that answers, with what its agent says."""
    return ServerObserved(name, Endpoint(name, 8000, 8001), ready, reports)


def group(
    name: str,
    *held: AssignedModel,
    state: ModelState = ModelState.READY,
    reports: Collection[ModelReport] | None = None,
    servers: int = 1,
    **changes: Any,
) -> GroupObserved:
    """Return a group told to hold these revisions, with so many equal servers; 0 are none that came up."""
    said = tuple(report(told, state) for told in held) if reports is None else tuple(reports)
    known = {
        "servers": tuple(server(f"{name}-{number}", *said) for number in range(servers)),
        "wanted": max(servers, 1),
        "assignment": Assignment(models=tuple(sorted(held, key=lambda told: told.model))),
    }
    return GroupObserved(name, **(known | changes))


def lost(name: str, *held: AssignedModel, **changes: Any) -> GroupObserved:
    """Return a group whose one server is gone."""
    return group(name, *held, servers=0, intact=False, **changes)


def world(
    *models: ModelObserved,
    groups: Collection[GroupObserved] = (),
    weights: Mapping[str, int] | None = None,
    records: Collection[AssignedModel] | None = None,
    traffic: TrafficState | None = None,
    **changes: Any,
) -> Observed:
    """Return a world in which all that roles name is written down, and the gateway knows all groups of the roles.

    `weights` are coins' by group; unless given, stable gets all requests.
    """
    roles = {model.name: model.roles for model in models}
    named = frozenset().union(*(each.revisions() for each in roles.values()))
    known = {told.revision: told for told in records} if records is not None else _KNOWN
    by_name = {each.name: each for each in groups}
    return Observed(
        now_s=changes.pop("now_s", NOW_S),
        gateway_url="http://gateway",
        models=models,
        revisions={name: told for name, told in known.items() if name in named or records is not None},
        groups=by_name,
        traffic=traffic or TrafficState(_plan(roles, by_name, weights)),
        **changes,
    )


def _plan(
    roles: Mapping[str, Roles], groups: Mapping[str, GroupObserved], weights: Mapping[str, int] | None
) -> TrafficPlan:
    routes = [_route(name, each, groups, weights if name == "coins" else None) for name, each in roles.items()]
    main = groups["main"].servers if "main" in groups else ()
    return TrafficPlan(tuple(route for route in routes if route is not None), tuple(each.endpoint for each in main))


def _route(
    name: str, roles: Roles, groups: Mapping[str, GroupObserved], weights: Mapping[str, int] | None
) -> Route | None:
    if roles.stable is None:
        return None
    given = weights if weights is not None else {roles.stable.group: 100}
    shares = []
    for role in (roles.stable, roles.candidate, roles.previous):
        if role is not None and role.group is not None and role.group in groups:
            endpoints = groups[role.group].endpoints(role.revision)
            if endpoints or given.get(role.group):
                limit = FIRST.pipeline.runtime.max_requests
                shares.append(Share(role.group, role.revision, given.get(role.group, 0), endpoints, limit))
    return Route(name, tuple(shares)) if shares else None
