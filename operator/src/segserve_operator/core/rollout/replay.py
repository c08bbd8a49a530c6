"""Replay of a rollout's record: every decision repeated on its recorded inputs, or decided by another policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates import started_again
from segserve_operator.core.rollout.decisions import Rules, after_shadow, judge, repeat
from segserve_operator.core.rollout.engine import Progress, Signals, next_transition, watch
from segserve_operator.core.rollout.phases import ENDED, Phase, Signal
from segserve_operator.core.rollout.record import Record, window_of


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision as recorded and as repeated; both are canonical JSON."""

    sequence: int
    at_s: float
    recorded: str
    derived: str

    @property
    def same(self) -> bool:
        """Whether they are equal, byte for byte."""
        return self.recorded == self.derived


@dataclass(frozen=True, slots=True)
class WhatIf:
    """A decision that another policy would have made."""

    at_s: float
    signal: str
    phase: Phase
    weight: int


def replay(record: Record) -> tuple[Replayed, ...]:
    """Repeat every decision that has recorded inputs.

    Raises ValueError if inputs cannot be read.
    """
    result = (decision for decision in record.decisions if decision.inputs)
    return tuple(
        Replayed(each.sequence, each.at_s, each.result, repeat(each, record.policy, record.slo)) for each in result
    )


def what_if(record: Record, policy: RolloutPolicy) -> tuple[WhatIf, ...]:
    """Return what another policy would have decided on the recorded requests.

    The requests were counted at the weights in force then, and are kept in rows of 1, 15 and 60 s, which limits the
    resolution. Pairs of Shadow are evidence only in Shadow, and requests of callers elsewhere. Checks, probes and
    people's requests are assumed to be in order.
    """
    return tuple(_decisions(record, policy))


def _decisions(record: Record, policy: RolloutPolicy) -> Iterator[WhatIf]:
    rules = Rules.of(policy, record.slo)
    states = started_again(rules.gates, record.gates)
    begun_s = record.rows[0].at_s - record.rows[0].seconds if record.rows else 0.0
    progress = replace(Progress.begun(begun_s), phase=np.array(Phase.GOLDEN, np.int8))
    for row in record.rows:
        phase = Phase(int(progress.phase))
        in_shadow, to_shadow = phase is Phase.SHADOW, phase is Phase.GOLDEN and rules.policy.shadow is not None
        if to_shadow or in_shadow == (row.pairs is not None):
            window = window_of(row, len(EDGES_MS) + 1)
            states = {name: gate.update(states[name], window) for name, gate in rules.gates.items()}
            progress = watch(progress, window, row.at_s)
        transition = next_transition(rules.policy, progress, judge(rules, states), Signals(), row.at_s)
        states, transition = after_shadow(rules, states, progress, transition)
        progress = transition.progress
        phase, signal = Phase(int(progress.phase)), Signal(int(transition.signal))
        if signal is not Signal.NONE:
            yield WhatIf(row.at_s, signal.name, phase, round(float(transition.weight)))
        if phase in ENDED:
            return
