"""Stable against itself: the rate of false alarms on a model's real requests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.gates import started
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.decisions import Rules, judge
from segserve_operator.core.rollout.engine import breached
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.statistics.baseline import spread_of
from segserve_operator.core.statistics.exceedance import ExceedanceState
from segserve_operator.core.statistics.past import StablePast
from segserve_operator.core.traffic import shadow_of
from segserve_operator.core.world.observed import ModelObserved, Observed, SelfTest, SloWatch
from segserve_operator.core.world.slo import is_due

ROUND_S: Final = 3600.0
"""Length of one comparison, like that of a typical rollout; the next one starts anew."""

Z_95: Final = 1.959963984540054
"""Standard deviations of the normal distribution on each side of its mean that hold 95 % of it."""


def tests_itself(model: ModelObserved) -> bool:
    """Return whether to compare a model's stable revision with itself now, while no rollout needs its requests."""
    state, wanted = model.status.rollout, model.wanted
    enabled = wanted is not None and wanted.policy is not None and wanted.policy.self_test
    return enabled and model.roles.candidate is None and (state is None or state.ended)


def false_alarm_text(test: SelfTest | None) -> str:
    """Return how often stable was taken for worse than itself, with the upper end of the 95 % interval (Wilson)."""
    if test is None or not test.rounds:
        return ""
    share, (_, most) = test.false_alarms / test.rounds, wilson(test.false_alarms, test.rounds)
    return f"{test.false_alarms} of {test.rounds} ({100 * share:.2g} %, at most {100 * most:.2g} %)"


def self_tests(models: Iterable[ModelObserved], world: Observed) -> dict[str, SelfTest]:
    """Return by model how far these comparisons are, with what was counted now."""
    tests: dict[str, SelfTest] = {}
    for model in models:
        stable, sample = model.roles.stable, world.samples.get(model.name)
        if not tests_itself(model) or stable is None or model.wanted is None:
            continue
        test = world.self_tests.get(model.name) or SelfTest()
        policy, slo = model.wanted.policy or RolloutPolicy(), model.wanted.slo or Slo()
        due = sample and is_due(test.measured_s, world.now_s)
        watch = world.watches.get(model.name) or SloWatch()
        past = watch.past if watch.group == stable.group else SloWatch().past
        if sample and due:
            test = _measured(test, sample, stable.group, Rules.of(policy, slo), past, world.now_s)
        tests[model.name] = test
    return tests


def _measured(test: SelfTest, sample: Sample, group: str, rules: Rules, past: StablePast, now_s: float) -> SelfTest:
    if test.group != group:
        test = replace(SelfTest(group, now_s), rounds=test.rounds, false_alarms=test.false_alarms)
    measured = window_between(test.seen, sample, group, shadow_of(group), hung=test.hung)
    states = {**started(rules.gates, past), **test.gates}
    if test.seen:
        states = {name: gate.update(states[name], measured.window) for name, gate in rules.gates.items()}
    after = replace(test, measured_s=now_s, seen=measured.seen, hung=measured.hung, gates=states)
    return _round(after, rules, now_s)


def _round(test: SelfTest, rules: Rules, now_s: float) -> SelfTest:
    """Count a breach as a false alarm, and start a new round after it or when the round's time is over."""
    alarm = bool(breached(rules.policy, judge(rules, test.gates)))
    errors = test.gates.get("errorRate")
    dispersion = float(spread_of(errors.squares, errors.expected).max()) if isinstance(errors, ExceedanceState) else 1.0
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


def wilson(count: int, total: int) -> tuple[float, float]:
    """Return the 95 % interval (low, high) of a share that was `count` of `total` (Wilson 1927); all of 0 to 1 of none.

    Unlike the one by standard deviations it holds for few, and where none or all were counted.
    """
    if not total:
        return 0.0, 1.0
    share, scale = count / total, 1 + Z_95**2 / total
    middle = (share + Z_95**2 / (2 * total)) / scale
    half = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2)) / scale
    return max(0.0, middle - half), min(1.0, middle + half)
