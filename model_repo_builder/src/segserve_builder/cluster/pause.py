"""How long to wait between attempts."""

from __future__ import annotations

import random
from typing import Final

FIRST_S: Final = 0.2
LONGEST_S: Final = 15.0


class Pause:
    """Twice as long after each failure in a row, up to a limit; never equal in many pods at once."""

    def __init__(self, first_s: float = FIRST_S, longest_s: float = LONGEST_S) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._failures = 0

    def next_s(self) -> float:
        """Return how long to wait now, after one more failure."""
        whole = min(self._longest_s, self._first_s * 2.0**self._failures)
        self._failures = min(self._failures + 1, 32)
        return whole * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Begin with the shortest again."""
        self._failures = 0
