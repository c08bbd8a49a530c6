"""What a rollout hears beside the gateways' counts, and what it asks to be found out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np

from segserve_operator.api.rollout_policy import gate_name
from segserve_operator.core.gates.asked import ASKED
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.gates.probe import LONGEST_S, probe_outcome
from segserve_operator.core.models.self_test import tests_itself
from segserve_operator.core.models.slo import SloWatch, is_due, is_watched
from segserve_operator.core.rollout.engine import Heard
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import golden_level
from segserve_operator.core.traffic import twin_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from segserve_operator.api.rollout_policy import Gate
    from segserve_operator.core.gates.checks import Purpose
    from segserve_operator.core.models.observed import ModelObserved, Observed, Roles
    from segserve_operator.core.rollout.record import Record, Standing

GOLDEN: Final = "goldenQuality"


def groups_of(standing: Standing, roles: Roles) -> tuple[str, str]:
    """Return the groups of what the evidence calls stable and candidate; empty where there is none."""
    stable = roles.stable.group if roles.stable is not None else ""
    if standing.phase is Phase.BAKING:
        return roles.previous.group if roles.previous is not None else "", stable
    candidate = roles.candidate.group if roles.candidate is not None else None
    return stable, candidate or ""


def is_about(standing: Standing, roles: Roles) -> bool:
    """Tell whether a rollout that is under way is still the one that the roles ask for."""
    if roles.candidate is not None:
        return roles.candidate.revision == standing.revision
    promoted = standing.phase is Phase.BAKING and roles.stable is not None
    return promoted and roles.stable is not None and roles.stable.revision == standing.revision


def sampled_groups(
    models: Iterable[ModelObserved], watches: Mapping[str, SloWatch], now_s: float
) -> dict[str, tuple[str, str]]:
    """Return by model the groups whose requests are to be counted now: of rollouts always, of SLOs now and then."""
    found: dict[str, tuple[str, str]] = {}
    for model in models:
        standing = model.status.rollout
        if standing is not None and not standing.ended and standing.phase is not Phase.PENDING:
            found[model.name] = groups_of(standing, model.roles)
            continue
        watch = watches.get(model.name) or SloWatch()
        if model.roles.stable is not None and is_watched(model) and is_due(watch.looked_s, now_s):
            group = model.roles.stable.group
            found[model.name] = (group, twin_of(group) if tests_itself(model) else "")
    return found


def hear(record: Record, standing: Standing, roles: Roles, model: ModelObserved, world: Observed) -> Heard:
    """Return all that a decision hears now."""
    group = groups_of(standing, roles)[1]
    share = world.traffic.share(model.name, group)
    known = share is not None and share.revision == standing.revision and bool(share.endpoints)
    answers = group in world.groups and bool(world.groups[group].endpoints(standing.revision))
    verdicts = [_verdict(record, gate) for gate in _asked_gates(record, standing, model)]
    failed = roles.candidate is not None and roles.candidate.failure is not None
    superseded = not failed and not is_about(standing, roles)
    return Heard(
        ready=np.array(known and world.complete(group, standing.revision)),
        lost=np.array(standing.weight > 0 and not answers and not superseded),
        golden=np.array(_golden(record, standing, model), np.int8),
        probes=np.array(_probes(standing, world), np.int8),
        forbidden=np.array(failed or any(found.outcome is Outcome.BREACH for found in verdicts)),
        allowed=np.array(all(found.outcome is Outcome.PASS for found in verdicts)),
        superseded=np.array(superseded),
    )


def checks(
    standing: Standing, record: Record, roles: Roles, model: ModelObserved, world: Observed
) -> tuple[Check, ...]:
    """Return what is to be found out now. An order keeps its key for as long as the rollout wants its answer."""
    return tuple(_orders(standing, record, roles, model, world))


def verdicts_with(record: Record, standing: Standing, model: ModelObserved, world: Observed) -> tuple[Verdict, ...]:
    """Return the verdicts of the record, those renewed of which something was found out."""
    found = {verdict.gate: verdict for verdict in record.verdicts}
    for gate in _asked_gates(record, standing, model):
        name = gate_name(gate)
        finding = world.findings.get(_key(standing, gate))
        if finding is not None and finding.done:
            found[name] = ASKED[gate.gate](gate, finding, record.policy, golden_level(record.policy))
    return tuple(found.values())


def _asked_gates(record: Record, standing: Standing, model: ModelObserved) -> Iterator[Gate]:
    """Yield the gates that somebody has to be asked for, but those that were put aside or have nothing to ask."""
    for gate in record.policy.gates:
        if gate.gate not in ASKED or gate_name(gate) in standing.skipped:
            continue
        if gate.gate != GOLDEN or (_has_golden(model) and record.policy.strategy != "immediate"):
            yield gate


def _has_golden(model: ModelObserved) -> bool:
    return model.wanted is not None and model.wanted.assigned.golden is not None


def _verdict(record: Record, gate: Gate) -> Verdict:
    name = gate_name(gate)
    known = next((verdict for verdict in record.verdicts if verdict.gate == name), None)
    return known or Verdict(name, Outcome.UNDECIDED, "NotAsked", "nothing is known yet")


def _golden(record: Record, standing: Standing, model: ModelObserved) -> int:
    asked = [gate for gate in _asked_gates(record, standing, model) if gate.gate == GOLDEN]
    outcomes = {_verdict(record, gate).outcome for gate in asked}
    if Outcome.BREACH in outcomes:
        return -1
    return int(not outcomes or outcomes == {Outcome.PASS})


def _probes(standing: Standing, world: Observed) -> int:
    finding = world.findings.get(_probe_key(standing))
    return probe_outcome(finding, world.now_s - standing.since_s) if finding is not None else 0


def _probe_key(standing: Standing) -> str:
    return f"{standing.rollout}/probe/{standing.quarantines}"


def _key(standing: Standing, gate: Gate) -> str:
    return f"{standing.rollout}/{gate_name(gate)}"


def _orders(
    standing: Standing, record: Record, roles: Roles, model: ModelObserved, world: Observed
) -> Iterator[Check]:
    if standing.ended or standing.phase is Phase.PENDING or roles.stable is None:
        return
    stable, candidate = groups_of(standing, roles)
    order = Check(
        key="",
        model=model.name,
        purpose="check",
        stable_group=stable,
        stable=record.stable,
        candidate_group=candidate,
        candidate=standing.revision,
        revision=world.revisions.get(standing.revision),
        phase=standing.phase.label,
        weight=standing.weight,
    )
    if standing.phase is Phase.QUARANTINED:
        yield replace(order, key=_probe_key(standing), purpose="probe", seconds=LONGEST_S)
    for gate in _asked_gates(record, standing, model):
        purpose: Purpose = "golden" if gate.gate == GOLDEN else "check"
        every_s = gate.interval.total_seconds() if hasattr(gate, "interval") else np.inf
        yield replace(
            order, key=_key(standing, gate), purpose=purpose, gate=gate_name(gate), spec=gate, every_s=every_s
        )
