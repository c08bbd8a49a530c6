"""The gates that ask: by kind, what makes a verdict of a finding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_operator.core.gates import golden_quality, promql, resource, webhook

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from segserve_operator.api.rollout_policy import RolloutPolicy
    from segserve_operator.core.gates.base import Verdict
    from segserve_operator.core.gates.checks import CheckResult

ASKED: Final[Mapping[str, Callable[[Any, CheckResult, RolloutPolicy, float], Verdict]]] = {
    "goldenQuality": golden_quality.judge,
    "resource": resource.judge,
    "webhook": webhook.judge,
    "promql": promql.judge,
}
"""Each takes the gate's spec, its latest finding, the rollout's policy, and the gate's share of alpha; all are pure."""
