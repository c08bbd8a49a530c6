"""segserve's own requests to a quarantined candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.gates.probe import LONGEST_S, probe_outcome
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase


def _checks(case: RolloutCase) -> Iterator[Check]:
    if case.state.phase is Phase.QUARANTINED:
        yield replace(case.check, key=case.key(_name(case)), purpose="probe", seconds=LONGEST_S)


def _signal(case: RolloutCase) -> Signals:
    return Signals(probes=probe_outcome(case.result(_name(case)), case.world.now_s - case.state.since_s))


def _name(case: RolloutCase) -> str:
    return f"probe/{case.state.quarantines}"


SOURCE: Final = VerdictSource(checks=_checks, signal=_signal)
