"""One pass over a model's rollout: which one it is, what it decides from, and its next state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo, gate_name
from segserve_operator.core.advance.case import RolloutCase, is_about
from segserve_operator.core.advance.explanations import explanation
from segserve_operator.core.advance.inputs import checks, gather_signals, verdicts_with
from segserve_operator.core.advance.sizes import has_grown, is_deferred
from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.failure import FailureReason, shortened
from segserve_operator.core.gates import measured_gates, started
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.rollout import decisions
from segserve_operator.core.rollout.counters import HungRequests
from segserve_operator.core.rollout.decisions import (
    Deciding,
    DecisionInput,
    DecisionResult,
    caught_up,
    state_of,
)
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.pairs import pairs_between
from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import ModelObserved, Observed, Roles
from segserve_operator.core.world.quorum import answers
from segserve_operator.core.world.requests import (
    VERB_SIGNALS,
    RolloutRequest,
    next_request,
    promotes_judged,
    refusal,
    with_handled,
)
from segserve_operator.core.world.slo import past_of
from segserve_operator.core.world.streams import keeps_streams

WRITE_INTERVAL_S: Final = 10.0
"""Shortest time between two writes of a record without a new decision."""
MAX_WRITE_INTERVAL_S: Final = 60.0
WRITTEN_PER_STEP: Final = 5
"""A record is written again once this part of its step has passed since: a hundred a second would fill etcd."""
RETURNED: Final = FailureReason("RolledBack", "a person returned to the former revision")
MAX_HUNG_AFTER_S: Final = 10.0
"""A request in flight for this long hangs, whatever the SLO says."""


@dataclass(frozen=True, slots=True)
class RolloutUpdate:
    """The outcome of one pass for a model's rollout.

    `records` are the ones with new evidence. `retry`: a failed candidate is tried again. `promote`: one that was only
    judged is rolled out. `return_to_previous`: the stable revision is replaced by the previous one although no rollout
    is in progress.
    """

    state: RolloutState | None = None
    records: tuple[Record, ...] = ()
    checks: tuple[Check, ...] = ()
    handled: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    retry: bool = False
    promote: bool = False
    return_to_previous: bool = False


def advance(model: ModelObserved, roles: Roles, world: Observed) -> Deciding[RolloutUpdate]:
    """Advance a model's rollout by one window of evidence; `roles` follow from the spec and the servers.

    Returns the update, and requests decisions before, so that decisions for many models can be made together.
    """
    state = model.status.rollout
    superseded: tuple[Record, ...] = ()
    if state is not None and not state.ended and not is_about(state, roles):
        result, state = yield from _decide(_case(state, roles, model, world), None)
        superseded = (result.record,)
    state = _started(state, roles, model, world)
    if state is None or state.ended:
        update, request = _handle_request(model, roles, state, (), world)
        returned = request if request is not None and request.verb == "rollback" else None
        if returned is not None and state is not None and state.revision == returned.revision:
            # The rollout of what is left ends anew, so that its record says what became of it.
            state = replace(
                state,
                phase=Phase.ROLLED_BACK,
                sequence=state.sequence + 1,
                since_s=world.now_s,
                weight=0,
                reason=RETURNED.reason,
                message=RETURNED.message,
            )
        record = world.records.get(state.rollout) if state is not None else None
        if state is not None and record is not None and record.sequence < state.sequence:
            # Without a request, the process stopped before it wrote the last decision.
            record = caught_up(record, state, returned.text if returned is not None else "segserve")
            superseded = (*superseded, record)
        return replace(update, state=state, records=superseded, return_to_previous=returned is not None)
    case = _case(state, roles, model, world)
    update, request = _handle_request(model, roles, state, tuple(map(gate_name, case.record.policy.gates)), world)
    result, after = yield from _decide(case, request)
    latest = result.record
    if result.changed or is_due(case.record, world):
        latest = decisions.with_verdicts(latest, after.skipped)
    else:
        # Reason and message change only together with a write, so that a status is not rewritten every second.
        after = replace(after, reason=state.reason or after.reason, message=state.message or after.message)
    return replace(update, state=after, records=(*superseded, latest))


def with_checks(update: RolloutUpdate, roles: Roles, model: ModelObserved, world: Observed) -> RolloutUpdate:
    """Return the update with the checks to run; `roles` are the new ones, which say what groups to check."""
    state = update.state
    record = next((record for record in update.records if state and record.name == state.rollout), None)
    if state is None or record is None:
        return update
    return replace(update, checks=checks(RolloutCase(record, state, roles, model, world)))


def unchanged(model: ModelObserved, world: Observed) -> RolloutUpdate:
    """Return the rollout as it is, for a model whose status cannot be written; its checks continue meanwhile."""
    case = RolloutCase.current(model, world)
    return RolloutUpdate(
        state=model.status.rollout, checks=checks(case) if case is not None else (), handled=model.status.handled
    )


def is_due(record: Record, world: Observed, *, active: bool = True) -> bool:
    """Return whether to write a record: at once after a decision, otherwise at intervals while active.

    The longer a step lasts, the less each interval adds: they grow with it, from 10 to 60 s. What is not written is
    not lost with the process, since gateways' counters never start anew.
    """
    written = world.written.get(record.name)
    if written is None or written[0] < record.sequence:
        return True
    step_s = world.now_s - float(record.progress.step_since_s)
    interval_s = min(max(step_s / WRITTEN_PER_STEP, WRITE_INTERVAL_S), MAX_WRITE_INTERVAL_S)
    return active and abs(world.now_s - written[1]) >= interval_s


def _started(state: RolloutState | None, roles: Roles, model: ModelObserved, world: Observed) -> RolloutState | None:
    """Return a new rollout if there is traffic to protect, and the candidate has servers; else the present one."""
    candidate, now_s = roles.candidate, world.now_s
    if model.wanted is None or model.wanted.policy is None or roles.stable is None or candidate is None:
        return state
    if candidate.group is None or candidate.failure is not None:
        return state
    if state is not None and not state.ended and state.revision == candidate.revision:
        return state
    # With the time, since a revision may be rolled out more than once.
    name = f"{candidate.revision}-{int(now_s):08x}"
    return RolloutState(name, candidate.revision, started_s=now_s, since_s=now_s, step_since_s=now_s)


def _handle_request(
    model: ModelObserved, roles: Roles, state: RolloutState | None, gates: tuple[str, ...], world: Observed
) -> tuple[RolloutUpdate, RolloutRequest | None]:
    """Return the outcome of the next request made by annotation, and the request itself if it is granted."""
    handled = model.status.handled
    request = next_request(model.annotations, handled)
    if request is None:
        return RolloutUpdate(state, handled=handled), None
    can_return = roles.previous is not None and answers(roles.previous, world)
    refused = refusal(request, state, roles, gates, can_return=can_return)
    if refused is None and is_deferred(request, state) and not has_grown(roles, world):
        return RolloutUpdate(state, handled=handled), None  # until the candidate has the servers for it
    if refused is not None:
        event = Event("Warning", "RequestRefused", refused)
    else:
        event = Event("Normal", "RequestTaken", request.text)
    update = RolloutUpdate(
        state,
        handled=with_handled(handled, request),
        events=(event,),
        retry=refused is None and request.verb == "retry",
        promote=refused is None and promotes_judged(request, roles),
    )
    return update, request if refused is None else None


def _case(state: RolloutState, roles: Roles, model: ModelObserved, world: Observed) -> RolloutCase:
    """Return the case of a rollout with its record in agreement with the status; with a new record if it has none."""
    record = world.records.get(state.rollout)
    if record is None:
        wanted, past = model.wanted, past_of(model, roles.stable, world)
        policy, slo = (wanted.policy, wanted.slo) if wanted is not None else (None, None)
        # A gateway that compares nothing is no reason to wait if Shadow was not requested. Nor is Shadow begun without
        # stable's past: the steps after it are larger, and would take clusters of failures for faults.
        by_default = slo is not None and world.compares and past is not None and bool(past.errors.enough)
        policy, slo = policy or RolloutPolicy(), slo or Slo()
        candidate = roles.candidate
        is_promoted = candidate is not None and candidate.promoted
        policy = policy.promoting() if is_promoted else policy.judging()
        policy = policy.shadowed(by_default=by_default and not is_promoted)
        if wanted is not None and keeps_streams(wanted.assigned.pipeline):
            # A copied frame would be one more of its stream, on stable's server as well.
            policy = policy.without_pairs()
        record = Record(
            name=state.rollout,
            model=model.name,
            stable=roles.stable.revision if roles.stable is not None else "",
            candidate=state.revision,
            policy=policy,
            slo=slo,
            progress=Progress.begun(state.started_s),
            gates=started(measured_gates(policy, slo), past) if past is not None else {},
        )
    return RolloutCase(caught_up(record, state), state, roles, model, world)


def _decide(case: RolloutCase, request: RolloutRequest | None) -> Deciding[tuple[DecisionResult, RolloutState]]:
    """Return the decision on all that is known now, and the state that follows from it."""
    state, model, now_s, before = case.state, case.model, case.world.now_s, case.record.seen
    case, callers = _with_window(case)
    pairs: EvidenceWindow | None = None
    if state.phase is Phase.SHADOW and callers is not None:
        pairs = pairs_between(before if all(case.served) else case.record.seen, case.record.seen, *case.groups, callers)
    callers = callers.of(case.served) if callers is not None else None
    verdicts = verdicts_with(case)
    if verdicts != case.record.verdicts:
        case = replace(case, record=replace(case.record, verdicts=verdicts))
    verb = request.verb if request is not None else ""
    skipped = (*state.skipped, request.gate) if request is not None and verb == "skip-gate" else state.skipped
    learns = case.record.policy.shadow is not None and state.phase in (Phase.SHADOW, Phase.PROGRESSING)
    inputs = DecisionInput(
        now_s=now_s,
        signals=replace(gather_signals(case), asked=int(VERB_SIGNALS.get(verb, Signal.NONE))),
        window=pairs or callers,
        callers=callers if pairs is not None else None,
        past=past_of(model, case.roles.stable, case.world) if learns else None,
        paused=verb == "pause" or (state.paused and verb != "resume"),
        skipped=skipped,
        actor=request.text if request is not None else "segserve",
    )
    result = yield case.record, inputs
    reason, message = explanation(state, result, case.roles)
    if result.changed:
        result = decisions.with_reason(result, reason, message)
    after = state_of(result.record, state.revision)
    return result, replace(after, skipped=result.skipped, reason=reason, message=shortened(message))


def _with_window(case: RolloutCase) -> tuple[RolloutCase, EvidenceWindow | None]:
    """Return the case with the gateways' latest counters, and the window since the former ones if there are any."""
    record, sample = case.record, case.world.samples.get(case.model.name)
    if not sample or sample == record.seen:
        return case, None
    promised_ms = record.slo.p99_milliseconds or record.slo.p95_milliseconds
    hung_after_s = MAX_HUNG_AFTER_S
    if promised_ms is not None:
        hung_after_s = min(max(4 * promised_ms / 1000, 1.0), MAX_HUNG_AFTER_S)
    counted = window_between(
        record.seen,
        sample,
        *case.groups,
        hung=record.hung or HungRequests(),
        slow_after_s=hung_after_s,
    )
    # The first sample is only a reference: what gateways counted before the rollout is not evidence.
    latest = replace(record, seen=counted.seen, hung=counted.hung)
    return replace(case, record=latest), counted.window if record.seen else None
