"""The gates that are measured at the gateways: by kind, what makes one of its spec."""

from __future__ import annotations

from dataclasses import dataclass
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
    return BurnRate(slo.error_percent / 100, spec.factor, spec.long_window.total_seconds(), strict, edges)


@dataclass(frozen=True, slots=True)
class MeasuredKind:
    """All that a rollout has to know of one kind of measured gate.

    `gate_of` takes the gate's spec, the SLO, the rollout's policy and the edges of latency bins in ms. `tolerated` is
    which harm is next to nothing: a share of the candidate's requests. What `is_rule` judges by a plain rule: its
    evidence is infinite or none, and takes nothing of alpha. The others test, and their spec has a `share` of alpha.
    """

    gate_of: Callable[[Any, Slo, RolloutPolicy, Edges], MeasuredGate[Any]]
    tolerated: Callable[[RolloutPolicy], float]
    is_rule: bool


MEASURED: Final[Mapping[str, MeasuredKind]] = {
    "errorRate": MeasuredKind(_error_rate, lambda policy: policy.tolerance.error_percent / 100.0, is_rule=False),
    "latency": MeasuredKind(_latency, lambda policy: policy.tolerance.slow_percent / 100.0, is_rule=False),
    "burnRate": MeasuredKind(_burn_rate, lambda policy: 1.0, is_rule=True),
}


def measured_gates(policy: RolloutPolicy, slo: Slo, edges: Edges = EDGES_MS) -> dict[str, MeasuredGate[Any]]:
    """Return the measured gates of a policy by name, in its order."""
    measured = (gate for gate in policy.gates if gate.gate in MEASURED)
    return {gate.gate: MEASURED[gate.gate].gate_of(gate, slo, policy, edges) for gate in measured}
