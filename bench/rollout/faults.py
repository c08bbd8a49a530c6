"""What is wrong with a candidate, as functions of the seconds since its first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Fault:
    """How a candidate differs from stable; nothing by default.

    errors: added share of failed requests. slower: factor of every latency. tail, tail_slower: so large a share of
    requests takes so many times longer. onset_s: before that it is healthy. leak_s: latency grows by its own size in
    so many seconds, up to three times, and then every other request fails. lost_iou: what an image loses on average.
    lost_class: one class of twenty, in 5 % of the images, is not found any more.
    """

    says: str
    errors: float = 0.0
    slower: float = 1.0
    tail: float = 0.0
    tail_slower: float = 1.0
    onset_s: float = 0.0
    leak_s: float = 0.0
    lost_iou: float = 0.0
    lost_class: bool = False

    @property
    def of_quality(self) -> bool:
        """Whether requests look right and masks are wrong."""
        return self.lost_iou > 0 or self.lost_class

    def errors_at(self, now_s: float) -> float:
        """Return the added share of failed requests."""
        if now_s < self.onset_s:
            return 0.0
        return 0.5 if self.leak_s and now_s >= 2 * self.leak_s else self.errors

    def slower_at(self, now_s: float) -> float:
        """Return the factor of every latency."""
        if now_s < self.onset_s:
            return 1.0
        return self.slower * (min(1 + now_s / self.leak_s, 3.0) if self.leak_s else 1.0)

    def tail_at(self, now_s: float) -> float:
        """Return the share of requests that take `tail_slower` times longer."""
        return self.tail if now_s >= self.onset_s else 0.0


NONE: Final = "none"

FAULTS: Final[Mapping[str, Fault]] = {
    NONE: Fault("healthy"),
    **{f"errors+{pp:g}": Fault(f"+{pp:g} pp errors", errors=pp / 100) for pp in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)},
    **{f"latency-x{by:g}": Fault(f"latency x{by:g}", slower=by) for by in (1.1, 1.25, 1.5, 2, 3)},
    "tail": Fault("5 % of requests take 4x", tail=0.05, tail_slower=4.0),
    "delayed": Fault("+10 pp errors after 5 min", errors=0.1, onset_s=300.0),
    "leak": Fault("latency grows to x3 in 20 min, then 50 % errors", leak_s=600.0),
    **{f"quality-{points:g}": Fault(f"IoU -{points:g} points", lost_iou=points / 100) for points in (1, 2, 5, 10, 20)},
    "rare-class": Fault("a class of 5 % of the images is lost", lost_class=True),
}
