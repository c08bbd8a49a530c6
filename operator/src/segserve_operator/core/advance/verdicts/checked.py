"""Gates that an adapter checks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from segserve_operator.api.rollout_policy import gate_name
from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.gates import checked_gate
from segserve_operator.core.gates.base import Verdict
from segserve_operator.core.gates.checks import Check


def _checks(case: RolloutCase) -> Iterator[Check]:
    for gate in case.gates_for("check"):
        name, interval_s = gate_name(gate), gate.interval.total_seconds()
        yield replace(case.check, key=case.key(name), gate=name, spec=gate, interval_s=interval_s)


def _verdicts(case: RolloutCase) -> Iterator[Verdict]:
    for gate in case.gates_for("check"):
        result, gate_type = case.result(gate_name(gate)), checked_gate(gate.gate)
        if result is not None and gate_type is not None:
            yield gate_type.judge(gate, result, case.record.policy, case.shares.get(gate.gate, 0.0))


SOURCE: Final = VerdictSource(checks=_checks, verdicts=_verdicts, signal=lambda case: case.signal("check"))
