"""Stable against itself: the engine's own rate of false alarms, on a model's real requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.models.slo import is_due
from segserve_operator.core.rollout.counters import HungRequests
from segserve_operator.core.rollout.decisions import Rules, judge
from segserve_operator.core.rollout.engine import breached
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.statistics.baseline import spread_of
from segserve_operator.core.statistics.exceedance import ExceedanceState
from segserve_operator.core.traffic import shadow_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_operator.core.models.observed import ModelObserved, Observed
    from segserve_operator.core.rollout.counters import Sample

ROUND_S: Final = 3600.0
"""A comparison lasts for so long, as rollouts may; the next one begins anew."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """The two halves of one model's stable group. `rounds` were ended; `false_alarms` of them ended in a breach.

    `dispersion` is the variance of stable's failures over that of independent ones.
    """

    group: str = ""
    began_s: float = 0.0
    measured_s: float = float("-inf")
    seen: Sample = field(default_factory=dict)
    hung: HungRequests = field(default_factory=HungRequests)
    gates: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0
    false_alarms: int = 0
    dispersion: float = 1.0


def tests_itself(model: ModelObserved) -> bool:
    """Tell whether a model's stable revision is to be compared with itself now: no rollout needs its requests."""
    state, wanted = model.status.rollout, model.wanted
    asked = wanted is not None and wanted.policy is not None and wanted.policy.self_test
    return asked and model.roles.candidate is None and (state is None or state.ended)


def self_tests(models: Iterable[ModelObserved], world: Observed) -> dict[str, SelfTest]:
    """Return by model how far these comparisons are, with what was counted now."""
    found: dict[str, SelfTest] = {}
    for model in models:
        stable, sample = model.roles.stable, world.samples.get(model.name)
        if not tests_itself(model) or stable is None or model.wanted is None:
            continue
        known = world.self_tests.get(model.name) or SelfTest()
        policy, slo = model.wanted.policy or RolloutPolicy(), model.wanted.slo or Slo()
        due = sample and is_due(known.measured_s, world.now_s)
        found[model.name] = _measured(known, sample, stable.group, policy, slo, world.now_s) if sample and due else known
    return found


def _measured(known: SelfTest, sample: Sample, group: str, policy: RolloutPolicy, slo: Slo, now_s: float) -> SelfTest:
    if known.group != group:
        known = replace(SelfTest(group, now_s), rounds=known.rounds, false_alarms=known.false_alarms)
    measured = window_between(known.seen, sample, group, shadow_of(group), hung=known.hung)
    rules = Rules.of(policy, slo)
    states = {name: known.gates.get(name) or gate.start() for name, gate in rules.gates.items()}
    if known.seen:
        states = {name: gate.update(states[name], measured.window) for name, gate in rules.gates.items()}
    after = replace(known, measured_s=now_s, seen=measured.seen, hung=measured.hung, gates=states)
    return _round(after, rules, now_s)


def _round(test: SelfTest, rules: Rules, now_s: float) -> SelfTest:
    """Count a breach as the false alarm that it is, and begin anew after that or when the round's time is over."""
    alarm = bool(breached(rules.policy, judge(rules, test.gates)))
    errors = test.gates.get("errorRate")
    dispersion = float(spread_of(errors).max()) if isinstance(errors, ExceedanceState) else 1.0
    if not alarm and abs(now_s - test.began_s) < ROUND_S:
        return replace(test, dispersion=dispersion)
    return replace(
        test,
        began_s=now_s,
        gates={},
        rounds=test.rounds + 1,
        false_alarms=test.false_alarms + alarm,
        dispersion=dispersion,
    )
