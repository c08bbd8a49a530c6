"""The gates that are measured at the gateways: by kind, what makes one of its spec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates.burn_rate import BurnRate
from segserve_operator.core.gates.error_rate import ErrorRate
from segserve_operator.core.gates.latency import Latency

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from segserve_operator.api.rollout_policy import BurnRateGate, RolloutPolicy, Slo
    from segserve_operator.core.gates.base import MeasuredGate

    Edges = tuple[float, ...]


def _error_rate(_: object, slo: Slo, policy: RolloutPolicy, edges: Edges) -> MeasuredGate[Any]:
    return ErrorRate(slo.error_percent / 100, policy.tolerance.error_percent / 100)


def _latency(_: object, slo: Slo, policy: RolloutPolicy, edges: Edges) -> MeasuredGate[Any]:
    told = policy.tolerance
    return Latency(told.slow_percent / 100, 1 + told.latency_percent / 100, slo.latencies, edges)


def _burn_rate(spec: BurnRateGate, slo: Slo, policy: RolloutPolicy, edges: Edges) -> MeasuredGate[Any]:
    strict = tuple((quantile, limit_ms) for quantile, limit_ms in slo.latencies if quantile > 0.5)
    return BurnRate(slo.error_percent / 100, spec.factor, spec.long.total_seconds(), strict, edges)


MEASURED: Final[Mapping[str, Callable[[Any, Slo, RolloutPolicy, Edges], MeasuredGate[Any]]]] = {
    "errorRate": _error_rate,
    "latency": _latency,
    "burnRate": _burn_rate,
}
"""Each takes the gate's spec, the SLO, the rollout's policy and the edges of latency bins in ms."""


def measured_gates(policy: RolloutPolicy, slo: Slo, edges: Edges = EDGES_MS) -> dict[str, MeasuredGate[Any]]:
    """Return the measured gates of a policy by name, in its order."""
    return {gate.gate: MEASURED[gate.gate](gate, slo, policy, edges) for gate in policy.gates if gate.gate in MEASURED}
