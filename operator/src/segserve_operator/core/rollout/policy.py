"""The engine's policy, derived from the rollout policy of a model's spec."""

from __future__ import annotations

from typing import Final

from segserve_operator.api.rollout_policy import AlphaGateSpec, RolloutPolicy
from segserve_operator.core.gates import GATES
from segserve_operator.core.gates.base import MeasuredGateType
from segserve_operator.core.rollout.engine import HOLDBACK, OnUndecided, Policy, ShadowPolicy, Step

STEP_S: Final = 60.0
"""Default minDuration of a step if evidence does not set the pace."""
RULE_LEVEL: Final = 1e-12
"""Level of a gate that is a rule: its evidence is infinite or none, and takes no alpha."""


def engine_policy(policy: RolloutPolicy) -> Policy:
    """Return the engine's policy; its levels and tolerances are in the order of `measured_gates`."""
    shares = alpha_shares(policy)
    declared = {spec.gate: GATES[spec.gate] for spec in policy.gates}
    gates = {name: gate for name, gate in declared.items() if isinstance(gate, MeasuredGateType)}
    default_min_s = 0.0 if policy.pace == "evidence" else STEP_S
    steps = tuple(
        Step(
            weight=step.weight,
            minimum_s=default_min_s if step.min_duration is None else step.min_duration.total_seconds(),
            maximum_s=float("inf") if step.max_duration is None else step.max_duration.total_seconds(),
            ask=step.pause,
        )
        for step in policy.steps
    )
    return Policy(
        steps=steps if policy.strategy == "canary" else (),
        levels=tuple(RULE_LEVEL if gate.is_rule else shares[name] for name, gate in gates.items()),
        tolerances=tuple(gate.tolerated_harm(policy) for gate in gates.values()),
        max_bad_requests=float(policy.max_bad_requests),
        min_requests=float(policy.min_requests),
        deadline_s=policy.deadline.total_seconds(),
        on_undecided=OnUndecided(policy.on_undecided),
        bake_s=policy.bake_time.total_seconds(),
        holdback=HOLDBACK if policy.strategy == "canary" else 0.0,
        shadow=_shadow(policy),
        on_breach=tuple(
            gate.on_breach(spec) for spec in policy.gates if isinstance(gate := GATES[spec.gate], MeasuredGateType)
        ),
        serves=policy.strategy != "shadow",
    )


def _shadow(policy: RolloutPolicy) -> ShadowPolicy | None:
    if policy.shadow is None:
        # A rollout that is only judged by copies, and can get none, ends without a verdict.
        return ShadowPolicy(maximum_s=0.0) if policy.strategy == "shadow" else None
    return ShadowPolicy(
        min_requests=float(policy.shadow.min_requests),
        maximum_s=policy.shadow.max_duration.total_seconds(),
        skips_steps=policy.pace == "evidence",
    )


def alpha_shares(policy: RolloutPolicy) -> dict[str, float]:
    """Return the share of alpha of each gate that tests, by name; together they are alpha."""
    testing = [gate for gate in policy.gates if isinstance(gate, AlphaGateSpec)]
    total = sum(gate.alpha_share for gate in testing)
    return {gate.gate: policy.alpha * gate.alpha_share / total for gate in testing}
