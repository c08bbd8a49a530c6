"""The gate `webhook`: judges the answer of a service of the user's own."""

from __future__ import annotations

from typing import Final

from segserve_operator.api.rollout_policy import RolloutPolicy, WebhookGate
from segserve_operator.core.gates.base import CheckedGateType, Verdict, judge_by_expressions
from segserve_operator.core.gates.checks import CheckResult


def judge(spec: WebhookGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    """Judge the latest answer by the spec's expressions."""
    return judge_by_expressions(spec.name, result, spec.pass_condition, spec.breach_condition)


GATE: Final = CheckedGateType(WebhookGate, judge)
