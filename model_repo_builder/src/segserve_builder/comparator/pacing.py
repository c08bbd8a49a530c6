"""How many copies are asked: few at first, and more as long as they do not slow the stable revision down."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Final

FIRST_PER_S: Final = 1.0
FEW: Final = 9
"""Stable's times whose median says whether more may be asked."""
SLOWER: Final = 1.5
"""Largest ratio to stable's median while only few copies were asked: whoever else asks stable waits as long."""
NOISE_S: Final = 0.005
"""Medians that differ by less say nothing."""
SMALLEST_SHARE: Final = 1 / 64


@dataclass(slots=True)
class Pacing:
    """A token bucket of at most `requests_per_s`, full after a second; it begins with one request.

    It admits `FIRST_PER_S` until `FEW` times of stable are known, which are the measure of later ones. After each `FEW`
    more it admits twice as many if their median is at most `SLOWER` times the measure, else half as many. Pairs that
    hang halve it too. If stable is slow though hardly any copies are asked, these are not the cause: its present time
    is then the measure. `now_s` is of any clock that never runs back.
    """

    requests_per_s: float
    share: float = field(init=False)
    """Part of `requests_per_s` that is admitted now."""
    _tokens: float = 1.0
    _updated_s: float | None = None
    _calm_s: float | None = None
    _times_s: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Of a rate that is no number nothing is asked.
        self.share = min(FIRST_PER_S / self.requests_per_s, 1.0) if self.requests_per_s > 0 else 1.0

    def admits(self, now_s: float) -> bool:
        """Return whether a request may be asked now, and count it if so."""
        elapsed_s = 0.0 if self._updated_s is None else max(now_s - self._updated_s, 0.0)
        self._updated_s = now_s
        rate = self.requests_per_s * self.share
        self._tokens = min(self._tokens + elapsed_s * rate, max(rate, 1.0))
        if not self._tokens >= 1.0:
            return False
        self._tokens -= 1.0
        return True

    def learn(self, stable_s: float) -> None:
        """Learn how long stable took for its half of a pair."""
        self._times_s.append(stable_s)
        if len(self._times_s) < FEW:
            return
        present_s = median(self._times_s)
        self._times_s.clear()
        if self._calm_s is None or (self.share <= SMALLEST_SHARE and self._is_slow(present_s)):
            self._calm_s = present_s
        if self._is_slow(present_s):
            self.slow_down()
        else:
            self.share = min(self.share * 2, 1.0)

    def slow_down(self) -> None:
        """Ask half as many."""
        self.share = max(self.share / 2, SMALLEST_SHARE)
        self._times_s.clear()

    def _is_slow(self, present_s: float) -> bool:
        return self._calm_s is not None and present_s > SLOWER * self._calm_s + NOISE_S
