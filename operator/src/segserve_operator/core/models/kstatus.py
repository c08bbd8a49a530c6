"""Conditions and generations for tools that follow kstatus (Flux, Argo CD, kubectl wait): Reconciling and Stalled.

They read a resource as failed where Stalled is True, as in progress while Reconciling is True or observedGeneration
lags behind the generation, and as current only with all of them at rest and Ready.
"""

from __future__ import annotations

from segserve_operator.core.advance.explanations import DEADLINE_PASSED, TOO_OFTEN, hold_of
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.deadlines import is_overdue, overdue_reason
from segserve_operator.core.world.observed import ModelObserved, Observed, ObservedCondition, Roles


def stall_of(
    model: ModelObserved, roles: Roles, state: RolloutState | None, trial: FailureReason | None, world: Observed
) -> FailureReason | None:
    """Return why a model's spec is not going to serve without a change, or not in time; None if it does or may.

    `trial` is why the spec's golden set was refused.
    """
    candidate = roles.candidate
    if model.problem is not None:
        return model.problem
    if candidate is not None and candidate.failure is not None and not candidate.judged:
        return candidate.failure
    if state is not None and hold_of(state) in (DEADLINE_PASSED, TOO_OFTEN):
        return FailureReason(state.reason, state.message)
    if candidate is not None and candidate.group is not None and is_overdue(model, candidate, world):
        return overdue_reason(model, candidate.revision, candidate.group, world)
    if candidate is not None and candidate.stalled is not None:
        return candidate.stalled
    return trial


def stalled_condition(stall: FailureReason | None) -> ObservedCondition:
    """Return the condition Stalled."""
    if stall is None:
        return ObservedCondition("Stalled", "False", "AsWanted", "nothing is refused or late")
    return ObservedCondition("Stalled", "True", stall.reason, stall.message)


def reconciling(progressing: ObservedCondition, stalled: ObservedCondition) -> ObservedCondition:
    """Return the condition Reconciling: what progresses, unless it is stalled, which it would hide."""
    if stalled.status == "True":
        return ObservedCondition("Reconciling", "False", "Stalled", f"it is stalled: {stalled.reason}")
    return ObservedCondition("Reconciling", progressing.status, progressing.reason, progressing.message)


def observed_generation(model: ModelObserved, roles: Roles, stall: FailureReason | None) -> int:
    """Return the latest generation of the spec that serves, was judged, or that a condition says is refused or late."""
    wanted = model.wanted.assigned.revision if model.wanted is not None else None
    serves = roles.stable is not None and roles.stable.revision == wanted and roles.candidate is None
    judged = roles.candidate is not None and roles.candidate.judged and roles.candidate.revision == wanted
    if serves or judged or stall is not None or model.deleting:
        return model.generation
    return min(model.status.observed_generation, model.generation)


def is_returning(model: ModelObserved, roles: Roles) -> bool:
    """Return whether the spec requires the former revision again, of which no server answers yet."""
    wanted = model.wanted.assigned.revision if model.wanted is not None else None
    awaited = roles.previous is not None and roles.previous.revision == wanted
    return awaited and (roles.stable is None or roles.stable.revision != wanted)
