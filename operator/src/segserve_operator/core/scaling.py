"""The number of servers that a pool needs, from the requests that arrive and are in flight.

Little's law gives the time that a request occupies a server: requests in flight divided by the rate of arrival (Little,
1961). In calm times it is the time of service; what is in flight beyond arrivals times that is a queue. The offered
load is the rate times the time of service, and the number of servers covers it with a margin that grows with its square
root, as arrivals vary (Halfin and Whitt, 1981). The rate is that expected once a server asked for now has started:
exponentially weighted means of different lengths lag behind a ramp in proportion to their lengths, so that their
difference is its slope (Brown, 1963). More servers are wanted at once, fewer only after a delay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final

SHORT_S: Final = 2.0
MIDDLE_S: Final = 8.0
LONG_S: Final = 32.0
SLOPE_S: Final = 300.0
"""Lengths of the means of the rate: each is some four times the one before, so that every ramp is seen by a pair."""
SERVICE_MEMORY_S: Final = 60.0
LOSS_MEMORY_S: Final = 3600.0
STARTUP_S: Final = 60.0
"""Time in which a server starts, until it has been measured."""
ENOUGH_S: Final = 30.0
"""Length of history without which no server is given up, whatever the delay."""
LONGEST_GAP_S: Final = 30.0
"""Longest time between two samples: after a longer one the history begins anew."""
SHORTEST_S: Final = 0.1
"""Shortest time for which a rate is taken."""
FEWEST_PER_S: Final = 0.02
"""Requests a second below which their time of service is not estimated."""
MOST_GROWTH: Final = 8.0
"""Largest factor by which requests are expected to grow while a server starts."""
LEVEL_DEVIATIONS: Final = 2.0
SLOPE_DEVIATIONS: Final = 4.0
"""Standard deviations beyond which a mean, or a slope, is no chance: a slope is multiplied by the time of a start."""
LOAD_DEVIATIONS: Final = 0.5
"""Standard deviations of the load by which servers exceed it."""
DRAIN_S: Final = 0.25
"""Time in which servers should work off a queue."""
SPARE: Final = 1.05
"""Servers beyond the need that are kept, so that their number does not follow each small change."""
LARGEST_STEP: Final = 0.2
"""Largest relative difference that the estimated time of service follows; one far below it is taken over soon."""
RISE: Final = 1 / 3
"""Weight of times above the estimate, relative to those below: it follows low ones."""
QUEUE: Final = 1.5
"""Multiple of the time of service from which on the time that requests take is rather a queue."""
DOWN_MEMORY_S: Final = 24.0
"""Time after which means of eight seconds have forgotten that no server was ready."""
BUSY_S: Final = 24.0
"""Time for which the same servers must have been busy for what they answer to be all that they can."""
COLLAPSED: Final = 2.0
"""Factor by which the estimated time of service is then too low to be one: it was that of other requests, such as
health checks in a calm night."""
STEP: Final = 0.1
"""Part of the delay that passes between two steps down."""
STARTUP_WEIGHT: Final = 0.3
LIMIT_GROWTH: Final = 1.08
LIMIT_FALL: Final = 0.9
"""Factors in half a minute of the requests in flight that a server may have, for a target of queue time."""


@dataclass(frozen=True, slots=True)
class ScalingTarget:
    """The requests that each server may have in flight, or the mean time in ms for which requests may wait."""

    concurrency: float | None = None
    queue_ms: float | None = None

    def __post_init__(self) -> None:
        given = [number for number in (self.concurrency, self.queue_ms) if number is not None]
        if len(given) != 1 or not given[0] > 0:
            raise ValueError(f"exactly one target, above 0, is allowed, got {self}")


@dataclass(frozen=True, slots=True)
class ScalingPolicy:
    """The bounds of the number of servers, what they are to achieve, and how long fewer must have sufficed."""

    minimum: int
    maximum: int
    target: ScalingTarget
    scale_down_delay_s: float = 300.0


@dataclass(frozen=True, slots=True)
class GatewayLoad:
    """Callers' requests at one gateway: those that have arrived since its start, and those in flight.

    `epoch` changes when the gateway restarts; `began_s` is then, and `at_s` the time of reading, both Unix time.
    """

    epoch: str
    at_s: float
    began_s: float
    arrived: int
    in_flight: int


@dataclass(frozen=True, slots=True)
class LoadSample:
    """Requests of a pool at Unix time `at_s`: `arrived` since the sample before, and `in_flight` now."""

    at_s: float
    arrived: float
    in_flight: float
    ready: int


@dataclass(frozen=True, slots=True)
class LoadHistory:
    """Summary of earlier samples: means of different lengths, and the numbers of servers that were needed.

    `occupied_s` is the time of service as it is estimated, `limit` the requests in flight that a server may have by the
    target, `losses_per_s` how often a server is lost, `startup_s` the time in which one starts.
    Since `busy_since_s` the same servers have had as many requests in flight as they may, 0 if they have fewer, and at
    `down_s` no server was ready last. At `fell_s` servers were given up last.
    `needs` are the last times at which so many servers were needed for present requests, with the numbers falling, and
    `surges` those at which they were for requests expected or waiting, which are kept for the time of a start.
    """

    at_s: float = 0.0
    began_s: float = 0.0
    short_per_s: float = 0.0
    middle_per_s: float = 0.0
    long_per_s: float = 0.0
    slope_per_s: float = 0.0
    in_flight: float = 0.0
    middle_in_flight: float = 0.0
    occupied_s: float = 0.0
    limit: float = 1.0
    losses_per_s: float = 0.0
    startup_s: float = STARTUP_S
    busy_since_s: float = 0.0
    down_s: float = 0.0
    fell_s: float = 0.0
    ready: int = 0
    desired: int = 0
    needs: tuple[tuple[float, int], ...] = ()
    surges: tuple[tuple[float, int], ...] = ()

    @property
    def length_s(self) -> float:
        """How long requests have been counted."""
        return self.at_s - self.began_s

    @property
    def room(self) -> float:
        """How many requests the servers that are ready may have in flight by the target."""
        return self.ready * self.limit


@dataclass(frozen=True, slots=True)
class StartingServers:
    """Servers asked for at `since_s` (Unix seconds): `desired` of them in all, `before` of which there were."""

    since_s: float
    desired: int
    before: int


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """Requests of a pool as they are kept between passes: their history, and what each gateway told last.

    Some gateways have not told theirs since `partial_since_s`, and servers cannot start since `failing_since_s` (Unix
    seconds); None if all is well. Of the servers wanted now, `answered` have been ready at once; None if none were
    seen. `told` is the number that the pool's status had in the look before.
    """

    history: LoadHistory = field(default_factory=LoadHistory)
    gateways: Mapping[str, GatewayLoad] = field(default_factory=dict)
    partial_since_s: float | None = None
    failing_since_s: float | None = None
    starting: StartingServers | None = None
    answered: int | None = None
    told: int | None = None


@dataclass(frozen=True, slots=True)
class ScalingDecision:
    """The number of servers wanted, one CamelCase word why, and a sentence."""

    desired: int
    reason: str
    message: str


def observed(history: LoadHistory, sample: LoadSample, target: ScalingTarget) -> LoadHistory:
    """Return the history with one more sample; one from before the last, or long after it, begins a new one."""
    length_s = sample.at_s - history.at_s
    if history.began_s and length_s == 0:
        return history
    limit = target.concurrency or history.limit
    if not history.began_s or not 0 < length_s <= LONGEST_GAP_S:
        return replace(
            LoadHistory(startup_s=history.startup_s, desired=history.desired, limit=limit),
            at_s=sample.at_s,
            began_s=sample.at_s,
            in_flight=sample.in_flight,
            middle_in_flight=sample.in_flight,
            ready=sample.ready,
        )
    rate = sample.arrived / length_s
    age_s = sample.at_s - history.began_s
    means = (
        _toward(history.short_per_s, rate, length_s, SHORT_S, age_s),
        _toward(history.middle_per_s, rate, length_s, MIDDLE_S, age_s),
        _toward(history.long_per_s, rate, length_s, LONG_S, age_s),
        _toward(history.slope_per_s, rate, length_s, SLOPE_S, age_s),
    )
    in_flight = _toward(history.in_flight, sample.in_flight, length_s, SHORT_S, age_s)
    middle = _toward(history.middle_in_flight, sample.in_flight, length_s, MIDDLE_S, age_s)
    occupied_s, down_s = history.occupied_s, history.down_s if sample.ready else sample.at_s
    # Without servers requests fail at once, which is no time of service; means remember it for a while.
    if occupied_s == 0.0 or sample.at_s - down_s >= DOWN_MEMORY_S:
        occupied_s = _occupied_s(occupied_s, middle, means[1], length_s)
    busy = sample.ready > 0 and middle >= sample.ready * limit
    busy_since_s = (history.busy_since_s if sample.ready == history.ready else 0.0) or sample.at_s
    answered_per_s = means[1] - (middle - history.middle_in_flight) / length_s
    if busy and sample.at_s - busy_since_s >= BUSY_S and answered_per_s > FEWEST_PER_S:
        # Busy servers show by what they answer how long each request occupies one at least.
        least_s = sample.ready * limit / answered_per_s
        occupied_s = least_s if occupied_s * COLLAPSED < least_s else occupied_s
    lost = max(history.ready - sample.ready, 0) if history.desired >= history.ready else 0
    losses = history.losses_per_s * math.exp(-length_s / LOSS_MEMORY_S)
    following = LoadHistory(
        sample.at_s,
        history.began_s,
        *means,
        in_flight=in_flight,
        middle_in_flight=middle,
        occupied_s=occupied_s,
        limit=limit,
        losses_per_s=losses + lost / max(history.ready, 1) / LOSS_MEMORY_S,
        startup_s=history.startup_s,
        busy_since_s=busy_since_s if busy else 0.0,
        down_s=down_s,
        fell_s=history.fell_s,
        ready=sample.ready,
        desired=history.desired,
        needs=history.needs,
        surges=history.surges,
    )
    if target.queue_ms is None:
        return following
    return replace(following, limit=_limit(following, target.queue_ms, length_s))


def load_sample(
    load: PoolLoad, gateways: Mapping[str, GatewayLoad | None], ready: int
) -> tuple[PoolLoad, LoadSample] | None:
    """Return what the gateways tell now, as one sample; None if none tells anything, or if no time has passed.

    One that does not answer counts as the mean of the others; what arrived meanwhile is spread over that time once it
    answers.
    """
    told = {name: each for name, each in gateways.items() if each is not None}
    at_s = max((each.at_s for each in told.values()), default=0.0)
    length_s = at_s - load.history.at_s
    if not told or (load.history.began_s and length_s == 0):
        return None
    last_s = load.history.at_s
    per_s = sum(_arrived_per_s(load.gateways.get(name), each, last_s) for name, each in told.items())
    in_flight = sum(each.in_flight for each in told.values())
    part = len(told) / len(gateways)
    since_s = None if part == 1 else at_s if load.partial_since_s is None else load.partial_since_s
    kept = {name: load.gateways[name] for name in gateways.keys() & load.gateways.keys()} | told
    sample = LoadSample(at_s, per_s * length_s / part, in_flight / part, ready)
    return replace(load, gateways=kept, partial_since_s=since_s), sample


def _arrived_per_s(former: GatewayLoad | None, now: GatewayLoad, last_s: float) -> float:
    """Return the rate of arrival since a gateway was last read, or since its start if that was later.

    One that was not read last, and had started before, was away for a moment: it has to be read twice.
    """
    if former is None and now.began_s < last_s:
        return 0.0
    known = former is not None and former.epoch == now.epoch and now.arrived >= former.arrived
    before, from_s = (former.arrived, former.at_s) if known and former is not None else (0, now.began_s)
    if former is not None:
        from_s = max(from_s, former.at_s)
    return (now.arrived - before) / max(now.at_s - from_s, SHORTEST_S)


def with_startup(history: LoadHistory, startup_s: float) -> LoadHistory:
    """Return the history that has seen a server start in this time; 0 or less is that of a clock that was set back."""
    if startup_s <= 0:
        return history
    change = STARTUP_WEIGHT * (startup_s - history.startup_s)
    return replace(history, startup_s=max(history.startup_s + change, 1.0))


def decide(
    history: LoadHistory, policy: ScalingPolicy, present: int, *, hold: bool = False
) -> tuple[LoadHistory, ScalingDecision]:
    """Return how many servers are wanted now, where `present` are wanted so far.

    With `hold` none is given up now, nor by a history shorter than the delay; those above the maximum always are.
    """
    lasting, surge, expected_per_s, queued = _need(history, policy, present)
    needs = _with(history.needs, history.at_s, math.ceil(lasting * SPARE), policy.scale_down_delay_s)
    surges = _with(history.surges, history.at_s, math.ceil(surge), history.startup_s)
    up = max(lasting, surge)
    wanted = min(max(math.ceil(up), policy.minimum), policy.maximum)
    numbers = (
        f"{expected_per_s:.3g} requests/s are expected in {history.startup_s:.0f} s, each for "
        f"{1000 * history.occupied_s:.3g} ms, and {queued:.3g} wait"
    )
    young = history.length_s < max(ENOUGH_S, policy.scale_down_delay_s)
    # Each step is a decision about all models.
    too_soon = history.at_s - history.fell_s < policy.scale_down_delay_s * STEP
    if wanted > present:
        decision = ScalingDecision(wanted, "MoreRequests" if up > policy.minimum else "Minimum", numbers)
    else:
        # The last requests may take long.
        working = math.ceil(history.in_flight / history.limit)
        fewer = min(max(needs[0][1], surges[0][1], working, policy.minimum), policy.maximum)
        if fewer >= present and present <= policy.maximum:
            decision = ScalingDecision(present, "Steady", numbers)
        elif present > policy.maximum:
            decision = ScalingDecision(policy.maximum, "Maximum", numbers)
        elif hold or young or too_soon:
            decision = ScalingDecision(present, "RolloutInProgress" if hold else "Counting", numbers)
        else:
            history = replace(history, fell_s=history.at_s)
            decision = ScalingDecision(fewer, "FewerRequests", numbers)
    return replace(history, needs=needs, surges=surges, desired=decision.desired), decision


def _need(history: LoadHistory, policy: ScalingPolicy, present: int) -> tuple[float, float, float, float]:
    """Return servers (with a fraction) for present requests, and for those to come; requests/s expected, and waiting.

    A short mean counts as far as it is no chance: the variance of Poisson arrivals is their rate.
    """
    means = (
        (history.short_per_s, SHORT_S),
        (history.middle_per_s, MIDDLE_S),
        (history.long_per_s, LONG_S),
        (history.slope_per_s, SLOPE_S),
    )
    middle = history.middle_per_s
    level = min(history.long_per_s, middle + LEVEL_DEVIATIONS * math.sqrt(middle / (2 * MIDDLE_S)))
    queued = history.in_flight - history.short_per_s * history.occupied_s
    queued = max(queued - LEVEL_DEVIATIONS * math.sqrt(max(history.in_flight, 0.0)), 0.0)
    # A queue is evidence by itself that requests become more.
    certain = 1.0 if queued > history.in_flight / 2 else SLOPE_DEVIATIONS / LEVEL_DEVIATIONS
    growth, steepest_per_s = 0.0, math.inf
    for (mean, length_s), (longer, longer_s) in pairwise(means):
        noise = LEVEL_DEVIATIONS * math.sqrt(mean / (2 * length_s))
        level = max(level, mean - noise)
        slope = min((mean - longer - certain * noise) / (longer_s - length_s), steepest_per_s)
        growth = max(growth, slope * (history.startup_s + length_s))
        # A long mean rises long after a ramp has ended; shorter ones tell.
        steepest_per_s = min(steepest_per_s, (mean - longer + noise) / (longer_s - length_s))
    expected_per_s = min(level + growth, MOST_GROWTH * level)
    if history.ready == 0:
        return float(present), float(present), expected_per_s, queued  # whoever fails may come again, or not
    if level < FEWEST_PER_S:
        return 0.0, 0.0, expected_per_s, queued
    if history.occupied_s == 0.0:
        return float(present), float(present), expected_per_s, queued
    reserve = history.losses_per_s * present * history.startup_s

    def servers(per_s: float) -> float:
        load = per_s * history.occupied_s
        return (load + LOAD_DEVIATIONS * math.sqrt(load)) / history.limit + reserve

    return servers(level), servers(expected_per_s + queued / DRAIN_S), expected_per_s, queued


def _with(
    needs: tuple[tuple[float, int], ...], at_s: float, servers: int, memory_s: float
) -> tuple[tuple[float, int], ...]:
    """Return the last times at which so many servers were needed, falling, with one more; the first is the most."""
    return (*(each for each in needs if at_s - each[0] < memory_s and each[1] > servers), (at_s, servers))


def _toward(mean: float, value: float, length_s: float, memory_s: float, age_s: float) -> float:
    """Return an exponentially weighted mean with one more value; a young one is the plain mean so far."""
    return mean + (value - mean) * max(-math.expm1(-length_s / memory_s), length_s / age_s)


def _occupied_s(former_s: float, in_flight: float, per_s: float, length_s: float) -> float:
    """Return the time of service, a low expectile of the time that requests take: it hardly follows queues."""
    if per_s < FEWEST_PER_S:
        return former_s
    taken_s = in_flight / per_s
    if former_s == 0.0:
        return taken_s
    ratio = taken_s / former_s
    if ratio < 1 - LARGEST_STEP:
        # No chance: what was taken for service was a queue.
        return former_s + (taken_s - former_s) * -math.expm1(-length_s / MIDDLE_S)
    change = min(ratio - 1.0, LARGEST_STEP)
    rise = RISE if ratio < QUEUE else RISE / 10
    weight = -math.expm1(-length_s / SERVICE_MEMORY_S) * (rise if change > 0 else 1.0)
    return former_s * (1.0 + change * weight)


def _limit(history: LoadHistory, target_ms: float, length_s: float) -> float:
    """Return how many requests in flight a server may have, so that they wait for the target on average.

    It grows slowly while servers that have so many keep queues short, and falls quickly where they do not (Chiu and
    Jain, 1989).
    """
    per_s = history.middle_per_s
    if history.ready == 0 or per_s < FEWEST_PER_S:
        return history.limit
    each = history.middle_in_flight / history.ready
    queue_ms = 1000 * max(history.middle_in_flight / per_s - history.occupied_s, 0.0)
    if queue_ms > target_ms and each <= 2 * history.limit:
        return max(history.limit * math.pow(LIMIT_FALL, length_s / LONG_S), 0.1)
    if queue_ms < target_ms / 2 and each > 0.8 * history.limit:
        return history.limit * math.pow(LIMIT_GROWTH, length_s / LONG_S)
    return history.limit
