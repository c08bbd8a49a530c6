"""The inputs of a decision besides the gateways' counters: signals from the world, and the checks to run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np

from segserve_operator.core.advance.case import RolloutCase, VerdictSource, groups_of
from segserve_operator.core.advance.sizes import has_grown
from segserve_operator.core.advance.verdicts import checked, golden, probe
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.world.observed import ModelObserved, SloWatch
from segserve_operator.core.world.slo import is_due, is_watched

SOURCES: Final[tuple[VerdictSource, ...]] = (
    probe.SOURCE,
    golden.SOURCE,
    checked.SOURCE,
)
"""The sources of verdicts: a gate that needs evidence of its own is a file in `verdicts`, and a line here."""


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
            groups[model.name] = (model.roles.stable.group, "")
    return groups


def gather_signals(case: RolloutCase) -> Signals:
    """Return the signals for a decision: of the servers, of a change of the spec, and of all sources of verdicts."""
    model, signals = case.model, [source.signal(case) for source in SOURCES]
    return Signals(
        ready=np.array(case.ready),
        grown=np.array(has_grown(case.roles, case.world)),
        lost=np.array(case.lost),
        golden=np.array(min(each.golden for each in signals), np.int8),
        probes=np.array(sum(each.probes for each in signals), np.int8),
        forbidden=np.array(case.failed or any(each.forbidden for each in signals)),
        allowed=np.array(all(each.allowed for each in signals)),
        superseded=np.array(case.superseded),
        counted=np.array(case.world.compares and bool(case.world.samples.get(model.name))),
    )


def verdicts_with(case: RolloutCase) -> tuple[Verdict, ...]:
    """Return the record's verdicts, replaced where a source has new ones."""
    verdicts = {verdict.gate: verdict for verdict in case.record.verdicts}
    for source in SOURCES:
        verdicts |= {verdict.gate: verdict for verdict in source.verdicts(case)}
    return tuple(verdicts.values())


def checks(case: RolloutCase) -> tuple[Check, ...]:
    """Return the checks to run now."""
    if case.state.ended or case.state.phase is Phase.PENDING or case.roles.stable is None:
        return ()
    return tuple(check for source in SOURCES for check in source.checks(case))
