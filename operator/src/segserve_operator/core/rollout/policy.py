"""What the rollout engine goes by, from what the model's spec says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

from segserve_operator.core.gates import MEASURED, measured_gates
from segserve_operator.core.rollout.engine import OnUndecided, Policy, Step

if TYPE_CHECKING:
    from segserve_operator.api.rollout_policy import RolloutPolicy, Slo

STEP_S: Final = 60.0
"""Without a minimum of its own a step lasts so long, where evidence does not set the pace."""
RULE_LEVEL: Final = 1e-12
"""The level of a gate that is a rule: its evidence is infinite or none, and takes nothing of alpha."""


@runtime_checkable
class _TestingGate(Protocol):
    """The spec of a gate that takes a part of alpha."""

    @property
    def alpha_share(self) -> float: ...


def engine_policy(policy: RolloutPolicy, slo: Slo) -> Policy:
    """Return the engine's policy; its levels and tolerances are in the order of `measured_gates`."""
    shares, gates = _shares(policy), measured_gates(policy, slo)
    shortest = 0.0 if policy.pace == "evidence" else STEP_S
    steps = tuple(
        Step(
            weight=step.weight,
            minimum_s=shortest if step.min_duration is None else step.min_duration.total_seconds(),
            maximum_s=float("inf") if step.max_duration is None else step.max_duration.total_seconds(),
            ask=step.pause,
        )
        for step in policy.steps
    )
    return Policy(
        steps=steps if policy.strategy == "canary" else (),
        levels=tuple(RULE_LEVEL if MEASURED[gate].is_rule else shares[gate] for gate in gates),
        tolerances=tuple(MEASURED[gate].tolerated(policy) for gate in gates),
        max_bad_requests=float(policy.max_bad_requests),
        min_requests=float(policy.min_requests),
        deadline_s=policy.deadline.total_seconds(),
        on_undecided=OnUndecided(policy.on_undecided),
        bake_s=policy.bake_time.total_seconds(),
        holdback=float(policy.holdback) if policy.strategy == "canary" else 0.0,
        max_quarantines=float(policy.max_quarantines),
    )


def golden_level(policy: RolloutPolicy) -> float:
    """Return the part of alpha that goldenQuality has; 0 where it is not declared."""
    return _shares(policy).get("goldenQuality", 0.0)


def _shares(policy: RolloutPolicy) -> dict[str, float]:
    """Return each testing gate's part of alpha; together they are alpha."""
    testing = [gate for gate in policy.gates if isinstance(gate, _TestingGate)]
    whole = sum(gate.alpha_share for gate in testing)
    return {gate.gate: policy.alpha * gate.alpha_share / whole for gate in testing}
