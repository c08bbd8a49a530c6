"""How many copies are asked: at most a rate, and fewer where they slow the stable revision down."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median
from typing import Final

FEW: Final = 9
MANY: Final = 101
"""Stable's last times, whose median is compared with that of the last few."""
KNOWN: Final = 30
"""So many times make a median to compare with."""
SLOWER: Final = 2.0
NOISE_S: Final = 0.005
"""Medians that differ by less say nothing."""
SMALLEST_SHARE: Final = 1 / 64
RECOVERY_S: Final = 60.0
"""After so long without another cause twice as many are asked again."""


@dataclass(slots=True)
class Pacing:
    """A token bucket of at most `requests_per_s`, full after a second; it begins with one request.

    The rate is halved when the median of stable's last `FEW` times is more than `SLOWER` times that of its last `MANY`,
    and by each pair that hangs; it doubles again in `RECOVERY_S`. `now_s` is of any clock that never runs back.
    """

    requests_per_s: float
    share: float = 1.0
    _tokens: float = 1.0
    _updated_s: float | None = None
    _few: deque[float] = field(default_factory=lambda: deque(maxlen=FEW))
    _many: deque[float] = field(default_factory=lambda: deque(maxlen=MANY))

    def admits(self, now_s: float) -> bool:
        """Tell whether a request may be asked now, and count it if so."""
        elapsed_s = 0.0 if self._updated_s is None else max(now_s - self._updated_s, 0.0)
        self._updated_s = now_s
        rate = self.requests_per_s * self.share
        self.share = min(self.share * 2.0 ** (elapsed_s / RECOVERY_S), 1.0)
        self._tokens = min(self._tokens + elapsed_s * rate, max(rate, 1.0))
        if not self._tokens >= 1.0:
            return False
        self._tokens -= 1.0
        return True

    def learn(self, stable_s: float) -> None:
        """Learn how long stable took for its half of a pair."""
        self._few.append(stable_s)
        is_known = len(self._few) == FEW and len(self._many) >= KNOWN
        if is_known and median(self._few) > SLOWER * median(self._many) + NOISE_S:
            self.slow_down()
        self._many.append(stable_s)

    def slow_down(self) -> None:
        """Ask half as many."""
        self.share = max(self.share / 2, SMALLEST_SHARE)
        self._few.clear()
