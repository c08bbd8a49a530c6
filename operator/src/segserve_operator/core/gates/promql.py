"""The gate `promql`: judges the result of a Prometheus query."""

from __future__ import annotations

from typing import Final

from segserve_operator.api.rollout_policy import PromqlGate, RolloutPolicy
from segserve_operator.core.gates.base import CheckedGateType, Verdict, judge_by_expressions
from segserve_operator.core.gates.checks import CheckResult


def judge(spec: PromqlGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    """Judge the latest query result by the spec's expressions; one that is empty or NaN is Undecided."""
    return judge_by_expressions(spec.name, result, spec.pass_condition, spec.breach_condition)


GATE: Final = CheckedGateType(PromqlGate, judge)
