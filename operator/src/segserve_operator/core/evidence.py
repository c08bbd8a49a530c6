"""Evidence: requests counted at the gateways for the stable revision and the candidate, and judgements on it."""

from __future__ import annotations

from dataclasses import dataclass, field
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


RATIOS: Final = (0.25, 1 / 3, 0.5, 2 / 3, 0.8, 1 / 1.1, 1.1, 1.25, 1.5, 2.0, 3.0, 4.0)
"""Edges of bins of a pair's latencies, the candidate's divided by stable's."""
DISAGREEMENTS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.35, 0.5, 0.75, 0.95)
"""Edges of bins of how much the two answers of a pair differ: 1 - agreement, from 0 to 1."""
LEAST_DISAGREEMENTS: Final = np.array((0.0, *DISAGREEMENTS))
"""The least disagreement of each bin."""
SHIFTS: Final = (-0.5, -0.3, -0.2, -0.15, -0.1, -0.05, -0.02, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)
"""Edges of bins of a pair's shift of confidence, the mean score of the candidate's objects minus stable's."""


@dataclass(frozen=True, slots=True)
class Pairs:
    """Requests that were sent to both revisions at the same moment. All arrays have the same leading axes.

    failed [..., 2, 2]: pairs by whether stable failed (0, 1) and whether the candidate did. ratios [..., R + 1]: pairs
    in which both answered, by the candidate's latency divided by stable's; bin i holds ratios of at least
    `RATIOS[i - 1]` and less than `RATIOS[i]`. disagreements [..., D + 1]: pairs whose answers were compared, by how
    much they differ, in bins between `DISAGREEMENTS`. callers [...]: requests of callers meanwhile, which are in no
    other number of the window. baseline [..., D + 1]: two answers of stable alone to the same request, by how much they
    differ. shifts [..., S + 1]: pairs whose answers have scores, by the shift of confidence, in bins between `SHIFTS`.
    """

    failed: Floats
    ratios: Floats
    disagreements: Floats
    callers: Floats = field(default_factory=lambda: np.zeros(()))
    baseline: Floats = field(default_factory=lambda: np.zeros(len(DISAGREEMENTS) + 1))
    shifts: Floats = field(default_factory=lambda: np.zeros(len(SHIFTS) + 1))

    @classmethod
    def nothing(cls, shape: tuple[int, ...] = ()) -> Pairs:
        """Return no pairs."""
        ratios, disagreements = len(RATIOS) + 1, len(DISAGREEMENTS) + 1
        counts = np.zeros((*shape, ratios)), np.zeros((*shape, disagreements))
        return cls(
            np.zeros((*shape, 2, 2)),
            *counts,
            callers=np.zeros(shape),
            baseline=np.zeros((*shape, disagreements)),
            shifts=np.zeros((*shape, len(SHIFTS) + 1)),
        )


@dataclass(frozen=True, slots=True)
class EvidenceWindow:
    """Requests counted between two moments. All arrays have the same leading axes: none, or [runs] in a simulation.

    seconds [...]: length of the window. requests [..., 2]: attempts that ended, of stable (0) and candidate (1). A
    retried request counts twice. errors [..., 2]: attempts among them that failed with a server error. latencies [...,
    2, K + 1]: answers by latency. Bin i holds answers of at least `edges[i - 1]` and less than `edges[i]` ms; the last
    bin also holds requests that timed out, that their callers gave up, or that hang: the latter as soon as they hang,
    and not again when they end. Failures without a server's answer are in no bin, so that the sum may be less than
    `requests` or, while requests hang, more. pairs: in a window in which both revisions got the same requests (Shadow),
    what the pairs say; requests, errors and latencies are then the pairs', and no caller's.
    """

    seconds: Floats
    requests: Floats
    errors: Floats
    latencies: Floats
    pairs: Pairs | None = None

    @classmethod
    def nothing(cls, shape: tuple[int, ...] = (), *, edges: int = len(EDGES_MS)) -> EvidenceWindow:
        """Return an empty window."""
        return cls(np.zeros(shape), np.zeros((*shape, 2)), np.zeros((*shape, 2)), np.zeros((*shape, 2, edges + 1)))

    def of(self, revisions: tuple[bool, bool]) -> EvidenceWindow:
        """Return what was counted of some of (stable, candidate), as if nobody had requested the others."""
        kept = np.array(revisions)
        counted = self.requests * kept, self.errors * kept, self.latencies * kept[:, np.newaxis]
        return EvidenceWindow(self.seconds, *counted, self.pairs)

    @classmethod
    def of_pairs(cls, seconds: Floats, latencies: Floats, pairs: Pairs) -> EvidenceWindow:
        """Return the window in which both revisions got the same requests (no leading axes)."""
        failed = pairs.failed
        errors = np.array([failed[1].sum(), failed[:, 1].sum()])
        return cls(seconds, np.full(2, failed.sum()), errors, latencies, pairs)


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
    surging: it suddenly fails more often than is allowed. That proves nothing, and stops it until it has been probed.
    """

    breach: Floats
    incident: Bools
    shared: Bools
    enough: Bools
    harm: Floats
    excess: Floats
    doubtful: Bools
    settling: Bools
    surging: Bools = field(default_factory=lambda: np.asarray(False))

    @classmethod
    def of_evidence(cls, breach: Floats, enough: Bools | None = None) -> Judgement:
        """Return the judgement of a gate that has evidence alone, without harm or an incident."""
        nothing, no = np.zeros(np.shape(breach)), np.zeros(np.shape(breach), bool)
        return cls(
            breach=breach,
            incident=no,
            shared=no,
            enough=~no if enough is None else enough,
            harm=nothing,
            excess=nothing,
            doubtful=no,
            settling=no,
        )

    def __post_init__(self) -> None:
        # Rules have no surge, and their judgements have the same axes as others.
        object.__setattr__(self, "surging", np.broadcast_to(self.surging, np.shape(self.settling)))
