"""What gates judge: requests counted at the gateways, of the stable revision and of the candidate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float64]
    Bools: TypeAlias = NDArray[np.bool_]
    Ints: TypeAlias = NDArray[np.int8]

STABLE: Final = 0
CANDIDATE: Final = 1
_E24: Final = (10, 11, 12, 13, 15, 16, 18, 20, 22, 24, 27, 30, 33, 36, 39, 43, 47, 51, 56, 62, 68, 75, 82, 91)
EDGES_MS: Final = (*(float(f"{digits}e{power}") for power in range(-1, 4) for digits in _E24), 100_000.0)
"""Edges of latency bins, in milliseconds: the E24 series. Envoy's own bins have two digits, so these are exact."""


@dataclass(frozen=True, slots=True)
class Look:
    """What was counted between two moments. All arrays have the same leading axes: none, or [runs] in a simulation.

    seconds [...]: how long it was.
    requests [..., 2]: attempts that ended; of stable (0) and candidate (1). One that was asked again is two.
    errors [..., 2]: those of them that failed by the server's fault.
    latencies [..., 2, K + 1]: answers by latency. Bin i holds those of at least `edges[i - 1]` and less than `edges[i]`
    ms, the last also what timed out, was given up by its caller, or has hung for too long: that at once, and not again
    when it ends. Failures without an answer of a server are in no bin, and so the sum may be less than `requests` or,
    while something hangs, more.
    """

    seconds: Floats
    requests: Floats
    errors: Floats
    latencies: Floats

    @classmethod
    def nothing(cls, shape: tuple[int, ...] = (), *, edges: int = len(EDGES_MS)) -> Look:
        """Return a look that saw nothing."""
        return cls(np.zeros(shape), np.zeros((*shape, 2)), np.zeros((*shape, 2)), np.zeros((*shape, 2, edges + 1)))


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a gate makes of all looks so far. All arrays have the looks' leading axes.

    breach: log of the evidence that the candidate is worse than allowed; proof at the level a from log(1 / a) on.
    incident: stable is out of bounds; breach asks for more then.
    shared: both are out of bounds now, as far as is known: that holds a rollout, a broken stable alone does not.
    enough: there are data to judge by.
    harm: an upper bound, valid at every look, of the share of the candidate's requests that stable would have
    answered well and the candidate does not; 1 before any data.
    excess: how many such requests there were so far, as far as can be told.
    """

    breach: Floats
    incident: Bools
    shared: Bools
    enough: Bools
    harm: Floats
    excess: Floats
