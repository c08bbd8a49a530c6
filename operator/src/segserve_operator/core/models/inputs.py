"""The inputs of a decision besides the gateways' counters: signals from the world, and the checks to run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from segserve_operator.api.rollout_policy import CheckedGateSpec, gate_name
from segserve_operator.core.failure import UNKNOWN_FIELD
from segserve_operator.core.gates import checked_gate, drift, purpose_of
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.gates.probe import LONGEST_S, probe_outcome
from segserve_operator.core.models.ab_queries import query_check, query_verdict
from segserve_operator.core.models.answer_comparisons import drift_verdict
from segserve_operator.core.models.deadlines import is_overdue
from segserve_operator.core.models.golden_scores import gave_up, golden_gates, golden_verdicts, is_golden
from segserve_operator.core.models.observed import ModelObserved, Observed, Roles, SloWatch
from segserve_operator.core.models.quorum import may_take_over
from segserve_operator.core.models.self_test import tests_itself
from segserve_operator.core.models.sizes import has_grown
from segserve_operator.core.models.slo import is_due, is_watched
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import alpha_shares
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import shadow_of


def groups_of(state: RolloutState, roles: Roles) -> tuple[str, str]:
    """Return the groups that the evidence calls stable and candidate; an empty name if there is none."""
    stable = roles.stable.group if roles.stable is not None else ""
    if state.phase is Phase.BAKING:
        # After promotion the candidate has the stable role, and is compared with its predecessor.
        return roles.previous.group if roles.previous is not None else "", stable
    candidate = roles.candidate.group if roles.candidate is not None else None
    return stable, candidate or ""


def is_about(state: RolloutState, roles: Roles) -> bool:
    """Tell whether a rollout in progress is still the one that the roles require."""
    if roles.candidate is not None:
        return roles.candidate.revision == state.revision
    promoted = state.phase is Phase.BAKING and roles.stable is not None
    return promoted and roles.stable is not None and roles.stable.revision == state.revision


def sampled_groups(
    models: Iterable[ModelObserved], watches: Mapping[str, SloWatch], now_s: float
) -> dict[str, tuple[str, str]]:
    """Return by model the two groups to count requests of now: in every pass for rollouts, at intervals for SLOs."""
    groups: dict[str, tuple[str, str]] = {}
    for model in models:
        state = model.status.rollout
        if state is not None and not state.ended and state.phase is not Phase.PENDING:
            groups[model.name] = groups_of(state, model.roles)
            continue
        watch = watches.get(model.name) or SloWatch()
        if model.roles.stable is not None and is_watched(model) and is_due(watch.measured_s, now_s):
            group = model.roles.stable.group
            groups[model.name] = (group, shadow_of(group) if tests_itself(model) else "")
    return groups


def gather_signals(record: Record, state: RolloutState, roles: Roles, model: ModelObserved, world: Observed) -> Signals:
    """Return the signals for a decision: servers, verdicts of checked gates, probes, and a change of the spec."""
    group = groups_of(state, roles)[1]
    share = world.traffic.share(model.name, group)
    is_routed = share is not None and share.revision == state.revision and bool(share.endpoints)
    overdue = is_overdue(model, roles.candidate, world)
    answers = group in world.groups and bool(world.groups[group].endpoints(state.revision))
    verdicts = [_verdict(record, gate) for gate in _checked_gates(record, state, model)]
    failed = roles.candidate is not None and roles.candidate.failure is not None
    superseded = not failed and not is_about(state, roles)
    probe = world.check_results.get(_probe_key(state))
    return Signals(
        ready=np.array(is_routed and may_take_over(group, state.revision, roles.stable, world, overdue=overdue)),
        grown=np.array(has_grown(roles, world)),
        lost=np.array(state.weight > 0 and not answers and not superseded),
        golden=np.array(_golden(record, state, model, world), np.int8),
        probes=np.array(probe_outcome(probe, world.now_s - state.since_s), np.int8),
        forbidden=np.array(failed or any(verdict.outcome is Outcome.BREACH for verdict in verdicts)),
        held=np.array(any(drift.is_held(verdict) for verdict in verdicts)),
        allowed=np.array(
            not _is_unknown(model) and all(_allows(verdict, record, state, model, world) for verdict in verdicts)
        ),
        superseded=np.array(superseded),
        counted=np.array(world.compares and bool(world.samples.get(model.name))),
    )


def verdicts_with(record: Record, state: RolloutState, model: ModelObserved, world: Observed) -> tuple[Verdict, ...]:
    """Return the record's verdicts, those of checked gates replaced if checks or servers have new results."""
    verdicts = {verdict.gate: verdict for verdict in record.verdicts}
    shares = alpha_shares(record.policy)
    groups = groups_of(state, model.roles)
    for verdict in golden_verdicts(record, state, groups, model, world, shares):
        verdicts[verdict.gate] = verdict
    if (queried := query_verdict(state, world)) is not None:
        verdicts[queried.gate] = queried
    if (compared := drift_verdict(record, state, model, world, shares)) is not None:
        verdicts[compared.gate] = compared
    for gate in _checked_gates(record, state, model):
        result, gate_type = world.check_results.get(_key(state, gate)), checked_gate(gate.gate)
        if result is not None and result.done and gate_type is not None:
            verdicts[gate_name(gate)] = gate_type.judge(gate, result, record.policy, shares.get(gate.gate, 0.0))
    return tuple(verdicts.values())


def checks(
    state: RolloutState, record: Record, roles: Roles, model: ModelObserved, world: Observed
) -> tuple[Check, ...]:
    """Return the checks to run now. A check keeps its key for as long as the rollout needs its result."""
    if state.ended or state.phase is Phase.PENDING or roles.stable is None:
        return ()
    stable, candidate = groups_of(state, roles)
    template = Check(
        key="",
        model=model.name,
        purpose="check",
        stable_group=stable,
        stable=record.stable,
        candidate_group=candidate,
        candidate=state.revision,
        phase=state.phase.label,
        weight=state.weight,
    )
    gates = (
        replace(
            template,
            key=_key(state, gate),
            gate=gate_name(gate),
            spec=gate,
            interval_s=gate.interval.total_seconds(),
        )
        for gate in _checked_gates(record, state, model)
        if purpose_of(gate) == "check"
    )
    query = query_check(state, record, template)
    if query is not None:
        return (query, *gates)
    if state.phase is not Phase.QUARANTINED:
        return tuple(gates)
    return (replace(template, key=_probe_key(state), purpose="probe", seconds=LONGEST_S), *gates)


def _checked_gates(record: Record, state: RolloutState, model: ModelObserved) -> Iterator[CheckedGateSpec]:
    """Yield the gates that judge checks, except those that are skipped, and golden ones without a golden set."""
    golden = golden_gates(record, state, model)
    for gate in record.policy.gates:
        if not isinstance(gate, CheckedGateSpec) or gate_name(gate) in state.skipped:
            continue
        if not is_golden(gate) or gate in golden:
            yield gate


def _is_unknown(model: ModelObserved) -> bool:
    """Tell whether a newer release may have set conditions for this rollout that are not known here."""
    return model.problem is not None and model.problem.reason == UNKNOWN_FIELD


def _verdict(record: Record, gate: CheckedGateSpec) -> Verdict:
    name = gate_name(gate)
    verdict = next((verdict for verdict in record.verdicts if verdict.gate == name), None)
    return verdict or Verdict(name, Outcome.UNDECIDED, "NotChecked", "no check has finished yet")


def _golden(record: Record, state: RolloutState, model: ModelObserved, world: Observed) -> int:
    """Return 1 if every golden gate passes, -1 if one breaches or its scores cannot be had in time, else 0."""
    verdicts = [_verdict(record, gate) for gate in golden_gates(record, state, model)]
    lacking = any(gave_up(verdict, state, model, world) for verdict in verdicts)
    if any(verdict.outcome is Outcome.BREACH for verdict in verdicts) or (lacking and not _goes_on(record)):
        return -1
    return int(all(_allows(verdict, record, state, model, world) for verdict in verdicts))


def _allows(verdict: Verdict, record: Record, state: RolloutState, model: ModelObserved, world: Observed) -> bool:
    """Tell whether a verdict lets the rollout go on."""
    return verdict.outcome is Outcome.PASS or (_goes_on(record) and gave_up(verdict, state, model, world))


def _goes_on(record: Record) -> bool:
    """Tell whether the policy promotes what nobody could judge."""
    return record.policy.on_undecided == "Promote"


def _probe_key(state: RolloutState) -> str:
    return f"{state.rollout}/probe/{state.quarantines}"


def _key(state: RolloutState, gate: CheckedGateSpec) -> str:
    return f"{state.rollout}/{gate_name(gate)}"
