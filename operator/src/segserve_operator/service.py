"""One level-based pass: observe the world, decide, apply. Which event woke it never matters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Protocol

from segserve_builder.agent.protocol import AssignedModel, Assignment
from segserve_operator.caches import RolloutCache
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
)
from segserve_operator.core.models.planning import DesiredState, desired_state, effects, intents
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import TrafficPlan, TrafficState

WRITES_AT_ONCE: Final = 16


class Store(Protocol):
    """Where resources live. Every write is idempotent."""

    async def observed_pool(self) -> PoolObserved | None:
        """Return the pool that all models of this store are of; None where there is none (any more)."""
        ...

    async def models(self) -> tuple[ModelObserved, ...]:
        """Return every model with its spec and status."""
        ...

    async def revisions(self) -> Mapping[str, AssignedModel]:
        """Return the records of revisions by name."""
        ...

    async def save_revision(self, revision: str, assigned: AssignedModel) -> None:
        """Record what a revision is made of."""
        ...

    async def drop_revision(self, revision: str) -> None:
        """Remove a record; one that is gone already is fine."""
        ...

    async def save_status(self, model: str, status: ModelStatus) -> None:
        """Write a model's status; a model that is gone is fine."""
        ...

    async def save_pool_status(self, status: PoolStatus) -> None:
        """Write the pool's status; a pool that is gone is fine."""
        ...

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        """Return by name the records of the rollouts that models' statuses name and that may still change."""
        ...

    async def save_rollout(self, record: Record) -> None:
        """Write a rollout's record; of those that ended only the latest of each model are kept."""
        ...

    async def emit(self, model: str | None, event: Event) -> None:
        """Let people know something of a model, or (None) of the pool."""
        ...

    async def forget(self, model: str) -> None:
        """Remove a deleted model for good."""
        ...


class Fleet(Protocol):
    """The servers, in groups. Every write is idempotent."""

    async def groups(self) -> Mapping[str, GroupObserved]:
        """Return every group with what its agents report."""
        ...

    async def start(self, group: str) -> None:
        """Start what of a group does not run, and put right what differs from what it should be."""
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
        """Where clients call it."""
        ...

    async def observe(self) -> TrafficState:
        """Return the plan that it follows and the requests in flight."""
        ...

    async def apply(self, plan: TrafficPlan) -> None:
        """Make it follow a plan; returns once it does, and no request fails on the way."""
        ...

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        """Return what the gateways have counted of models, of two groups each; a gateway that is away is left out."""
        ...


class CheckRunner(Protocol):
    """Finds things out in the background."""

    def ask(self, checks: Collection[Check]) -> None:
        """Find out these things, and nothing else any more; what is on its way already goes on to its answer."""
        ...

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return by key what was found out."""
        ...


class Bundles(Protocol):
    """Where what tells why a rollout was rolled back is kept."""

    async def save(self, record: Record, group: str) -> None:
        """Keep a rollout's record and the logs of its candidate's servers."""
        ...


class Announcer(Protocol):
    """Tells people outside of the platform, in the background."""

    def announce(self, model: str, state: RolloutState, events: Collection[Event], url: str) -> None:
        """Tell what became of a model's rollout."""
        ...


@dataclass(frozen=True, slots=True)
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
        # Kubernetes' times are whole seconds: a finer one would come back changed from a status.
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
        """Make one pass and return the actions it took, none where the world was as wanted.

        A model whose intents cannot be written down stays as it is, without holding up the others; its error is
        raised once they are done.
        """
        world = await self.observe()
        desired = desired_state(world)
        wanted = intents(desired, world)
        failures = await self._record(wanted)
        if failures:
            desired = desired_state(world, frozenset(failures))
        self._learn(desired)
        after = tuple(effects(desired, world))
        for action in after:
            await self._apply(action)
        for failure in failures.values():
            raise failure
        return (*chain.from_iterable(wanted.values()), *after)

    def _learn(self, desired: DesiredState) -> None:
        """Keep what the rollouts saw, and have found out what they ask for."""
        self.rollout_cache.keep(desired)
        self.check_runner.ask(desired.checks)

    async def _record(self, wanted: Mapping[str, Sequence[Intent]]) -> dict[str, Exception]:
        """Write down the intents, of many models at a time; return the error of each model that failed."""
        turns = asyncio.Semaphore(WRITES_AT_ONCE)

        async def record(actions: Sequence[Intent]) -> None:
            async with turns:
                for action in actions:
                    await self._write_down(action)

        outcomes = await asyncio.gather(*map(record, wanted.values()), return_exceptions=True)
        failures: dict[str, Exception] = {}
        for model, outcome in zip(wanted, outcomes, strict=True):
            if isinstance(outcome, Exception):
                failures[model] = outcome
            elif isinstance(outcome, BaseException):
                raise outcome
        return failures

    async def _write_down(self, intent: Intent) -> None:
        match intent:
            case SaveRevision(revision, assigned):
                await self.store.save_revision(revision, assigned)
            case EmitEvent(model, event):
                await self.store.emit(model, event)
            case SaveStatus(model, status):
                await self.store.save_status(model, status)

    async def _apply(self, effect: Effect) -> None:
        match effect:
            case StartGroup(group):
                await self.fleet.start(group)
            case Assign(group, assignment):
                await self.fleet.assign(group, assignment)
            case SetTraffic(traffic_plan):
                await self.traffic.apply(traffic_plan)
            case SaveRollout(record):
                await self.store.save_rollout(record)
                self.rollout_cache.wrote(record, float(int(self.clock())))
            case StopGroup(group):
                await self.fleet.stop(group)
            case _:
                await self._tidy(effect)

    async def _tidy(self, effect: Effect) -> None:
        match effect:
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
    """Return an action in a few words, for a log."""
    fields = (getattr(action, name) for name in action.__dataclass_fields__)
    named = [value for value in fields if isinstance(value, str)]
    told = [value.reason for value in (getattr(action, "event", None),) if value is not None]
    return " ".join([type(action).__name__, *named, *told])
