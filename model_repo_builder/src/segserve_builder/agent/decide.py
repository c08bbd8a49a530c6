"""From an assignment, a look at the server and what was proved: what to do next, and what to report. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_builder.agent.state import (
    LOADING,
    READY,
    LoadStep,
    Prepare,
    Prove,
    Remove,
    RepairStep,
    Serve,
    Unload,
)
from segserve_builder.spec.names import STEP_PREFIX, network_alias

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from segserve_builder.agent.memory import AgentState
    from segserve_builder.agent.state import Action, AssignedRevision, Prepared, ServerSnapshot


def next_actions(
    assigned: Sequence[AssignedRevision], look: ServerSnapshot, memory: AgentState, now_s: float
) -> tuple[Action, ...]:
    """Return what to start now, given what is under way; the same view gives the same actions."""
    wished: list[Action] = []
    for told in assigned:
        failure = memory.failures.get(told.revision)
        if failure is None or failure.is_due(now_s):
            wished += _advance(told, look, memory)
    if look.ready:
        wished += _garbage_collect(assigned, look, memory)
    busy = {action.subject for action in memory.running}
    return tuple(action for action in dict.fromkeys(wished) if action.subject not in busy)


def is_loaded(told: AssignedRevision, look: ServerSnapshot, memory: AgentState) -> bool:
    """Tell whether the server holds the whole revision behind its public name, every process of it alive."""
    prepared = memory.prepared.get(told.revision)
    if prepared is None or not look.ready or not _serves(told, told.model, look):
        return False
    return all(look.states.get(step) == READY and step not in look.dead for step in prepared.steps)


def reports(assigned: Sequence[AssignedRevision], look: ServerSnapshot, memory: AgentState) -> tuple[ModelReport, ...]:
    """Return a report of each assigned revision, and of each that is still on its way out."""
    wanted = {told.model for told in assigned}
    leaving = [
        ModelReport(model=name, revision=ensemble.revision, state=ModelState.UNLOADING, loaded=look.is_active(name))
        for name, ensemble in sorted(look.published.items())
        if name not in wanted and not _is_alias(name)
    ]
    return (*(_report(told, look, memory) for told in assigned), *leaving)


def _report(told: AssignedRevision, look: ServerSnapshot, memory: AgentState) -> ModelReport:
    prepared = memory.prepared.get(told.revision)
    failure = memory.failures.get(told.revision)
    proof = memory.proofs.get(told.revision)
    dead = sorted(look.dead.intersection(prepared.steps)) if prepared else []
    state = _state(told, look, memory)
    reason, message = "", ""
    if failure is not None:
        reason, message = failure.reason, failure.message
    elif dead:
        reason, message = "StepDied", f"a process of {', '.join(dead)} died; it is loaded again"
    elif state is ModelState.FETCHING:
        message = memory.progress.get(told.revision, "")
    elif state is ModelState.LOADING and not look.ready:
        reason, message = "ServerNotReady", "the server does not answer"
    return ModelReport(
        model=told.model,
        revision=told.revision,
        state=state,
        reason=reason,
        message=message,
        retryable=failure is not None and failure.retry_at_s is not None,
        artifact_verified=prepared is not None or (failure is not None and failure.published),
        loaded=is_loaded(told, look, memory),
        proof=proof.kind if proof is not None and state is ModelState.READY else None,
        steps=prepared.steps if prepared is not None else (),
        load_s=memory.load_s.get(told.revision, 0.0),
    )


def _state(told: AssignedRevision, look: ServerSnapshot, memory: AgentState) -> ModelState:
    if told.revision in memory.failures:
        return ModelState.FAILED
    if told.revision not in memory.prepared:
        return ModelState.FETCHING
    if not is_loaded(told, look, memory):
        return ModelState.LOADING
    return ModelState.READY if told.revision in memory.proofs else ModelState.PROVING


def _advance(told: AssignedRevision, look: ServerSnapshot, memory: AgentState) -> list[Action]:
    prepared = memory.prepared.get(told.revision)
    if prepared is None or prepared.told != told:
        return [Prepare(told.revision, told.model)]
    leaving = {action.name for action in memory.running if isinstance(action, Unload | Remove)}
    if not look.ready or leaving.intersection({*prepared.steps, *prepared.tree.public}):
        return []
    if not look.folders.issuperset(prepared.steps):
        return [Prepare(told.revision, told.model)]
    if steps := _steps_to_load(prepared, look):
        return steps
    if any(look.states.get(step) == LOADING for step in prepared.steps):
        return []
    if not all(_serves(told, name, look) for name in prepared.tree.public):
        return [Serve(told.revision, told.model)]
    return [] if _is_proved(told, memory) else [Prove(told.revision, told.model)]


def _steps_to_load(prepared: Prepared, look: ServerSnapshot) -> list[Action]:
    repairs = [RepairStep(step) for step in prepared.steps if step in look.dead]
    loads = [LoadStep(step) for step in prepared.steps if look.states.get(step) not in (READY, LOADING)]
    return [*repairs, *loads]


def _serves(told: AssignedRevision, name: str, look: ServerSnapshot) -> bool:
    ensemble = look.loaded.get(name)
    return look.states.get(name) == READY and ensemble is not None and ensemble.revision == told.revision


def _is_proved(told: AssignedRevision, memory: AgentState) -> bool:
    proof = memory.proofs.get(told.revision)
    return proof is not None and proof.golden_sha256 == (told.spec.golden.sha256 if told.spec.golden else None)


def _garbage_collect(
    assigned: Sequence[AssignedRevision], look: ServerSnapshot, memory: AgentState
) -> Iterator[Action]:
    """Yield what takes away all that is not assigned: ensembles, then their steps, each before its files."""
    public = {name for told in assigned for name in _public_names(told)}
    present = look.folders | {name for name in look.states if look.is_active(name)}
    kept = look.used_steps() | {
        step for told in assigned if (found := memory.prepared.get(told.revision)) for step in found.steps
    }
    # Before that an old revision's steps may be needed again, and a new one's are not known yet.
    settled = all(
        told.revision in memory.failures or (is_loaded(told, look, memory) and told.revision in memory.proofs)
        for told in assigned
    )
    for name in sorted(present):
        is_step = name.startswith(STEP_PREFIX)
        if name in (kept if is_step else public) or (is_step and not settled):
            continue
        if look.states.get(name) in (READY, LOADING):
            yield Unload(name)
        elif not look.is_active(name) and not _outlived(name, present - kept, look):
            yield Remove(name)


def _outlived(name: str, leaving: frozenset[str] | set[str], look: ServerSnapshot) -> bool:
    """Tell whether steps of the ensemble `name` are still to go; its folder, which names them, goes last."""
    return name in look.published and bool(look.published[name].steps & leaving)


def _public_names(told: AssignedRevision) -> tuple[str, ...]:
    return (told.model, network_alias(told.model)) if "network" in told.spec.expose else (told.model,)


def _is_alias(name: str) -> bool:
    return "." in name
