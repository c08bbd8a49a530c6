"""The registry of gates: a new one is a line in `GATES`, its spec in `api.rollout_policy`, and mostly a file here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from segserve_operator.api.rollout_policy import CheckedGateSpec, PromqlGate, RolloutPolicy, Slo, WebhookGate
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates import burn_rate, error_rate, golden_quality, latency, mask_agreement, resource
from segserve_operator.core.gates.base import (
    CheckedGateType,
    Edges,
    GateType,
    MeasuredGate,
    MeasuredGateType,
    judge_query,
    judge_webhook,
)
from segserve_operator.core.statistics.past import StablePast

__all__ = ["GATES", "checked_gate", "informed", "measured_gates", "purpose_of", "started", "started_again"]

GATES: Final[Mapping[str, GateType]] = {
    "errorRate": error_rate.GATE,
    "latency": latency.GATE,
    "burnRate": burn_rate.GATE,
    "goldenQuality": golden_quality.GATE,
    "resource": resource.GATE,
    "webhook": CheckedGateType(WebhookGate, judge_webhook),
    "promql": CheckedGateType(PromqlGate, judge_query),
    "maskAgreement": mask_agreement.GATE,
}
"""Gate types by the name that resources use."""


def measured_gates(policy: RolloutPolicy, slo: Slo, edges: Edges = EDGES_MS) -> dict[str, MeasuredGate[Any]]:
    """Return the policy's gates that measure requests, by name in its order."""
    declared = ((spec, GATES[spec.gate]) for spec in policy.gates)
    return {
        spec.gate: gate_type.build(spec, slo, policy, edges)
        for spec, gate_type in declared
        if isinstance(gate_type, MeasuredGateType)
    }


def started(gates: Mapping[str, MeasuredGate[Any]], past: StablePast, shape: tuple[int, ...] = ()) -> dict[str, Any]:
    """Return the gates' states at the start of a rollout, by name; gates that compare with stable have its past."""
    return {name: gate.start(shape, past) for name, gate in gates.items()}


def informed(gates: Mapping[str, MeasuredGate[Any]], states: Mapping[str, Any], past: StablePast) -> dict[str, Any]:
    """Return the gates' states, by name, with what stable's past shows by now."""
    return {name: gate.informed(states[name], past) for name, gate in gates.items() if name in states}


def started_again(gates: Mapping[str, MeasuredGate[Any]], former: Mapping[str, Any]) -> dict[str, Any]:
    """Return the gates' states at the start of the same rollout, from later states of the same gates, by name."""
    return {name: gate.again(former[name]) if name in former else gate.start() for name, gate in gates.items()}


def checked_gate(name: str) -> CheckedGateType | None:
    """Return the gate type of that name if it judges checks, else None."""
    gate_type = GATES[name]
    return gate_type if isinstance(gate_type, CheckedGateType) else None


def purpose_of(spec: CheckedGateSpec) -> str:
    """Return the purpose of the gate of a spec."""
    gate_type = checked_gate(spec.gate)
    return gate_type.purpose if gate_type is not None else ""
