"""The number of servers that a pool needs, from its requests in flight, by Knative's rule.

The mean of the requests in flight over the stable window, divided by the target of a server, is the number of servers.
A pool panics if the mean over the panic window needs at least `PANIC_THRESHOLD` times the servers that are ready: until
that has not been so for a stable window, the panic window counts as well and the number never falls. Otherwise it falls
to the largest number of the scale-down delay, at once by at most `MAX_SCALE_DOWN_RATE`. Knative's defaults
(https://knative.dev/docs/serving/autoscaling/) apply; its max scale-up rate of 1000 is beyond `spec.scaling.maximum`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

STABLE_WINDOW_S: Final = 60.0
PANIC_WINDOW_S: Final = 6.0
PANIC_THRESHOLD: Final = 2.0
MAX_SCALE_DOWN_RATE: Final = 2.0
LONGEST_GAP_S: Final = 30.0
"""Longest time between two samples: after a longer one the history begins anew."""
SHORTEST_S: Final = 0.1
"""Shortest time for which a rate is taken."""
SERVICE_MEMORY_S: Final = 7200.0
"""Time in which a time of service that is not reached any more is forgotten, as another revision may be slower."""
LIMIT_GROWTH: Final = 1.08
LIMIT_FALL: Final = 0.9
"""Factors in a stable window of the requests in flight that a server may have, for a target of queue time."""


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
    """Samples of the stable window since `began_s`, and what followed from earlier ones.

    `limit` is how many requests in flight a server may have by the target, `service_s` the time of service that `limit`
    follows from with a target of queue time. In a panic since `panic_since_s`, `panicked` servers were wanted at the
    most. `recommended` are the last times at which so many servers were, falling, for the scale-down delay.
    """

    began_s: float = 0.0
    samples: tuple[LoadSample, ...] = ()
    limit: float = 1.0
    service_s: float = math.inf
    panic_since_s: float | None = None
    panicked: int = 0
    desired: int = 0
    recommended: tuple[tuple[float, int], ...] = ()

    @property
    def at_s(self) -> float:
        """Unix time of the last sample; 0 before the first one."""
        return self.samples[-1].at_s if self.samples else 0.0

    @property
    def ready(self) -> int:
        """Number of servers that were ready at the last sample."""
        return self.samples[-1].ready if self.samples else 0

    @property
    def room(self) -> float:
        """How many requests the servers that are ready may have in flight by the target."""
        return self.ready * self.limit

    def in_flight(self, window_s: float) -> float:
        """Return the mean number of requests in flight over the last `window_s` seconds; 0 without samples."""
        counts = [each.in_flight for each in self.samples if self.at_s - each.at_s < window_s]
        return sum(counts) / max(len(counts), 1)


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
    if history.samples and length_s == 0:
        return history
    limit = target.concurrency or history.limit
    if not history.samples or not 0 < length_s <= LONGEST_GAP_S:
        return LoadHistory(sample.at_s, (sample,), limit=limit, desired=history.desired)
    kept = (each for each in history.samples if sample.at_s - each.at_s < STABLE_WINDOW_S)
    following = replace(history, samples=(*kept, sample), limit=limit)
    return following if target.queue_ms is None else _with_limit(following, target.queue_ms, length_s)


def _with_limit(history: LoadHistory, target_ms: float, length_s: float) -> LoadHistory:
    """Return the history with the limit by which requests wait for the target on average.

    The time that requests take is that in flight by the rate of arrival (Little, 1961); the shortest one is the time of
    service, and what exceeds it a queue. The limit grows slowly while servers that have so many requests keep queues
    short, and falls quickly where they do not (Chiu and Jain, 1989).
    """
    span_s = history.at_s - history.samples[0].at_s
    arrived = sum(each.arrived for each in history.samples[1:])
    each = history.in_flight(STABLE_WINDOW_S) / max(history.ready, 1)
    # Requests of idle servers may be other ones, such as health checks in a calm night.
    if history.ready == 0 or arrived == 0 or each < history.limit / 4:
        return history
    taken_s = history.in_flight(STABLE_WINDOW_S) * span_s / arrived
    service_s = min(history.service_s * math.exp(length_s / SERVICE_MEMORY_S), taken_s)
    queue_ms = 1000 * (taken_s - service_s)
    limit = history.limit
    if queue_ms > target_ms and each <= 2 * limit:
        limit = max(limit * math.pow(LIMIT_FALL, length_s / STABLE_WINDOW_S), 0.1)
    elif queue_ms < target_ms / 2 and each > 0.8 * limit:
        limit *= math.pow(LIMIT_GROWTH, length_s / STABLE_WINDOW_S)
    return replace(history, limit=limit, service_s=service_s)


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
    if not told or (load.history.samples and length_s == 0):
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


def decide(
    history: LoadHistory, policy: ScalingPolicy, present: int, *, hold: bool = False
) -> tuple[LoadHistory, ScalingDecision]:
    """Return how many servers are wanted now, where `present` are wanted so far.

    With `hold` none is given up now, nor by a history shorter than the delay; those above the maximum always are.
    """
    at_s, ready = history.at_s, max(history.ready, 1)
    stable, panic = history.in_flight(STABLE_WINDOW_S), history.in_flight(PANIC_WINDOW_S)
    wanted, wanted_by_panic = math.ceil(stable / history.limit), math.ceil(panic / history.limit)
    since_s = history.panic_since_s
    if wanted_by_panic >= PANIC_THRESHOLD * ready:
        since_s = at_s
    elif since_s is not None and at_s - since_s > STABLE_WINDOW_S:
        since_s = None
    if since_s is not None:
        wanted = max(wanted, wanted_by_panic, history.panicked)
    panicked = wanted if since_s is not None else 0
    # Without servers requests fail at once, and whoever sent them may come again.
    wanted = wanted if history.ready else present
    recent = (each for each in history.recommended if at_s - each[0] < policy.scale_down_delay_s and each[1] > wanted)
    recommended = (*recent, (at_s, wanted))
    message = (
        f"{stable:.3g} requests were in flight over {STABLE_WINDOW_S:.0f} s, {panic:.3g} over {PANIC_WINDOW_S:.0f} s, "
        f"and a server may have {history.limit:.3g}"
    )
    more = min(max(wanted, policy.minimum), policy.maximum)
    fewer = max(recommended[0][1], math.floor(ready / MAX_SCALE_DOWN_RATE))
    fewer = min(max(fewer, policy.minimum), policy.maximum)
    if more > present:
        decision = ScalingDecision(more, "MoreRequests" if wanted > policy.minimum else "Minimum", message)
    elif present > policy.maximum:
        decision = ScalingDecision(policy.maximum, "Maximum", message)
    elif fewer >= present:
        decision = ScalingDecision(present, "Steady", message)
    elif hold:
        decision = ScalingDecision(present, "RolloutInProgress", message)
    elif at_s - history.began_s < max(STABLE_WINDOW_S, policy.scale_down_delay_s):
        decision = ScalingDecision(present, "Counting", message)
    else:
        decision = ScalingDecision(fewer, "FewerRequests", message)
    history = replace(
        history, panic_since_s=since_s, panicked=panicked, desired=decision.desired, recommended=recommended
    )
    return history, decision
