"""Evidence: requests counted at the gateways for the stable revision and the candidate, and judgements on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
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
class EvidenceWindow:
    """Requests counted between two moments. All arrays have the same leading axes: none, or [runs] in a simulation.

    seconds [...]: length of the window. requests [..., 2]: attempts that ended, of stable (0) and candidate (1). A
    retried request counts twice. errors [..., 2]: attempts among them that failed with a server error. latencies [...,
    2, K + 1]: answers by latency. Bin i holds those of at least `edges[i - 1]` and less than `edges[i]` ms; the last
    bin also holds requests that timed out, that their callers gave up, or that hang: the latter as soon as they hang,
    and not again when they end. Failures without a server's answer are in no bin, so that the sum may be less than
    `requests` or, while requests hang, more.
    """

    seconds: Floats
    requests: Floats
    errors: Floats
    latencies: Floats

    @classmethod
    def nothing(cls, shape: tuple[int, ...] = (), *, edges: int = len(EDGES_MS)) -> EvidenceWindow:
        """Return an empty window."""
        return cls(np.zeros(shape), np.zeros((*shape, 2)), np.zeros((*shape, 2)), np.zeros((*shape, 2, edges + 1)))


@dataclass(frozen=True, slots=True)
class Judgement:
    """A gate's judgement over all windows so far. All arrays have the windows' leading axes.

    breach: log of the evidence that the candidate is worse than allowed; log(1 / a) is proof at the level a.
    incident: stable is out of bounds; breach then requires more evidence.
    shared: both are out of bounds now, as far as is known. This holds a rollout; a broken stable alone does not.
    enough: there are data to judge.
    harm: upper bound, valid at any time, on the share of the candidate's requests that stable would have answered well
    and the candidate does not; 1 before any data.
    excess: estimated number of such requests so far.
    doubtful: it is probably worse than stable: no budget is risked for it.
    settling: the candidate may still be cold: what is against it stops it for that long, and proves nothing.
    """

    breach: Floats
    incident: Bools
    shared: Bools
    enough: Bools
    harm: Floats
    excess: Floats
    doubtful: Bools
    settling: Bools
