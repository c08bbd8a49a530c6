"""The gate `promql`: what a query to Prometheus says of a candidate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_operator.api.rollout_policy import gate_name
from segserve_operator.core.gates.answers import by_expressions

if TYPE_CHECKING:
    from segserve_operator.api.rollout_policy import PromqlGate, RolloutPolicy
    from segserve_operator.core.gates.base import Verdict
    from segserve_operator.core.gates.checks import CheckResult


def judge(spec: PromqlGate, finding: CheckResult, policy: RolloutPolicy, level: float) -> Verdict:
    """Judge by what the expressions say of the latest result; one that is empty or NaN says nothing."""
    del policy, level  # the user's own rule has no tolerance, and takes nothing of alpha
    return by_expressions(gate_name(spec), finding, spec.pass_condition, spec.breach_condition)
