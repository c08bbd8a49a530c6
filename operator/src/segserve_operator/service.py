"""One level-based pass: observe the world, decide, apply. The event that triggered it does not matter.

`RolloutCache` keeps the evidence of the last seconds, which is newer than the store.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Protocol

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_common.api_errors import ForbiddenError, InvalidError, UnavailableError
from segserve_common.backoff import Backoff, Repeats
from segserve_operator.adapters.kube.api import NotLeaderError
from segserve_operator.core.advance.inputs import sampled_groups
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.models.actions import (
    Action,
    Announce,
    AnnounceDrift,
    Assign,
    DropRevision,
    Effect,
    EmitEvent,
    EmitPoolEvent,
    Forget,
    Intent,
    SavePoolStatus,
    SaveRevision,
    SaveRollout,
    SaveStatus,
    SetTraffic,
    StartGroup,
    StopGroup,
)
from segserve_operator.core.models.effects import effects, permitted
from segserve_operator.core.models.failures import (
    failed,
    is_due,
    is_over,
    key_of,
    without_refused_revisions,
)
from segserve_operator.core.models.planning import DesiredState, desired_state, intents
from segserve_operator.core.models.rest import Rest
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.traffic import TrafficPlan, TrafficState
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import (
    EffectFailure,
    GroupObserved,
    ModelObserved,
    ModelStatus,
    Observed,
    PoolObserved,
    PoolStatus,
    SloWatch,
)
from segserve_operator.core.world.restore import with_presumed_reports

MAX_CONCURRENT_WRITES: Final = 16
MESSAGE_LENGTH: Final = 1000
QUOTA: Final = "exceeded quota"
REPEAT_BACKOFF: Final = Backoff(first_s=0.5, longest_s=30.0)
"""Delay before an action is repeated that succeeded and that changed nothing."""
DEFECTS: Final = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)


log = logging.getLogger("segserve")


@dataclass(slots=True)
class RolloutCache:
    """The newest records of rollouts, by name. Losing it loses only the evidence since the last write.

    `written` is the sequence of the last decision in the store and the time of that write (Unix seconds), by name, and
    `stored` what the store had in the last pass. `watches` are the last hour of each model's SLO, `drifts` comparisons
    with references. `at_rest` is True if the last pass found nothing that becomes due as time passes, `rest` the models
    that it found settled. `repeats` are the actions that were taken, and `repeat_s` is when the first of those that
    passes require again is due (Unix seconds).
    """

    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, tuple[int, float]] = field(default_factory=dict)
    stored: Mapping[str, Record] = field(default_factory=dict)
    watches: Mapping[str, SloWatch] = field(default_factory=dict)
    drifts: Mapping[str, DriftWatch] = field(default_factory=dict)
    at_rest: bool = False
    rest: Rest = field(default_factory=Rest)
    repeats: Repeats[Hashable] = field(default_factory=lambda: Repeats(REPEAT_BACKOFF))
    repeat_s: float = math.inf

    @property
    def waits(self) -> bool:
        """Whether something becomes due as time passes, such as an action that passes repeat."""
        return not self.at_rest or self.repeat_s < math.inf

    def take(self, stored: Mapping[str, Record], now_s: float) -> None:
        """Adopt records from the store that are newer: at the start, or after another process was the leader."""
        for name, record in stored.items():
            cached = self.records.get(name)
            if cached is not None and self.stored.get(name) is record:
                continue
            if cached is None or _age(cached) < _age(record):
                self.records[name] = record
                self.written[name] = (record.sequence, now_s)
        self.stored = stored

    def keep(self, desired: DesiredState) -> None:
        """Keep the results of a pass, and drop records that no status names any more."""
        self.watches, self.drifts = desired.watches, desired.drifts
        self.at_rest, self.rest = desired.at_rest, desired.rest
        states = (status.rollout for status in desired.statuses.values())
        named = {state.rollout for state in states if state is not None}
        self.records.update(desired.records)
        for name in self.records.keys() - named - desired.records.keys():
            del self.records[name]
            self.written.pop(name, None)

    def wrote(self, record: Record, now_s: float) -> None:
        """Note that a record was written to the store."""
        self.written[record.name] = (record.sequence, now_s)


def _age(record: Record) -> tuple[int, float]:
    # Not by the rows' times: a clock may be set back.
    return record.sequence, sum(row.seconds for row in record.rows)


class Store(Protocol):
    """The store of resources. Every write is idempotent."""

    async def observed_pool(self) -> PoolObserved | None:
        """Return the pool of all models in this store; None if it does not exist."""

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model with its spec and status."""

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Write the record of a revision."""

    async def drop_revision(self, revision: str) -> None:
        """Delete the record of a revision, if it exists."""

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status, if the model exists."""

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Write the pool's status, if the pool exists."""

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return the records, by name, of the rollouts in models' statuses that may still change."""

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record; of ended rollouts, only the latest of each model are kept."""

    async def emit(self, model: str | None, event: Event) -> None:
        """Emit an event about a model, or about the pool if `model` is None."""

    async def forget(self, model: str) -> None:
        """Remove a deleted model permanently."""


class Fleet(Protocol):
    """The servers, in groups. Every write is idempotent."""

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with what its agents report."""

    async def start(self, group: str, replicas: int) -> None:
        """Give a group so many servers: start what does not run, and put right what differs from what it should be."""

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Write what a group's agents are to hold."""

    async def stop(self, group: str) -> None:
        """End a group's servers and remove all that belongs to it; it is called until it is gone."""


class Traffic(Protocol):
    """The gateway."""

    @property
    def url(self) -> str:
        """Base URL for clients."""

    async def observe(self) -> TrafficState:
        """Return the plan in force and the requests in flight."""

    async def apply(self, plan: TrafficPlan) -> None:
        """Put a plan into force without failing a request; returns once the gateway follows it."""

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        """Return the gateways' counters of models, for two groups each; a gateway that does not answer is left out."""


class CheckRunner(Protocol):
    """Runner of checks in the background."""

    def schedule(self, checks: Collection[Check]) -> None:
        """Run exactly these checks from now on; one that is already running continues to its result."""

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return the results so far, by key."""


class Announcer(Protocol):
    """Sends notifications out of the platform, in the background."""

    def announce(self, announcement: Announce | AnnounceDrift) -> None:
        """Send the events of a model's rollout, or of its drift."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The ports of one platform and the pass over them. `clock` returns Unix time in seconds.

    `failures` are the actions that failed in the last passes by kind and subject; losing them loses only their delays.
    """

    store: Store
    fleet: Fleet
    traffic: Traffic
    clock: Callable[[], float]
    check_runner: CheckRunner
    announcer: Announcer
    rollout_cache: RolloutCache = field(default_factory=RolloutCache)
    failures: dict[tuple[str, str], EffectFailure] = field(default_factory=dict)

    async def observe(self) -> Observed:
        """Read the world into one immutable value."""
        # Timestamps in Kubernetes are whole seconds: a finer one would come back changed from a status.
        now_s = float(int(self.clock()))
        models = await self.store.models()
        self.rollout_cache.take(await self.store.rollouts(now_s), now_s)
        traffic = await self.traffic.observe()
        return Observed(
            now_s=now_s,
            gateway_url=self.traffic.url,
            pool=await self.store.observed_pool(),
            models=models,
            revisions=await self.store.revisions(),
            groups=with_presumed_reports(await self.fleet.groups(), traffic),
            traffic=traffic,
            records=dict(self.rollout_cache.records),
            written=dict(self.rollout_cache.written),
            samples=await self.traffic.samples(sampled_groups(models, self.rollout_cache.watches, now_s)),
            check_results=self.check_runner.check_results(),
            watches=self.rollout_cache.watches,
            drifts=self.rollout_cache.drifts,
            failures=dict(self.failures),
        )

    async def run_once(self) -> tuple[Action, ...]:
        """Make one pass and return the actions taken, none if the world is as desired.

        An action that fails holds only what depends on it; it is kept in `failures`, which the next pass reports in
        statuses, and retried after a delay. Raises the error of an API that answers nothing, or that lets
        this process write no more.
        """
        world = without_refused_revisions(await self.observe())
        outcome = _Outcome(world, self.rollout_cache.repeats)
        desired = desired_state(world, former=self.rollout_cache.rest)
        wanted = intents(desired, world)
        held = await self._write_intents(wanted, outcome)
        if held:
            desired = desired_state(world, held)
        self.rollout_cache.keep(desired)
        self.check_runner.schedule(desired.checks)
        for stage in effects(desired, world):
            permitted_stage = [tuple(outcome.ready(sequence)) for sequence in stage]
            await _concurrently([partial(self._apply_sequence, each, outcome) for each in permitted_stage if each])
        outcome.raise_outage()
        outcome.repeats.follow(outcome.asked, world.now_s)
        self._keep_failures(outcome)
        self.rollout_cache.repeat_s = outcome.repeat_s
        return tuple(outcome.taken)

    async def _write_intents(self, wanted: Mapping[str, Sequence[Intent]], outcome: _Outcome) -> frozenset[str]:
        """Write the intents of many models concurrently; return the models that have to stay as they are."""
        world = outcome.world
        outcome.wanted |= {key_of(intent) for each in wanted.values() for intent in each}
        held = {model for model, each in wanted.items() if not all(is_due(intent, world) for intent in each)}

        async def write(model: str) -> None:
            # All at once: what is written first makes nothing of the rest an action of before.
            for intent in [each for each in wanted[model] if outcome.is_new(each)]:
                if not await outcome.attempt(intent, self._write(intent)):
                    held.add(model)
                    return

        await _concurrently([partial(write, model) for model in wanted if model not in held])
        return frozenset(held)

    async def _apply_sequence(self, sequence: Sequence[Effect], outcome: _Outcome) -> None:
        for effect in sequence:
            await outcome.attempt(effect, self._apply(effect))

    def _keep_failures(self, outcome: _Outcome) -> None:
        """Keep what failed, and forget what succeeded or is no longer required."""
        if not self.failures and not outcome.errors:
            return
        world = outcome.world
        revisions = {model.wanted.assigned.revision for model in world.models if model.wanted is not None}
        for key, failure in [*self.failures.items()]:
            # A spec that counts as unreadable meanwhile requires no revision.
            waits = failure.kind == "SaveRevision" and failure.subject not in revisions and not is_over(failure, world)
            if key not in outcome.wanted and not waits:
                del self.failures[key]
        for action in outcome.taken:
            self.failures.pop(key_of(action), None)
        for action, error in outcome.errors:
            self.failures[key_of(action)] = failed(
                action,
                _reason(error),
                world,
                passing=not isinstance(error, (ForbiddenError, InvalidError)),
                wait_s=float(getattr(error, "retry_after_s", 0.0)),
            )

    async def _write(self, intent: Intent) -> None:
        match intent:
            case SaveRevision(revision, assigned):
                await self.store.save_revision(revision, assigned)
            case EmitEvent(model, event):
                await self._emit(model, event)
            case SaveStatus(model, status):
                await self.store.save_status(model, status)

    async def _apply(self, effect: Effect) -> None:
        match effect:
            case StartGroup(group, replicas):
                await self.fleet.start(group, replicas)
            case Assign(group, assignment):
                await self.fleet.assign(group, assignment)
            case SetTraffic(traffic_plan):
                await self.traffic.apply(traffic_plan)
            case SaveRollout(record):
                await self.store.save_rollout(record)
                self.rollout_cache.wrote(record, float(int(self.clock())))
            case StopGroup(group):
                await self.fleet.stop(group)
            case Announce() | AnnounceDrift():
                self.announcer.announce(effect)
            case Forget(model):
                await self.store.forget(model)
            case DropRevision(revision):
                await self.store.drop_revision(revision)
            case EmitPoolEvent(event):
                await self._emit(None, event)
            case SavePoolStatus(status):
                await self.store.save_pool_status(status)

    async def _emit(self, model: str | None, event: Event) -> None:
        try:
            await self.store.emit(model, event)
        except (ForbiddenError, InvalidError) as error:
            # The status says the same: what it is about does not wait for an Event that is refused.
            log.warning("Event %s of %s is refused: %s", event.reason, model or "the pool", error)


@dataclass(slots=True)
class _Outcome:
    """The outcome of a pass so far: the actions taken, those that failed, and those that wait."""

    world: Observed
    repeats: Repeats[Hashable]
    statuses: Mapping[str, ModelStatus] = field(init=False)
    asked: set[Hashable] = field(default_factory=set)
    repeat_s: float = math.inf
    taken: list[Action] = field(default_factory=list)
    errors: list[tuple[Action, Exception]] = field(default_factory=list)
    waiting: list[Effect] = field(default_factory=list)
    wanted: set[tuple[str, str]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.statuses = {model.name: model.status for model in self.world.models}

    def ready(self, sequence: Sequence[Effect]) -> Iterator[Effect]:
        """Yield what of a sequence may be applied now."""
        held = [*self.waiting, *(action for action, _ in self.errors if not isinstance(action, Intent))]
        for effect in sequence:
            self.wanted.add(key_of(effect))
            permitted_effect = permitted(effect, held, self.world)
            if permitted_effect is None or not is_due(permitted_effect, self.world):
                self.waiting.append(effect)
            elif self.is_new(permitted_effect):
                yield permitted_effect

    def is_new(self, action: Action) -> bool:
        """Return whether an action is not one that passes take again and again, or whether its delay is over."""
        key, content = self._key_and_content(action)
        self.asked.add(key)
        if self.repeats.is_due(key, self.world.now_s, content):
            return True
        self.repeat_s = min(self.repeat_s, self.world.now_s + self.repeats.wait_s(key, self.world.now_s))
        return False

    async def attempt(self, action: Action, writing: Awaitable[None]) -> bool:
        """Wait for an action, note what became of it, and return whether it was taken."""
        try:
            await writing
        except Exception as error:
            self.errors.append((action, error))
            if isinstance(error, DEFECTS):
                log.exception("%s failed", brief(action))
            return False
        self.taken.append(action)
        key, content = self._key_and_content(action)
        self.repeats.record(key, self.world.now_s, content)
        return True

    def _key_and_content(self, action: Action) -> tuple[Hashable, object]:
        """Return what an action is about, and what makes it another one; times in a status do not."""
        match action:
            case SaveStatus(model):
                return key_of(action), self.statuses.get(model)
            case EmitEvent(model, event):
                return (*key_of(action), event.reason), self.statuses.get(model)
            case SaveRollout(record):
                return key_of(action), _age(record)  # its arrays have no equality that is true or false
        return key_of(action), action

    def raise_outage(self) -> None:
        """Raise the error that is about the API and not about an object, if there is one."""
        errors = [error for _, error in self.errors]
        for error in errors:
            if isinstance(error, NotLeaderError):
                raise error
        silent = [isinstance(error, UnavailableError) and error.status is None for error in errors]
        if errors and all(silent) and not self.taken:
            raise errors[0]


async def _concurrently(calls: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Await calls with a bound on their number; what is not an `Exception` ends them all."""
    semaphore = asyncio.Semaphore(MAX_CONCURRENT_WRITES)

    async def bounded(call: Callable[[], Awaitable[None]]) -> None:
        async with semaphore:
            await call()

    if len(calls) == 1:
        await calls[0]()
        return
    try:
        async with asyncio.TaskGroup() as group:
            for call in calls:
                group.create_task(bounded(call))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _reason(error: Exception) -> FailureReason:
    """Return the reason of a failure, with the API's own words."""
    words = (str(error) or type(error).__name__)[:MESSAGE_LENGTH]
    if QUOTA in words:
        return FailureReason("QuotaExceeded", words)
    if type(error).__module__ == "builtins":
        return FailureReason("WriteFailed", f"{type(error).__name__}: {words}")
    return FailureReason(type(error).__name__.removesuffix("Error"), words)


def brief(action: Action) -> str:
    """Return a short description of an action, for a log."""
    fields = (getattr(action, name) for name in action.__dataclass_fields__)
    named = [value for value in fields if isinstance(value, str)]
    reasons = [value.reason for value in (getattr(action, "event", None),) if value is not None]
    return " ".join([type(action).__name__, *named, *reasons])


class ActionLog:
    """Texts for a log: an action that consecutive passes repeat, as a stop that takes seconds, is described once."""

    def __init__(self) -> None:
        self._last: set[str] = set()
        self._attempts: dict[tuple[str, str], int] = {}

    def new_lines(self, actions: Sequence[Action]) -> list[str]:
        """Return a line for each action of a pass that the pass before did not take."""
        lines = dict.fromkeys(map(brief, actions))
        new = [line for line in lines if line not in self._last]
        self._last = set(lines)
        return new

    def new_failures(self, failures: Mapping[tuple[str, str], EffectFailure]) -> list[str]:
        """Return a line for each action that failed since the last call."""
        new = [each for key, each in failures.items() if self._attempts.get(key) != each.attempts]
        self._attempts = {key: each.attempts for key, each in failures.items()}
        return [
            f"{each.kind} {each.subject} failed ({each.attempts} times): {each.reason.reason}: {each.reason.message}"
            for each in new
        ]
