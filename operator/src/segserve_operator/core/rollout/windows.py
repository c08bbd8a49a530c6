"""The window of evidence between two readings of the gateways' counters."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow, Floats
from segserve_operator.core.rollout.counters import (
    Counters,
    HungRequests,
    InFlight,
    InFlightSample,
    Sample,
    SeriesCounts,
)

FORGOTTEN_S: Final = 3600.0
"""Time without an answer after which a gateway is forgotten."""
_LATENCIES_LATE_S: Final = 3.0
"""Latencies reach a gateway's statistics up to a second after the counters, and are read with the next window."""
_MOMENTS: Final = 16


@dataclass(frozen=True, slots=True)
class WindowResult:
    """A window and the inputs of the next one: `seen` is its `before`, and `hung` its `hung`."""

    window: EvidenceWindow
    seen: Sample
    hung: HungRequests


@dataclass(frozen=True, slots=True)
class _Arm:
    """Sums over one group's series at one gateway; `ended` and `active` are current, the rest is the increase."""

    attempts: int
    failed: int
    given_up: int
    left: int
    waited_ms: int
    latencies: tuple[tuple[float, int], ...]
    ended: int
    active: int


def window_between(
    before: Sample,
    after: Sample,
    stable_group: str,
    candidate_group: str,
    *,
    hung: HungRequests | None = None,
    slow_after_s: float = 10.0,
    edges: Sequence[float] = EDGES_MS,
) -> WindowResult:
    """Return what was counted after `before` and up to `after`; nothing of it is ever negative.

    Counts that a gateway had before its first sample are not part of a look, unless it has started since `before`. One
    that does not answer is missing in `after`: what it counts meanwhile is in the look after its return. Counts of a
    new epoch, or that have fallen, began at zero.

    An attempt that has been under way for `slow_after_s` is in the last bin of latencies at once, and not again when
    it ends. How many these are is a lower bound: as many as were under way then, less all that have ended since. So
    one that hangs among many that are answered is seen when it ends; a group that answers nothing, in time. A stream,
    or an upload, that takes so long counts likewise, of both groups. `slow_after_s` may not change while `hung` is
    handed on.
    """
    hung_before = hung or HungRequests()
    waiting = dict(hung_before.gateways)
    newest_s = max((count.at_s for count in before.values()), default=None)
    window = EvidenceWindow.nothing(edges=len(edges))
    for name, now in after.items():
        then = before.get(name, first_reference(now, newest_s))
        arms = (_between(then, now, stable_group), _between(then, now, candidate_group))
        held = _continued(hung_before.of(name) if then.epoch == now.epoch else InFlight(), now.at_s, arms)
        latencies = np.stack([_binned(arm, edges) for arm in arms])
        charged = [_charge(held, at, arms[at], latencies[at], slow_after_s, edges) for at in range(2)]
        waiting[name] = InFlight((charged[0], charged[1]), _recent(held.moments, now.at_s - slow_after_s))
        window = EvidenceWindow(
            np.maximum(window.seconds, now.at_s - then.at_s),
            window.requests + [arm.attempts for arm in arms],
            window.errors + [min(arm.failed, arm.attempts) for arm in arms],
            window.latencies + latencies,
        )
    latest_s = max((count.at_s for count in (*before.values(), *after.values())), default=0.0)
    counters = {name: at for name, at in {**before, **after}.items() if latest_s - at.at_s <= FORGOTTEN_S}
    return WindowResult(
        window,
        counters,
        HungRequests(tuple((name, held) for name, held in sorted(waiting.items()) if name in counters)),
    )


def first_reference(now: Counters, newest_s: float | None) -> Counters:
    """Return the reference for an unknown gateway: zero if it is new, else itself."""
    if newest_s is not None and now.began_s >= newest_s:
        return Counters(now.epoch, newest_s)
    return now


def _between(then: Counters, now: Counters, group: str) -> _Arm:
    former = then.by_series if then.epoch == now.epoch else {}
    pairs = [
        (former.get(series, SeriesCounts()), tally) for series, tally in now.by_series.items() if series.group == group
    ]
    latencies: list[tuple[float, int]] = []
    for was, tally in pairs:
        # Few of a gateway's hundreds of bins change between two looks.
        before = dict(was.latencies).get
        latencies += [
            (lower, _since(known, count)) for lower, count in tally.latencies if (known := before(lower, 0)) != count
        ]
    return _Arm(
        attempts=sum(_since(was.attempts, tally.attempts) for was, tally in pairs),
        failed=sum(_since(was.failed, tally.failed) for was, tally in pairs),
        given_up=sum(_since(was.given_up, tally.given_up) for was, tally in pairs),
        left=sum(_since(was.left, tally.left) for was, tally in pairs),
        waited_ms=sum(_since(was.waited_ms, tally.waited_ms) for was, tally in pairs),
        latencies=tuple(latencies),
        ended=sum(tally.attempts for _, tally in pairs),
        active=sum(tally.active for _, tally in pairs),
    )


def _since(then: int, now: int) -> int:
    """Return the increase of a counter; one that decreased was reset to zero in between."""
    return now - then if now >= then else now


def _binned(arm: _Arm, edges: Sequence[float]) -> Floats:
    """Return the attempts per latency bin; attempts that timed out are in the last one.

    A caller that leaves has waited no longer than an answer takes, whatever its reason, so callers that left are in the
    bin of the time that they waited on average.
    """
    # As plain numbers: arrays are slower for one at a time, and this is done for each latency of each rollout.
    binned = [0] * (len(edges) + 1)
    for lower_ms, count in arm.latencies:
        if count:
            binned[bisect_right(edges, lower_ms)] += count
    left = min(arm.left, arm.given_up)
    binned[-1] += arm.given_up - left
    if left:
        binned[bisect_right(edges, arm.waited_ms / left)] += left
    return np.array(binned, float)


def _continued(held: InFlight, at_s: float, arms: tuple[_Arm, _Arm]) -> InFlight:
    """Return the state with this sample added; after a reset of the counters, only with this sample."""
    moment = InFlightSample(at_s, (arms[0].ended, arms[1].ended), (arms[0].active, arms[1].active))
    last = held.moments[-1] if held.moments else moment
    if at_s < last.at_s or any(now < then for now, then in zip(moment.ended, last.ended, strict=True)):
        return InFlight(moments=(moment,))
    return InFlight(held.charged, (*held.moments, moment))


def _charge(
    held: InFlight, at: int, arm: _Arm, latencies: Floats, slow_after_s: float, edges: Sequence[float]
) -> float:
    """Add requests that newly hang to `latencies` (in place), and remove those counted before that have now ended.

    Returns the number in flight that are counted as hung from now on.
    """
    now_s = held.moments[-1].at_s
    slow = bisect_right(edges, slow_after_s * 1000.0)
    charged = held.charged[at] - _taken(latencies, slow, held.charged[at])
    # Some end without a latency, for example because their server died.
    charged = min(charged, max(m.active[at] for m in held.moments if now_s - m.at_s <= _LATENCIES_LATE_S))
    old = [m for m in held.moments if now_s - m.at_s >= slow_after_s]
    hangs = min(old[-1].active[at] + old[-1].ended[at] - arm.ended, arm.active) if old else 0.0
    latencies[-1] += max(hangs - charged, 0.0)
    return max(hangs, charged)


def _taken(latencies: Floats, slow: int, at_most: float) -> float:
    """Remove up to `at_most` from the slow bins in place, slowest first, and return the number removed."""
    if not at_most:
        return at_most
    left = at_most
    for index in range(len(latencies) - 1, slow - 1, -1):
        taken = min(left, float(latencies[index]))
        latencies[index] -= taken
        left -= taken
    return at_most - left


def _recent(moments: tuple[InFlightSample, ...], since_s: float) -> tuple[InFlightSample, ...]:
    """Return the last sample before `since_s` and those after it, thinned to `_MOMENTS`."""
    old = [moment for moment in moments if moment.at_s <= since_s]
    kept = [*old[-1:], *(moment for moment in moments if moment.at_s > since_s)]
    if len(kept) <= _MOMENTS:
        return tuple(kept)
    gaps = [kept[index + 1].at_s - kept[index - 1].at_s for index in range(1, len(kept) - 1)]
    del kept[1 + gaps.index(min(gaps))]
    return tuple(kept)
