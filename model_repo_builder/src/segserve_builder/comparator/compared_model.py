"""The state that a comparator keeps of a model while its revisions are compared."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from segserve_builder.comparator.folder import Comparison
from segserve_builder.comparator.kept import KeptSheet
from segserve_builder.comparator.pacing import Pacing
from segserve_builder.comparator.tally import PairTally
from segserve_builder.copies.copies import RequestCopy

WARM_UP_PAIRS: Final = 20
WARM_UP_S: Final = 20.0
MAX_BASELINES: Final = 200
BASELINE_INTERVAL: Final = 3
"""Of so many copies one is asked of stable twice, and all while the candidate warms up, until there are enough."""
MOST_PAIRS: Final = 8
"""As `sheet.MOST_PAIRS`, whose module needs numpy; this process does not."""


class KeptPair(NamedTuple):
    """A pair for the sheet, as JSON; `image` is a digest of the image that was asked."""

    agreement: float
    shown: bytes
    image: bytes


@dataclass(slots=True)
class ComparedModel:
    """A model whose revisions are compared: the comparison, what waits and is under way, and what has come of it."""

    comparison: Comparison
    tally: PairTally
    pacing: Pacing
    waiting: deque[RequestCopy] = field(default_factory=deque)
    under_way: set[asyncio.Task[None]] = field(default_factory=set)
    """Pairs that were not answered yet."""
    pairs: set[asyncio.Task[None]] = field(default_factory=set)
    asked: int = 0
    first_asked_s: float = 0.0
    compared: int = 0
    kept: list[KeptPair] = field(default_factory=list)
    """The pairs that agree least, the least first."""
    baselines: int = 0
    """Copies that stable was asked twice."""

    def is_warm(self, now_s: float) -> bool:
        """Tell whether the pair that is about to be asked counts, and count it among those asked.

        The first `WARM_UP_PAIRS` do not, or those of the first `WARM_UP_S`, whichever is less.
        """
        if not self.asked:
            self.first_asked_s = now_s
        self.asked += 1
        return self.asked > WARM_UP_PAIRS or now_s - self.first_asked_s >= WARM_UP_S

    def is_baseline(self, *, counts: bool) -> bool:
        """Tell whether the copy is for a comparison of stable with itself, and count it if so."""
        due = not counts or self.asked % BASELINE_INTERVAL == 0
        if not self.comparison.has_baseline or self.baselines >= MAX_BASELINES or not due:
            return False
        self.baselines += 1
        return True

    @property
    def keep_below(self) -> float:
        """The agreement of a pair that is worth keeping; equal answers have nothing to show."""
        return self.kept[-1].agreement if len(self.kept) == MOST_PAIRS else 1.0

    def sheet(self, name: str) -> KeptSheet:
        """Return the sheet of what is compared of the model `name`."""
        shown = [pair.shown for pair in self.kept]
        return KeptSheet(name, self.tally.stable, self.tally.candidate, self.compared, shown)

    def keep(self, pair: KeptPair) -> None:
        """Keep a pair among those that agree least, one of each image."""
        same = next((kept for kept in self.kept if kept.image == pair.image), None)
        if same is not None and same.agreement <= pair.agreement:
            return
        self.kept = [kept for kept in self.kept if kept is not same]
        insort(self.kept, pair, key=lambda kept: kept.agreement)
        del self.kept[MOST_PAIRS:]
