"""What every gate offers: evidence in, verdict out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.core.evidence import Judgement, Look

State = TypeVar("State")


class Outcome(StrEnum):
    """What a gate says. No data is Undecided, never a pass."""

    PASS = "Pass"
    BREACH = "Breach"
    UNDECIDED = "Undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A gate's outcome with the numbers that made it. `progress` is the evidence's share (0 to 1) of its bound."""

    gate: str
    outcome: Outcome
    reason: str
    message: str
    progress: float = 0.0
    numbers: Mapping[str, float] = field(default_factory=dict)


class MeasuredGate(Protocol[State]):
    """Judges what is counted at the gateways. Pure; a state is a frozen dataclass of float64 arrays.

    All arrays have leading axes, none for one rollout and [runs] in a simulation, so that ten thousand rollouts are
    judged by the very code that judges one.
    """

    def start(self, shape: tuple[int, ...] = ()) -> State:
        """Return the state before any look."""
        ...

    def update(self, state: State, look: Look) -> State:
        """Return the state after one more look. What a look has not seen changes nothing."""
        ...

    def judge(self, state: State) -> Judgement:
        """Return what all looks together amount to."""
        ...

    def explain(self, state: State, level: float) -> Verdict:
        """Say it of one rollout (no leading axes), whose proof is worth `level` (its share of alpha)."""
        ...
