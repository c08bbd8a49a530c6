"""The status of a model, derived from the same world as the decisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from segserve_builder.agent.protocol import AssignedModel, ModelReport, ModelState, ProofReport, TrialReport
from segserve_builder.spec.model_spec import Golden
from segserve_operator.core.advance.advance import RolloutUpdate
from segserve_operator.core.advance.explanations import hold_of
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.capture import redaction_of
from segserve_operator.core.models.drift import drift_condition
from segserve_operator.core.models.failures import problem_for_model, refusal_of
from segserve_operator.core.models.kstatus import (
    is_returning,
    observed_generation,
    reconciling,
    stall_of,
    stalled_condition,
)
from segserve_operator.core.models.pool import MAX_CANDIDATE_GROUPS
from segserve_operator.core.models.roles import REFUSED_BEFORE_PROOF, settling, split
from segserve_operator.core.rollout.engine import Wait
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.golden import TrialProgress, name_of, trial_of
from segserve_operator.core.world.observed import (
    Candidate,
    ModelObserved,
    ModelStatus,
    Observed,
    ObservedCondition,
    RoleHolder,
    Roles,
    SloWatch,
)
from segserve_operator.core.world.quorum import ARTIFACT_REASONS, bad_servers, prevailing_report
from segserve_operator.core.world.slo import slo_of, slo_state
from segserve_operator.core.world.streams import split_streams

GOLDEN_REASONS: Final = frozenset({"GoldenFailed", "NonFinite"})


def status_of(
    model: ModelObserved,
    roles: Roles,
    update: RolloutUpdate,
    watches: Mapping[str, SloWatch],
    drifts: Mapping[str, DriftWatch],
    world: Observed,
) -> ModelStatus:
    """Return the status of a model from the roles and rollout just decided."""
    slo, watch = slo_of(model), watches.get(model.name)
    trial = _trial(model, roles, _newest(roles, world), world)
    refused = trial.failure if trial is not None else None
    refusal = FailureReason(refused.reason, _refused(trial, refused)) if trial is not None and refused else None
    stall = stall_of(model, roles, update.state, refusal, world)
    drift = drifts.get(model.name)
    drifting = drift_condition(model, drift, world)
    return ModelStatus(
        observed_generation=observed_generation(model, roles, stall),
        roles=roles,
        conditions=(
            *_conditions(model, roles, update.state, stall, world),
            *(() if drifting is None else (drifting,)),
        ),
        weight=_weight(roles, update.state, world),
        url=f"{world.gateway_url}/v2/models/{model.name}" if roles.stable is not None else "",
        rollout=update.state,
        handled=update.handled,
        slo=slo_state(watch, slo, world.now_s) if slo is not None and watch is not None else "",
        read_generation=model.generation,
        drift=drift.stored if drift is not None else model.status.drift if model.wanted is None else "",
        device=_device(model, roles, world),
    )


def _device(model: ModelObserved, roles: Roles, world: Observed) -> str:
    stable, former = roles.stable, model.status.roles.stable
    if stable is None:
        return ""
    device = world.groups[stable.group].reports(stable.revision).device if stable.group in world.groups else ""
    return device or (model.status.device if former is not None and former.revision == stable.revision else "")


def _weight(roles: Roles, state: RolloutState | None, world: Observed) -> int:
    """Return the percentage of requests that the newest revision gets now, as the routes have it."""
    if roles.stable is None:
        return 0
    _, other = split(roles, state, world)
    return other if roles.candidate is not None else 100 - other


def _conditions(
    model: ModelObserved, roles: Roles, state: RolloutState | None, stall: FailureReason | None, world: Observed
) -> tuple[ObservedCondition, ...]:
    newest = _newest(roles, world)
    serving = _serving(model, roles, world)
    problem = _problem(roles, newest, world)
    trial = _trial(model, roles, newest, world)
    refused = refusal_of(model, roles, world)
    trouble = problem
    if problem is None and refused is not None:
        trouble = refused.reason, refused.message
    progressing = _progressing(model, roles, state, newest, trial, serving, world)
    stalled = stalled_condition(stall)
    ready = replace(serving, type="Ready")
    if model.deleting:
        ready = ObservedCondition("Ready", "False", "Deleting", "the model is being deleted")
    passed = _former_proof(roles, state)
    proof = (_artifact(roles, newest), _loaded(roles, newest, problem), _golden(model, roles, newest, trial))
    return (
        *passed,
        *proof[len(passed) :],
        serving,
        ready,
        progressing,
        _degraded(model, roles, newest, serving, trouble, stall or _impaired(model, roles, state, world)),
        reconciling(progressing, stalled),
        stalled,
    )


def _newest_role(roles: Roles) -> Candidate | RoleHolder | None:
    """Return the candidate, unless it was only judged and has left its servers, else stable."""
    return roles.candidate if roles.candidate is not None and not roles.candidate.judged else roles.stable


def _newest(roles: Roles, world: Observed) -> ModelReport | None:
    """Return the report on the newest revision: the candidate, else stable."""
    newest = _newest_role(roles)
    if newest is None or newest.group is None:
        return None
    return prevailing_report(newest.group, newest.revision, world)


def _bad_servers(roles: Roles, world: Observed) -> FailureReason | None:
    """Return which servers fail to serve one of the model's revisions, while others serve it."""
    moving = roles.stable is not None and settling(roles, world.main)
    arrived = bad_servers(world.main, roles.stable.revision, world, or_all=True) if roles.stable and moving else None
    bad = (bad_servers(group, revision, world) for group, revision in roles.loaded_revisions())
    return next((each for each in (*bad, arrived) if each is not None), None)


def _impaired(model: ModelObserved, roles: Roles, state: RolloutState | None, world: Observed) -> FailureReason | None:
    stable = world.revisions.get(roles.stable.revision) if roles.stable is not None else None
    split = split_streams(stable.pipeline, None, world.pool) if stable is not None else None
    return (
        _shut(model, world)
        or split
        or _bad_servers(roles, world)
        or _not_compared(state, world)
        or _not_captured(model, stable, world)
    )


def _not_compared(state: RolloutState | None, world: Observed) -> FailureReason | None:
    """Return that a rollout is in Shadow and nothing is compared: it goes on once shadow.maxDuration is over."""
    if state is None or state.phase is not Phase.SHADOW or world.pool is None or world.pool.gateway.shadow:
        return None
    text = "rollout.shadow compares nothing, as the pool's gateways have no comparator: set spec.gateway.shadow of it"
    return FailureReason("NoComparator", text)


def _not_captured(model: ModelObserved, stable: AssignedModel | None, world: Observed) -> FailureReason | None:
    """Return why no samples of a model are kept, though its spec requires them."""
    capture = model.wanted.capture if model.wanted is not None else None
    if capture is None or stable is None or world.pool is None:
        return None
    if not world.pool.gateway.capture:
        text = "spec.capture keeps nothing, as the pool's gateways have no service for it: set its spec.gateway.capture"
        return FailureReason("NothingCaptured", text)
    redact = capture.redact
    if redact is None or redaction_of(redact, stable.pipeline, world) is not None:
        return None
    whose = "the model" if redact.model is None else f"the model {redact.model!r}, if it serves here,"
    text = f"spec.capture keeps nothing: {whose} does not have all classes to redact: {', '.join(redact.classes)}"
    return FailureReason("NothingCaptured", text)


def _shut(model: ModelObserved, world: Observed) -> FailureReason | None:
    """Return that the gateway takes no credentials that any of the model's rules is about."""
    taken = world.pool.gateway.credentials if world.pool is not None else None
    if not model.access or taken is None or any(rule.can_admit(taken) for rule in model.access):
        return None
    takes = f"only {', '.join(sorted(taken))}" if taken else "no credentials: it has no spec.gateway.auth"
    text = f"no caller can use the model: no rule of spec.access can match, as the pool's gateway takes {takes}"
    return FailureReason("NobodyAdmitted", text)


def _trial(model: ModelObserved, roles: Roles, report: ModelReport | None, world: Observed) -> TrialProgress | None:
    """Return the trial of the spec's golden set on the newest revision, if servers have proved it with another set."""
    newest = _newest_role(roles)
    if newest is None or report is None or report.state is not ModelState.READY:
        return None
    return trial_of(newest.revision, model, world)


def _problem(roles: Roles, report: ModelReport | None, world: Observed) -> tuple[str, str] | None:
    """Return why the servers of the newest revision's group do not become ready, if it waits for them."""
    newest = _newest_role(roles)
    if newest is None or newest.group is None or world.complete(newest.group, newest.revision):
        return None
    problem = problem_for_model(newest.group, world)
    return (problem.reason, problem.message) if problem is not None else None


def _failed(roles: Roles, report: ModelReport | None) -> tuple[str, str] | None:
    if roles.candidate is not None and roles.candidate.failure is not None and not roles.candidate.judged:
        return roles.candidate.failure.reason, roles.candidate.failure.message
    if report is not None and report.state is ModelState.FAILED:
        return report.reason, report.message
    return None


def _former_proof(roles: Roles, state: RolloutState | None) -> tuple[ObservedCondition, ...]:
    """Return what a candidate that has failed since, and has no server any more, had passed before."""
    candidate = roles.candidate
    if candidate is None or candidate.failure is None or candidate.judged:
        return ()
    # The first decision of a rollout is that servers have proved its revision, or that they cannot.
    rolled_out = state is not None and state.revision == candidate.revision and state.ended and state.sequence > 1
    by_golden = candidate.failure.reason in GOLDEN_REASONS
    if not rolled_out and not by_golden:
        return ()
    ended = f"; {candidate.revision} has failed since, and has no servers"
    passed = (
        ObservedCondition("ArtifactVerified", "True", "DigestMatches", f"the artifact had the expected sha256{ended}"),
        ObservedCondition("RevisionLoaded", "True", "Loaded", f"Triton had loaded it{ended}"),
        ObservedCondition("GoldenPassed", "True", "AnswersMatch", f"its servers had proved it{ended}"),
    )
    return passed[:2] if by_golden else passed


def _artifact(roles: Roles, report: ModelReport | None) -> ObservedCondition:
    failed = _failed(roles, report)
    if failed is not None and failed[0] in ARTIFACT_REASONS:
        return ObservedCondition("ArtifactVerified", "False", *failed)
    if report is not None and report.artifact_verified:
        return ObservedCondition("ArtifactVerified", "True", "DigestMatches", "the artifact has the expected sha256")
    return ObservedCondition("ArtifactVerified", "Unknown", "Waiting", "no server has fetched the artifact yet")


def _loaded(roles: Roles, report: ModelReport | None, problem: tuple[str, str] | None) -> ObservedCondition:
    if report is not None and report.loaded:
        what_happened = f"; {report.message}" if report.message else ""
        text = f"Triton has loaded the newest revision{what_happened}"
        return ObservedCondition("RevisionLoaded", "True", "Loaded", text)
    failed = _failed(roles, report) or problem
    if failed is not None and failed[0] not in ARTIFACT_REASONS | GOLDEN_REASONS:
        return ObservedCondition("RevisionLoaded", "False", *failed)
    return ObservedCondition("RevisionLoaded", "Unknown", "Waiting", "no server has loaded the newest revision yet")


def _golden(
    model: ModelObserved, roles: Roles, report: ModelReport | None, trial: TrialProgress | None
) -> ObservedCondition:
    failed = _failed(roles, report)
    if failed is not None and failed[0] in GOLDEN_REASONS:
        return ObservedCondition("GoldenPassed", "False", *failed)
    if report is None or report.proof is None:
        return ObservedCondition("GoldenPassed", "Unknown", "Waiting", "no server has answered the golden images yet")
    if trial is not None and trial.failure is not None:
        return ObservedCondition("GoldenPassed", "False", trial.failure.reason, _refused(trial, trial.failure))
    if trial is not None and not trial.passed:
        return ObservedCondition("GoldenPassed", "Unknown", "GoldenPending", _pending(trial))
    return _proved(report, trial, model.wanted.assigned.golden if model.wanted is not None else None)


def _proved(report: ModelReport, passed: TrialProgress | None, asked: Golden | None) -> ObservedCondition:
    proof = report.proved
    answered: TrialProgress | TrialReport | None = passed
    # A server reports its former proof until its assignment has the set which it has passed as the revision's.
    if answered is None and report.trial is not None and report.trial.passed and report.trial.golden == asked:
        answered = report.trial
    if answered is not None:
        proof = ProofReport(golden_sha256=answered.golden and answered.golden.sha256, images=answered.images)
    where = _where(report.proved) if report.proved is not None else ""
    if proof is not None and proof.golden_sha256 is not None:
        text = f"{name_of(proof.golden_sha256)}: every image ({proof.images}) was answered within its tolerance"
        if proof.cascade_loss is not None:
            text += f"; the cascade's expected loss is at most {proof.cascade_loss:.4g}"
        return ObservedCondition("GoldenPassed", "True", "AnswersMatch", text + where)
    if proof is None and report.proof == "golden":
        text = "every golden image was answered within its tolerance"
        return ObservedCondition("GoldenPassed", "True", "AnswersMatch", text)
    text = "no golden set: a built-in image showed that the pipeline runs and its answer is finite and repeatable"
    return ObservedCondition("GoldenPassed", "True", "BuiltinOnly", text + where)


def _where(proof: ProofReport) -> str:
    """Return the device of a proof for a condition; nothing on a server without GPUs."""
    if not proof.gpus:
        return ""
    if "gpu" in proof.devices:
        return f"; on {', '.join(proof.gpus)}"
    return f"; on the CPU, although the server has {', '.join(proof.gpus)} (runtime.device gpu does not allow that)"


def _refused(trial: TrialProgress, failure: FailureReason) -> str:
    return f"{trial.name}: {failure.message}; {trial.revision} keeps serving with the golden set that it passed"


def _pending(trial: TrialProgress) -> str:
    if not trial.possible:
        return f"{trial.name} is tried on the next revision: these servers are of another version of segserve"
    return f"{trial.servers} of {trial.wanted} servers have proved {trial.revision} with {trial.name}, while it serves"


def _serving(model: ModelObserved, roles: Roles, world: Observed) -> ObservedCondition:
    stable = roles.stable
    if stable is None:
        return ObservedCondition("TrafficReady", "False", "NoStable", "no revision has passed its golden images yet")
    group = world.groups.get(stable.group)
    if group is None or not group.endpoints(stable.revision):
        report = group.report(stable.revision) if group is not None else None
        why = f": {report.message}" if report is not None and report.message else ""
        text = f"no server of group {stable.group} serves {stable.revision}{why}"
        return ObservedCondition("TrafficReady", "False", "NoServer", text)
    if not world.traffic.answering:
        return ObservedCondition("TrafficReady", "False", "NoGateway", "no gateway accepts requests")
    share = world.traffic.share(model.name, stable.group)
    if share is not None and share.revision == stable.revision and share.weight and share.endpoints:
        part = "all" if share.weight == 100 else f"{share.weight} % of"
        text = f"{stable.revision} in group {stable.group} gets {part} requests"
        return ObservedCondition("TrafficReady", "True", "Serving", text)
    text = f"the gateway does not yet send requests to {stable.revision}"
    if _served(model) and model.roles.stable is not None:
        # The former revision is unloaded only once it gets no requests, so callers do not notice the change.
        return ObservedCondition("TrafficReady", "True", "Switching", text)
    return ObservedCondition("TrafficReady", "False", "Routing", text)


def _served(model: ModelObserved) -> bool:
    return any(condition.type == "TrafficReady" and condition.status == "True" for condition in model.status.conditions)


def _progressing(
    model: ModelObserved,
    roles: Roles,
    state: RolloutState | None,
    report: ModelReport | None,
    trial: TrialProgress | None,
    serving: ObservedCondition,
    world: Observed,
) -> ObservedCondition:
    candidate = roles.candidate
    if model.deleting:
        return ObservedCondition(
            "Progressing", "True", "Deleting", "requests finish first, then servers unload the model"
        )
    if state is not None and not state.ended and state.phase is not Phase.PENDING:
        weight = _weight(roles, state, world)
        text = f"{state.revision} gets {weight} % of requests: {state.message or 'no problem is known'}"
        if hold_of(state) not in ("", Wait.INCIDENT):
            resume = _command("resume", model, state.revision)
            text += f"; {resume} goes on, `segserve rollout abort {model.name}` ends it"
        return ObservedCondition("Progressing", "True", state.phase.label, text)
    if candidate is None or candidate.failure is not None:
        return _settling(model, roles, trial, serving, world)
    if candidate.group is None:
        text = f"{candidate.revision} is queued: at most {MAX_CANDIDATE_GROUPS} candidates are proved concurrently"
        return ObservedCondition("Progressing", "True", "Queued", text)
    if report is None:
        return ObservedCondition(
            "Progressing", "True", "Starting", f"group {candidate.group} starts for {candidate.revision}"
        )
    why = f": {report.message}" if report.message else ""
    group = world.groups.get(candidate.group or "")
    if report.state is ModelState.READY and group is not None:
        why = f": {len(group.proved(candidate.revision))} of {group.wanted} servers answer"
    return ObservedCondition(
        "Progressing", "True", report.state.value, f"{candidate.revision} in group {candidate.group}{why}"
    )


def _settling(
    model: ModelObserved,
    roles: Roles,
    trial: TrialProgress | None,
    serving: ObservedCondition,
    world: Observed,
) -> ObservedCondition:
    main = world.groups.get(world.main)
    if trial is not None and trial.possible and trial.pending:
        return ObservedCondition("Progressing", "True", "GoldenPending", _pending(trial))
    if roles.stable is None or main is None or not settling(roles, world.main):
        return _at_rest(model, roles, serving)
    problem = problem_for_model(world.main, world)
    why = f": {problem.message}" if problem is not None else ""
    return ObservedCondition(
        "Progressing", "True", "Settling", f"{roles.stable.revision} is moving to {world.main}{why}"
    )


def _at_rest(model: ModelObserved, roles: Roles, serving: ObservedCondition) -> ObservedCondition:
    """Return that nothing is in progress, or what the spec still requires."""
    if is_returning(model, roles) and roles.previous is not None:
        text = f"{roles.previous.revision} serves again once a server of group {roles.previous.group} answers for it"
        return ObservedCondition("Progressing", "True", "Returning", text)
    candidate = roles.candidate
    if model.problem is None and candidate is not None and candidate.judged and candidate.failure is not None:
        command = _command("promote", model, candidate.revision)
        text = f"{candidate.revision} gets no requests: {candidate.failure.message}; {command} rolls it out"
        return ObservedCondition("Progressing", "False", Phase.JUDGED.label, text)
    refused = model.problem or (candidate.failure if candidate is not None else None)
    if refused is not None:
        text = f"{refused.reason}: another spec is needed"
        if model.problem is None and candidate is not None and refused.reason not in REFUSED_BEFORE_PROOF:
            text += f", or {_command('retry', model, candidate.revision)}"
        return ObservedCondition("Progressing", "False", "Stalled", text)
    if serving.reason == "Routing":
        return ObservedCondition("Progressing", "True", serving.reason, serving.message)
    return ObservedCondition("Progressing", "False", "Idle", "no change is in progress")


def _command(verb: str, model: ModelObserved, revision: str) -> str:
    """Return what a person types, with a client of segserve or without one."""
    annotation = f"segserve.dev/{verb}={revision}@WORD"
    return f"`segserve rollout {verb} {model.name}` (or the annotation {annotation}, with a new WORD each time)"


def _degraded(
    model: ModelObserved,
    roles: Roles,
    report: ModelReport | None,
    serving: ObservedCondition,
    problem: tuple[str, str] | None,
    further: FailureReason | None,
) -> ObservedCondition:
    if model.problem is not None:
        return ObservedCondition("Degraded", "True", model.problem.reason, model.problem.message)
    failed = _failed(roles, report) or problem
    if failed is not None:
        return ObservedCondition("Degraded", "True", *failed)
    if roles.stable is not None and serving.status == "False" and serving.reason in ("NoServer", "NoGateway"):
        return ObservedCondition("Degraded", "True", serving.reason, serving.message)
    if is_returning(model, roles) and roles.previous is not None:
        text = f"no server of group {roles.previous.group} serves {roles.previous.revision}, which the spec requires"
        return ObservedCondition("Degraded", "True", "NoServer", text)
    if further is not None:
        return ObservedCondition("Degraded", "True", further.reason, further.message)
    return ObservedCondition("Degraded", "False", "AsWanted", "no problem is known")
