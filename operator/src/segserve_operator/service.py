"""One level-based pass: observe the world, decide, apply. The event that triggered it does not matter.

`RolloutCache` keeps the evidence of the last seconds, which is newer than the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Protocol

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.models.actions import (
    Action,
    Announce,
    Assign,
    DropRevision,
    Effect,
    EmitEvent,
    EmitPoolEvent,
    Forget,
    Intent,
    SaveBundle,
    SavePoolStatus,
    SaveRevision,
    SaveRollout,
    SaveStatus,
    SetTraffic,
    StartGroup,
    StopGroup,
)
from segserve_operator.core.models.events import Event
from segserve_operator.core.models.inputs import sampled_groups
from segserve_operator.core.models.observed import (
    GroupObserved,
    ModelObserved,
    ModelStatus,
    Observed,
    PoolObserved,
    PoolStatus,
    SelfTest,
    SloWatch,
)
from segserve_operator.core.models.planning import DesiredState, desired_state, effects, intents
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import TrafficPlan, TrafficState

MAX_CONCURRENT_WRITES: Final = 16


@dataclass(slots=True)
class RolloutCache:
    """The newest records of rollouts, by name. Losing it loses only the evidence since the last write.

    `written` is the sequence of the last decision in the store and the time of that write (Unix seconds), by name;
    `watches` are the last hour of each model's SLO, `self_tests` the comparisons of stable with itself.
    """

    records: dict[str, Record] = field(default_factory=dict)
    written: dict[str, tuple[int, float]] = field(default_factory=dict)
    watches: Mapping[str, SloWatch] = field(default_factory=dict)
    self_tests: Mapping[str, SelfTest] = field(default_factory=dict)

    def take(self, stored: Mapping[str, Record], now_s: float) -> None:
        """Adopt records from the store that are newer: at the start, or after another process was the leader."""
        for name, record in stored.items():
            cached = self.records.get(name)
            if cached is None or _age(cached) < _age(record):
                self.records[name] = record
                self.written[name] = (record.sequence, now_s)

    def keep(self, desired: DesiredState) -> None:
        """Keep the results of a pass, and drop records that no status names any more."""
        self.watches, self.self_tests = desired.watches, desired.self_tests
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
        ...

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model with its spec and status."""
        ...

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""
        ...

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Write the record of a revision."""
        ...

    async def drop_revision(self, revision: str) -> None:
        """Delete the record of a revision, if it exists."""
        ...

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status, if the model exists."""
        ...

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Write the pool's status, if the pool exists."""
        ...

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return the records, by name, of the rollouts in models' statuses that may still change."""
        ...

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record; of those that ended, only the latest of each model are kept."""
        ...

    async def emit(self, model: str | None, event: Event) -> None:
        """Emit an event about a model, or about the pool if `model` is None."""
        ...

    async def forget(self, model: str) -> None:
        """Remove a deleted model permanently."""
        ...


class Fleet(Protocol):
    """The servers, in groups. Every write is idempotent."""

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with what its agents report."""
        ...

    async def start(self, group: str, replicas: int) -> None:
        """Give a group so many servers: start what does not run, and put right what differs from what it should be."""
        ...

    async def assign(self, group: str, assignment: Assignment) -> None:
        """Tell a group's agents what to hold."""
        ...

    async def stop(self, group: str) -> None:
        """End a group's servers and remove all that belongs to it; it is called until it is gone."""
        ...


class Traffic(Protocol):
    """The gateway."""

    @property
    def url(self) -> str:
        """Base URL for clients."""
        ...

    async def observe(self) -> TrafficState:
        """Return the plan in force and the requests in flight."""
        ...

    async def apply(self, plan: TrafficPlan) -> None:
        """Put a plan into force without failing a request; returns once the gateway follows it."""
        ...

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        """Return the gateways' counters of models, for two groups each; a gateway that does not answer is left out."""
        ...


class CheckRunner(Protocol):
    """Runner of checks in the background."""

    def schedule(self, checks: Collection[Check]) -> None:
        """Run exactly these checks from now on; one that is already running continues to its result."""
        ...

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return the results so far, by key."""
        ...


class Bundles(Protocol):
    """The store of diagnostic bundles of rollouts that were rolled back."""

    async def save(self, record: Record, group: str) -> None:
        """Store a rollout's record and the logs of its candidate's servers."""
        ...


class Announcer(Protocol):
    """Sends notifications out of the platform, in the background."""

    def announce(self, model: str, state: RolloutState, events: Collection[Event], url: str) -> None:
        """Send the events of a model's rollout; `url` is where the model answers."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The ports of one platform and the pass over them. `clock` returns Unix time in seconds."""

    store: Store
    fleet: Fleet
    traffic: Traffic
    clock: Callable[[], float]
    check_runner: CheckRunner
    bundles: Bundles
    announcer: Announcer
    rollout_cache: RolloutCache = field(default_factory=RolloutCache)

    async def observe(self) -> Observed:
        """Read the world into one immutable value."""
        # Timestamps in Kubernetes are whole seconds: a finer one would come back changed from a status.
        now_s = float(int(self.clock()))
        models = await self.store.models()
        self.rollout_cache.take(await self.store.rollouts(now_s), now_s)
        return Observed(
            now_s=now_s,
            gateway_url=self.traffic.url,
            pool=await self.store.observed_pool(),
            models=models,
            revisions=await self.store.revisions(),
            groups=await self.fleet.groups(),
            traffic=await self.traffic.observe(),
            records=dict(self.rollout_cache.records),
            written=dict(self.rollout_cache.written),
            samples=await self.traffic.samples(sampled_groups(models, self.rollout_cache.watches, now_s)),
            check_results=self.check_runner.check_results(),
            watches=self.rollout_cache.watches,
            self_tests=self.rollout_cache.self_tests,
        )

    async def run_once(self) -> tuple[Action, ...]:
        """Make one pass and return the actions taken, none if the world is as desired.

        A model whose intents cannot be written stays as it is and does not hold up the others; its error is raised
        after all else is done.
        """
        world = await self.observe()
        desired = desired_state(world)
        wanted = intents(desired, world)
        failures = await self._write_intents(wanted)
        if failures:
            desired = desired_state(world, frozenset(failures))
        self.rollout_cache.keep(desired)
        self.check_runner.schedule(desired.checks)
        after = tuple(effects(desired, world))
        for action in after:
            await self._apply(action)
        for failure in failures.values():
            raise failure
        return (*chain.from_iterable(wanted.values()), *after)

    async def _write_intents(self, wanted: Mapping[str, Sequence[Intent]]) -> dict[str, Exception]:
        """Write the intents of many models concurrently; return the error of each model that failed."""
        semaphore = asyncio.Semaphore(MAX_CONCURRENT_WRITES)

        async def write(actions: Sequence[Intent]) -> None:
            async with semaphore:
                for action in actions:
                    await self._write(action)

        outcomes = await asyncio.gather(*map(write, wanted.values()), return_exceptions=True)
        failures: dict[str, Exception] = {}
        for model, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures[model] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        return failures

    async def _write(self, intent: Intent) -> None:
        match intent:
            case SaveRevision(revision, assigned):
                await self.store.save_revision(revision, assigned)
            case EmitEvent(model, event):
                await self.store.emit(model, event)
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
            case SaveBundle(record, group):
                await self.bundles.save(record, group)
            case Announce(model, state, events, url):
                self.announcer.announce(model, state, events, url)
            case Forget(model):
                await self.store.forget(model)
            case DropRevision(revision):
                await self.store.drop_revision(revision)
            case EmitPoolEvent(event):
                await self.store.emit(None, event)
            case SavePoolStatus(status):
                await self.store.save_pool_status(status)


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

    def new_lines(self, actions: Sequence[Action]) -> list[str]:
        """Return a line for each action of a pass that the pass before did not take."""
        lines = dict.fromkeys(map(brief, actions))
        new = [line for line in lines if line not in self._last]
        self._last = set(lines)
        return new
