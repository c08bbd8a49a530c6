"""Pure decisions of the agent: the next actions and the report, from assignment, server snapshot and agent state."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from segserve_builder.agent.protocol import ModelReport, ModelState, ProofReport, TrialReport
from segserve_builder.agent.state import (
    LOADING,
    OPENING_S,
    READY,
    UNLOADS_ALLOWED,
    Action,
    AgentState,
    AssignedRevision,
    LoadStep,
    Prepare,
    Proof,
    Prove,
    Remove,
    RepairStep,
    Score,
    Serve,
    ServerSnapshot,
    Try,
    Unload,
    is_loaded,
)
from segserve_builder.spec.members import OPENING
from segserve_builder.spec.names import STEP_PREFIX, network_alias


def next_actions(
    assignment: Sequence[AssignedRevision], snapshot: ServerSnapshot, state: AgentState, now_s: float
) -> tuple[Action, ...]:
    """Return the actions to start now, one on each subject that no action is running on. Deterministic."""
    actions: list[Action] = []
    waiting: list[tuple[float, Score]] = []
    for assigned in assignment:
        failure = state.revisions[assigned.revision].failure
        if failure is None or failure.is_due(now_s):
            first = _advance(assigned, snapshot, state, now_s) or _try(assigned, snapshot, state, now_s)
            actions += first
            if not first and _is_proved(assigned, state) and is_loaded(assigned, snapshot, state):
                waiting += _scoring(assigned, state, now_s)
    # Those that wait for longest come first, else a few would keep all others out.
    actions += [action for _, action in sorted(waiting, key=lambda each: each[0])]
    if snapshot.ready:
        actions += _garbage_collect(assignment, snapshot, state)
    busy = {action.subject for action in state.running}
    started = []
    for action in actions:
        if action.subject not in busy:
            busy.add(action.subject)
            started.append(action)
    return tuple(started)


def reports(
    assignment: Sequence[AssignedRevision], snapshot: ServerSnapshot, state: AgentState
) -> tuple[ModelReport, ...]:
    """Return a report for each assigned revision, and for each unassigned model that is still published."""
    names = {assigned.model for assigned in assignment}
    leaving = [
        ModelReport(model=name, revision=ensemble.revision, state=ModelState.UNLOADING, loaded=snapshot.is_active(name))
        for name, ensemble in sorted(snapshot.published.items())
        if name not in names and "." not in name  # `<model>.network` is reported with its model
    ]
    return (*(_report(assigned, snapshot, state) for assigned in assignment), *leaving)


def _report(assigned: AssignedRevision, snapshot: ServerSnapshot, state: AgentState) -> ModelReport:
    own = state.revisions[assigned.revision]
    prepared, failure, proof = own.prepared, own.failure, own.proof
    dead = sorted(snapshot.dead.intersection(prepared.steps)) if prepared else []
    if failure is not None and proof is None:
        stage = ModelState.FAILED
    elif prepared is None:
        stage = ModelState.FETCHING
    elif not is_loaded(assigned, snapshot, state):
        stage = ModelState.LOADING
    else:
        stage = ModelState.READY if proof is not None else ModelState.PROVING
    reason, message = "", ""
    if failure is not None:
        reason, message = failure.reason, failure.message
    elif dead:
        reason, message = "StepDied", f"{'; '.join(_death(step, snapshot) for step in dead)}; reloading it"
    elif stage is ModelState.FETCHING:
        message = own.progress
    elif stage is ModelState.LOADING and not snapshot.ready:
        reason, message = "ServerNotReady", "Triton does not respond"
    elif stage is ModelState.LOADING and prepared is not None:
        waited = [member for member, failure in prepared.outcomes(snapshot.opened).items() if failure is None]
        message = f"{', '.join(waited)} {OPENING}" if waited else ""
    elif stage is ModelState.READY and prepared is not None:
        deaths = [_death(step, snapshot) for step in prepared.steps if step in snapshot.deaths]
        message = f"{'; '.join(deaths)}; it was reloaded" if deaths else ""
    return ModelReport(
        model=assigned.model,
        revision=assigned.revision,
        state=stage,
        reason=reason,
        message=message,
        retryable=failure is not None and failure.retryable,
        attempts=failure.attempts if failure is not None else 0,
        artifact_verified=prepared is not None or (failure is not None and failure.published),
        loaded=is_loaded(assigned, snapshot, state),
        proof=proof.kind if proof is not None and stage is ModelState.READY else None,
        steps=prepared.steps if prepared is not None else (),
        load_s=own.load_s,
        proved=_proof_report(proof) if proof is not None else None,
        trial=_trial_report(assigned, state),
        scores=state.replays.report(assigned.revision),
        answers=state.answers.report(assigned.revision),
    )


def _proof_report(proof: Proof) -> ProofReport:
    return ProofReport(
        golden_sha256=proof.golden_sha256,
        images=proof.images,
        cascade_loss=proof.cascade_loss,
        devices=proof.devices,
        gpus=proof.gpus,
    )


def _trial_report(assigned: AssignedRevision, state: AgentState) -> TrialReport | None:
    if assigned.trial is None:
        return None
    golden = assigned.trial.spec.golden
    own = state.revisions[assigned.revision]
    passed, failure = own.trial_proof, own.trial_failure
    if passed is not None:
        return TrialReport(golden=golden, images=passed.proof.images)
    if failure is not None:
        return TrialReport(golden=golden, reason=failure.reason, message=failure.message)
    return TrialReport(golden=golden)


def _death(step: str, snapshot: ServerSnapshot) -> str:
    death = snapshot.deaths.get(step)
    if death is None:
        return f"a process of {step} died"
    at = datetime.fromtimestamp(death.at_s, UTC)
    return f"a process of {step} died at {at:%H:%M:%S} UTC ({death.cause})"


def _advance(assigned: AssignedRevision, snapshot: ServerSnapshot, state: AgentState, now_s: float) -> list[Action]:
    own = state.revisions[assigned.revision]
    prepared = own.prepared
    if prepared is None or prepared.assigned != assigned:
        return [Prepare(assigned.revision, assigned.model)]
    leaving = {action.name for action in state.running if isinstance(action, Unload | Remove)}
    if not snapshot.ready or leaving.intersection({*prepared.folders, *prepared.tree.public}):
        return []
    if not snapshot.folders.issuperset(prepared.folders):
        return [Prepare(assigned.revision, assigned.model)]
    repairs = [RepairStep(step) for step in prepared.steps if step in snapshot.dead]
    missing = [step for step in prepared.steps if snapshot.states.get(step) not in (READY, LOADING)]
    heavy = prepared.tree.heavy
    if heavy in missing and any(snapshot.states.get(step) != READY for step in prepared.steps if step != heavy):
        missing.remove(heavy)  # Triton would load its steps again, which are yet loading
    if repairs or missing:
        return [*repairs, *map(LoadStep, missing)]
    if any(snapshot.states.get(step) == LOADING for step in prepared.steps):
        return []
    if not all(snapshot.serves(name, assigned.revision, prepared.folders) for name in prepared.tree.public):
        # The former steps serve until all members are open; `Serve` fails with one that cannot be, or takes too long.
        outcomes = prepared.outcomes(snapshot.opened).values()
        is_open = all(outcome == "" for outcome in outcomes)
        if not is_open and is_loaded(assigned, snapshot, state) and not _is_proved(assigned, state):
            return [Prove(assigned.revision, assigned.model)]
        is_opening = None in outcomes and now_s - own.opening_since_s < OPENING_S
        return [] if is_opening else [Serve(assigned.revision, assigned.model)]
    return [] if _is_proved(assigned, state) else [Prove(assigned.revision, assigned.model)]


def _is_proved(assigned: AssignedRevision, state: AgentState) -> bool:
    proof = state.revisions[assigned.revision].proof
    return proof is not None and proof.golden_sha256 == assigned.golden_sha256


def _try(assigned: AssignedRevision, snapshot: ServerSnapshot, state: AgentState, now_s: float) -> list[Action]:
    """Return the trial of a revision that is proved, if one is due."""
    proved = _is_proved(assigned, state) and is_loaded(assigned, snapshot, state)
    own = state.revisions[assigned.revision]
    if assigned.trial is None or not proved or own.trial_proof is not None:
        return []
    failure = own.trial_failure
    if failure is not None and not failure.is_due(now_s):
        return []
    return [Try(assigned.revision, assigned.model, assigned.trial.spec.golden)]


def _scoring(assigned: AssignedRevision, state: AgentState, now_s: float) -> Iterator[tuple[float, Score]]:
    """Yield the golden set that a proved revision is to be scored on, with since when that is due."""
    if assigned.scoring is not None and (due_s := state.replays.due_s(assigned.revision)) <= now_s:
        yield due_s, Score(assigned.revision, assigned.model, assigned.scoring.golden)


def _garbage_collect(
    assignment: Sequence[AssignedRevision], snapshot: ServerSnapshot, state: AgentState
) -> Iterator[Action]:
    """Yield the actions that remove what is not assigned: ensembles before their steps, models before their files."""
    public = {name for assigned in assignment for name in _public_names(assigned)}
    present = snapshot.folders | {name for name in snapshot.states if snapshot.is_active(name)}
    kept = snapshot.used_steps() | {
        step
        for assigned in assignment
        if (prepared := state.revisions[assigned.revision].prepared)
        for step in prepared.folders
    }
    # Until all revisions are proved or failed, an old one's steps may be needed again and a new one's are not known.
    settled = all(
        own.failure is not None
        or (
            is_loaded(assigned, snapshot, state)
            and own.proof is not None
            and own.prepared is not None
            and own.prepared.assigned == assigned
        )
        for assigned, own in ((assigned, state.revisions[assigned.revision]) for assigned in assignment)
    )
    for name in sorted(present):
        is_step = name.startswith(STEP_PREFIX)
        if name in (kept if is_step else public) or (is_step and not settled):
            continue
        if snapshot.states.get(name) in (READY, LOADING):
            yield Unload(name, load_first=state.repeats.count(Unload(name)) >= UNLOADS_ALLOWED)
            continue
        # An ensemble's folder, which names its steps, goes after them.
        steps = snapshot.published[name].folders if name in snapshot.published else frozenset()
        if not snapshot.is_active(name) and not steps & (present - kept):
            yield Remove(name)


def _public_names(assigned: AssignedRevision) -> tuple[str, ...]:
    return (assigned.model, network_alias(assigned.model)) if "network" in assigned.spec.expose else (assigned.model,)
