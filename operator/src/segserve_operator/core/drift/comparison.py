"""Two revisions' answers over the same time: whether they are distributed alike.

Both revisions' counts are compared in blocks, stretches of time in which each answered some images. A gateway splits
requests at random, so that both have images of the same kind in each block, whatever comes: if the revisions answer
alike, the difference x of the shares of observations up to an edge of a histogram is then 0 on average given all blocks
before. The null hypothesis allows a tolerance. A bet on the edge and the side that were farthest off before multiplies
its wealth by `1 + stake (x - tolerance) / (1 + tolerance)`, which no bet wins on average under the null (Waudby-Smith
and Ramdas 2024, "Estimating means of bounded random variables by betting"). The evidence is the mean of all histograms'
wealths, and may be looked at any time. Frames of one camera may depend on each other as they like.

That revisions are alike is proved the other way: for each edge of each histogram there is a bet that the difference is
not as large as `OVERLOOKED` beyond the tolerance. As all of them must win, none has to win more for the others' sake.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Self

import numpy as np

from segserve_builder.agent.protocol import MAX_HISTOGRAMS
from segserve_operator.core.drift.detector import STAKES, Histograms, cumulated
from segserve_operator.core.drift.watch import counted_since, summed
from segserve_operator.core.evidence import Floats

BLOCK_IMAGES: Final = 20
"""Images of each revision in a block, at least."""
OVERLOOKED: Final = 0.15
"""Difference beyond the tolerance that is proved to be absent where revisions are called alike."""
OF_ANSWERS: Final = frozenset({"emptyAnswers", "classShare", "area", "confidence"})
"""Kinds of histograms of answers; all others are of images."""
NOT_COMPARED: Final = frozenset({"score"})
"""Kinds that two revisions are not compared by. Scores have an observation for each object, and their shares are no
fair bets: few images with many objects move them, and the revision with more images in a block has some of these more
often."""


@dataclass(frozen=True, slots=True)
class ComparedHistogram:
    """A histogram's comparison. Rows are (candidate, stable).

    `pending` [2, B] are the counts of the open block. `shares` [2, edge] are the sums of the closed blocks' shares up
    to each edge. `different` [stakes] is the log wealth of the bets on a difference, `alike` [stakes, side, edge] of
    those on none.
    """

    pending: Floats
    shares: Floats
    different: Floats
    alike: Floats
    blocks: int = 0

    @classmethod
    def start(cls, buckets: int) -> Self:
        """Return the comparison before any block."""
        edges, stakes = np.zeros((2, buckets - 1)), np.zeros(len(STAKES))
        return cls(np.zeros((2, buckets)), edges, stakes, stakes[:, None, None] + edges)

    @property
    def log_different(self) -> float:
        """The log evidence of a difference."""
        return float(_log_mean(self.different))

    @property
    def log_alike(self) -> float:
        """The log evidence that there is no large difference at any edge."""
        return float(_log_mean(self.alike).min())

    @property
    def difference(self) -> float:
        """The largest difference of the blocks' mean shares up to an edge."""
        return float(_sides(self.shares).max()) / max(self.blocks, 1)

    def with_counts(self, counts: Floats, tolerance: float) -> ComparedHistogram:
        """Return the comparison after more counts, which close the block if both have enough images."""
        pending = self.pending + counts
        if pending.sum(1).min() < BLOCK_IMAGES:
            return replace(self, pending=pending)
        shares = np.array([cumulated(each) for each in pending.tolist()])
        sides, stakes, won = _sides(shares), np.array(STAKES), np.zeros(len(STAKES))
        if self.blocks:
            # Only blocks before choose the place.
            before = _sides(self.shares)
            side, edge = np.unravel_index(int(before.argmax()), before.shape)
            won = np.log1p(stakes * (sides[side, edge] - tolerance) / (1.0 + tolerance))
        most = tolerance + OVERLOOKED
        return ComparedHistogram(
            pending=np.zeros(pending.shape),
            shares=self.shares + shares,
            different=self.different + won,
            alike=self.alike + np.log1p(stakes[:, None, None] * (most - sides) / (1.0 - most)),
            blocks=self.blocks + 1,
        )


@dataclass(frozen=True, slots=True)
class RevisionComparison:
    """The comparison of a rollout's two revisions so far.

    `seen` is what each server of the candidate and of stable last reported. `answered` tells of both whether they have
    answered images since the last interruption.
    """

    seen: tuple[Mapping[str, Histograms], Mapping[str, Histograms]] = field(default_factory=lambda: ({}, {}))
    histograms: Mapping[str, ComparedHistogram] = field(default_factory=dict)
    answered: tuple[bool, bool] = (False, False)

    def with_reports(
        self, candidate: Mapping[str, Histograms], stable: Mapping[str, Histograms], tolerance: float
    ) -> RevisionComparison:
        """Return the comparison with what servers report now; what one counted before its first report is left out."""
        now = (candidate, stable)
        if now == self.seen:
            return self
        if not (candidate and stable):
            return self.interrupted(candidate, stable)
        own, others = (_added(*each) for each in zip(self.seen, now, strict=True))
        if not all(self.answered):
            # Until both answer, the images of one are of another time; the block begins with the next report.
            has_answered = (self.answered[0] or bool(own), self.answered[1] or bool(others))
            return replace(self, seen=now, answered=has_answered)
        compared = dict(self.histograms)
        for name in sorted(own.keys() | others.keys()):
            if _kind(name) in NOT_COMPARED:
                continue
            counts = [each.get(name, ()) for each in (own, others)]
            known = compared.get(name) or ComparedHistogram.start(max(map(len, counts)))
            buckets = known.pending.shape[1]
            # Another revision may count in other buckets, which cannot be compared.
            if any(len(each) not in (0, buckets) for each in counts):
                continue
            if name in compared or len(compared) < MAX_HISTOGRAMS:
                table = np.array([each or (0.0,) * buckets for each in counts], float)
                compared[name] = known.with_counts(table, tolerance)
        return replace(self, seen=now, histograms=compared)

    def interrupted(self, candidate: Mapping[str, Histograms], stable: Mapping[str, Histograms]) -> RevisionComparison:
        """Return the comparison at a time when requests are not split at random: open blocks are given up."""
        kept = {name: replace(each, pending=np.zeros(each.pending.shape)) for name, each in self.histograms.items()}
        return RevisionComparison((candidate, stable), kept)

    @property
    def blocks(self) -> int:
        """The most blocks of one histogram."""
        return max((each.blocks for each in self.histograms.values()), default=0)

    def compared(self, *, images: bool) -> dict[str, ComparedHistogram]:
        """Return the histograms of images or of answers that had a block, by name."""
        return {
            name: each
            for name, each in self.histograms.items()
            if each.blocks and (_kind(name) not in OF_ANSWERS) is images
        }


def log_evidence(histograms: Iterable[ComparedHistogram]) -> float:
    """Return the log of the mean wealth of as many histograms as there may be; those that are not here won nothing."""
    logs = [each.log_different for each in histograms]
    rest = [math.log(MAX_HISTOGRAMS - len(logs))] if len(logs) < MAX_HISTOGRAMS else []
    return float(np.logaddexp.reduce([*logs, *rest])) - math.log(MAX_HISTOGRAMS)


def _added(seen: Mapping[str, Histograms], now: Mapping[str, Histograms]) -> Histograms:
    """Return what servers have counted since they were last seen; nothing of those whose reports are the same."""
    return summed(
        [
            counted_since(seen[server], counts)
            for server, counts in now.items()
            if server in seen and seen[server] != counts
        ],
        {},
    )


def _kind(name: str) -> str:
    return name.partition(":")[0]


def _sides(shares: Floats) -> Floats:
    """Return the differences [side, edge] of the shares of (candidate, stable), in both directions."""
    return np.array((shares[0] - shares[1], shares[1] - shares[0]))


def _log_mean(logs: Floats) -> Floats:
    mean: Floats = np.logaddexp.reduce(logs) - np.log(len(logs))
    return mean
