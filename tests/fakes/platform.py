"""A platform in memory: a store, a fleet whose agents do as they are told, and a crash at any write."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fakes.golden_scores import score_report
from segserve_builder.agent.protocol import (
    AssignedModel,
    Assignment,
    ModelReport,
    ModelState,
    ProofReport,
    ScoreReport,
    TrialReport,
)
from segserve_builder.spec.model_spec import Artifact, Input, ModelClass, Output, Runtime
from segserve_builder.steps.pipeline import Pipeline
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import DISAGREEMENTS, RATIOS
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.models.actions import Announce, AnnounceDrift
from segserve_operator.core.rollout.counters import Counters, PairCounts, Sample, Series, SeriesCounts
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.traffic import Endpoint, Mirror, TrafficPlan, TrafficState
from segserve_operator.core.world.event import Event
from segserve_operator.core.world.observed import (
    EffectFailure,
    GroupObserved,
    ModelObserved,
    ModelStatus,
    PoolObserved,
    PoolStatus,
    ServerObserved,
    Wanted,
)
from segserve_operator.mapping.rollouts import HISTORY
from segserve_operator.service import RolloutCache, Service


class Crash(BaseException):
    """The operator dies here."""


def assigned(model: str, network: str = "1", *, classes: tuple[str, ...] = ("background", "coin")) -> AssignedModel:
    """Return a model whose network file is told by one character."""
    sha256 = network.encode().hex().rjust(64, "0")
    pipeline = Pipeline(
        model=model,
        artifact_sha256=sha256,
        family="semantic-logits",
        input=Input(),
        classes=tuple(ModelClass(id=i, name=name) for i, name in enumerate(classes)),
        preprocess=(),
        postprocess=(),
        output=Output(),
        runtime=Runtime(),
    )
    return AssignedModel(pipeline=pipeline, artifact=Artifact(uri="file:///network.onnx", sha256=sha256))


@dataclass
class InMemoryStore:
    """Resources in a dictionary."""

    objects: dict[str, ModelObserved] = field(default_factory=dict)
    records: dict[str, AssignedModel] = field(default_factory=dict)
    pool: PoolObserved | None = field(default_factory=lambda: PoolObserved("default", status=PoolStatus()))
    told: list[tuple[str | None, str]] = field(default_factory=list)
    rollout_records: dict[str, Record] = field(default_factory=dict)

    def apply(
        self,
        told: AssignedModel,
        *,
        keep_previous_s: float = 3600,
        allow_class_changes: bool = False,
        policy: RolloutPolicy | None = None,
        slo: Slo | None = None,
        progress_deadline_s: float = 600,
    ) -> None:
        wanted = Wanted(told, keep_previous_s, allow_class_changes, policy, slo, progress_deadline_s)
        known = self.objects.get(told.model)
        generation = known.generation + 1 if known else 1
        status = known.status if known else ModelStatus()
        annotations = known.annotations if known else {}
        self.objects[told.model] = ModelObserved(told.model, generation, wanted, status=status, annotations=annotations)

    def delete(self, model: str) -> None:
        self.objects[model] = replace(self.objects[model], deleting=True)

    def annotate(self, model: str, **annotations: str) -> None:
        """Set annotations of segserve's prefix, by verb; `_` stands for `-`."""
        given = {f"segserve.dev/{verb.replace('_', '-')}": value for verb, value in annotations.items()}
        known = self.objects[model]
        self.objects[model] = replace(known, annotations={**known.annotations, **given})

    async def observed_pool(self) -> PoolObserved | None:
        return self.pool

    async def save_pool_status(self, status: PoolStatus) -> None:
        if self.pool is not None:
            self.pool = replace(self.pool, status=status)

    async def emit(self, model: str | None, event: Event) -> None:
        self.told.append((model, event.reason))

    async def models(self) -> tuple[ModelObserved, ...]:
        return tuple(self.objects.values())

    async def revisions(self) -> Mapping[str, AssignedModel]:
        return dict(self.records)

    async def save_revision(self, revision: str, told: AssignedModel) -> None:
        self.records[revision] = told

    async def drop_revision(self, revision: str) -> None:
        self.records.pop(revision, None)

    async def rollouts(self, now_s: float) -> Mapping[str, Record]:
        states = [model.status.rollout for model in self.objects.values()]
        names = [state.rollout for state in states if state is not None and state.matters(now_s)]
        return {name: self.rollout_records[name] for name in names if name in self.rollout_records}

    async def save_rollout(self, record: Record) -> None:
        if record.model not in self.objects:
            return
        self.rollout_records[record.name] = record
        former = [each.name for each in self.rollout_records.values() if each.model == record.model]
        for name in former[: max(len(former) - 1 - HISTORY, 0)]:
            del self.rollout_records[name]

    async def save_status(self, model: str, status: ModelStatus) -> None:
        if model in self.objects:
            self.objects[model] = replace(self.objects[model], status=status)

    async def forget(self, model: str) -> None:
        self.objects.pop(model, None)
        self.rollout_records = {name: each for name, each in self.rollout_records.items() if each.model != model}


@dataclass
class Verdict:
    """What an agent will say of a revision instead of Ready."""

    reason: str
    retryable: bool = False
    attempts: int = 1


@dataclass
class InMemoryFleet:
    """Groups whose agents prove whatever they were assigned at the next `work`, unless a verdict says otherwise.

    Verdicts are about revisions by name, and about golden sets by digest, on trial or to be scored. `qualities` are
    those of a revision's answers to golden images, all .9 unless given. Verdicts by a server's name, `GROUP-NUMBER`,
    are about all that it holds. Servers that are `down` do not answer; for `nodeless` groups there is no room.
    """

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    down: set[str] = field(default_factory=set)
    nodeless: set[str] = field(default_factory=set)
    members: dict[str, GroupObserved] = field(default_factory=dict)
    qualities: dict[str, list[float]] = field(default_factory=dict)
    starts: list[str] = field(default_factory=list)
    replicas: int = 1

    async def groups(self) -> Mapping[str, GroupObserved]:
        return {name: self._seen(group) for name, group in self.members.items()}

    def _seen(self, group: GroupObserved) -> GroupObserved:
        nodeless = group.name in self.nodeless
        servers = tuple(each for each in group.servers if not nodeless and each.name not in self.down)
        problem = FailureReason("Unschedulable", "no node has room") if nodeless else group.problem
        return replace(group, wanted=self.replicas, servers=servers, problem=problem)

    async def start(self, group: str, replicas: int = 1) -> None:
        self.starts.append(group)
        told = self.members[group].assignment if group in self.members else Assignment()
        self.members[group] = GroupObserved(group, self._servers(group), assignment=told, replicas=replicas)

    def _servers(self, group: str) -> tuple[ServerObserved, ...]:
        first = len(self.starts) * 10
        return tuple(
            ServerObserved(f"{group}-{i}", Endpoint("127.0.0.1", 20000 + first + i, 30000 + first + i), ready=True)
            for i in range(self.replicas)
        )

    async def assign(self, group: str, assignment: Assignment) -> None:
        self.members[group] = replace(self.members[group], assignment=assignment)

    async def stop(self, group: str) -> None:
        self.members.pop(group, None)

    def kill(self, group: str) -> None:
        self.members[group] = replace(self.members[group], servers=(), intact=False)

    def work(self) -> None:
        for name, group in self.members.items():
            told = group.assignment.models
            servers = tuple(
                replace(server, reports=tuple(self._report(each, server.name) for each in told))
                for server in group.servers
            )
            self.members[name] = replace(group, servers=servers)

    def _report(self, told: AssignedModel, server: str) -> ModelReport:
        verdict = self.verdicts.get(told.revision) or self.verdicts.get(server)
        if verdict is None:
            return ModelReport(
                model=told.model,
                revision=told.revision,
                state=ModelState.READY,
                artifact_verified=True,
                loaded=True,
                proof="golden",
                proved=ProofReport(golden_sha256=told.golden.sha256 if told.golden is not None else None),
                trial=self._trial(told),
                scores=self._scores(told),
            )
        return ModelReport(
            model=told.model,
            revision=told.revision,
            state=ModelState.FAILED,
            reason=verdict.reason,
            message=f"{verdict.reason} happened",
            retryable=verdict.retryable,
            attempts=verdict.attempts,
        )

    def _scores(self, told: AssignedModel) -> ScoreReport | None:
        if told.scoring is None:
            return None
        sha256 = told.scoring.golden.sha256
        verdict = self.verdicts.get(sha256)
        if verdict is not None:
            return ScoreReport(golden_sha256=sha256, reason=verdict.reason, message=f"{verdict.reason} happened")
        return score_report(sha256, self.qualities.get(told.revision, [0.9] * 50))

    def _trial(self, told: AssignedModel) -> TrialReport | None:
        if told.trial is None:
            return None
        golden = told.trial.golden
        verdict = self.verdicts.get(golden.sha256) if golden is not None else None
        if verdict is None:
            return TrialReport(golden=golden, images=2)
        return TrialReport(golden=golden, reason=verdict.reason, message=f"{verdict.reason} happened")


@dataclass
class RecordedTraffic:
    """A gateway that follows at once, and counts requests in flight as it is told."""

    plan: TrafficPlan | None = None
    active: dict[tuple[str, str], int] = field(default_factory=dict)
    url: str = "http://127.0.0.1:8080"
    by_series: dict[tuple[str, str], SeriesCounts] = field(default_factory=dict)
    pairs: dict[str, PairCounts] = field(default_factory=dict)
    """What the gateway's comparator has counted, by model."""
    clock: Callable[[], float] = field(default=lambda: 0.0)

    async def observe(self) -> TrafficState:
        return TrafficState(self.plan, {key: count for key, count in self.active.items() if count})

    async def apply(self, plan: TrafficPlan) -> None:
        self.plan = plan

    async def samples(self, models: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        return {
            model: {
                "gateway": Counters(
                    "first",
                    self.clock(),
                    {Series(g, "http"): self._tally(model, g) for g in groups},
                    pairs=self.pairs.get(model),
                )
            }
            for model, groups in models.items()
        }

    def _tally(self, model: str, group: str) -> SeriesCounts:
        return self.by_series.get((model, group), SeriesCounts())

    def count(self, model: str, group: str, requests: int, failed: int, latency_ms: float = 20.0) -> None:
        """Let requests of a model come to a group."""
        was = self._tally(model, group)
        bins = dict(was.latencies)
        bins[latency_ms] = bins.get(latency_ms, 0) + requests - failed
        latencies = tuple(sorted(bins.items()))
        self.by_series[model, group] = SeriesCounts(was.attempts + requests, was.failed + failed, latencies=latencies)

    def mirror(self, model: str) -> Mirror | None:
        """Return which of a model's requests are copied."""
        routes = self.plan.routes if self.plan else ()
        return next((route.mirror for route in routes if route.model == model), None)

    def compare(
        self,
        model: str,
        failed: tuple[int, int, int, int],
        latencies_ms: tuple[float, float] = (20.0, 20.0),
        disagreement: float | None = 0.0,
    ) -> None:
        """Let both groups of the model's mirror be asked copies, of which so many fail as in `PairCounts.failed`.

        Answers take as long as `latencies_ms` says, of stable and the candidate, and differ by `disagreement`;
        they are not compared if it is None.
        """
        mirror = self.mirror(model)
        epoch = f"{mirror.stable}/{mirror.candidate}"
        was = self.pairs.get(model)
        if was is None or was.epoch != epoch:
            was = PairCounts(epoch, mirror.stable, mirror.candidate)
        answered = (failed[0] + failed[1], failed[0] + failed[2])
        self.pairs[model] = replace(
            was,
            failed=(
                was.failed[0] + failed[0],
                was.failed[1] + failed[1],
                was.failed[2] + failed[2],
                was.failed[3] + failed[3],
            ),
            latencies=(
                _added(was.latencies[0], latencies_ms[0], answered[0]),
                _added(was.latencies[1], latencies_ms[1], answered[1]),
            ),
            ratios=_counted(was.ratios, RATIOS, latencies_ms[1] / latencies_ms[0], failed[0]),
            disagreements=was.disagreements
            if disagreement is None
            else _counted(was.disagreements, DISAGREEMENTS, disagreement, failed[0]),
        )

    def groups_of(self, model: str) -> dict[str, int]:
        """Return the weight of every group that gets requests of a model."""
        routes = self.plan.routes if self.plan else ()
        shares = [share for route in routes if route.model == model for share in route.shares]
        return {share.group: share.weight for share in shares if share.weight}


def _added(bins: tuple[tuple[float, int], ...], latency_ms: float, count: int) -> tuple[tuple[float, int], ...]:
    former = dict(bins)
    return tuple(sorted({**former, latency_ms: former.get(latency_ms, 0) + count}.items()))


def _counted(bins: tuple[int, ...], edges: Sequence[float], value: float, count: int) -> tuple[int, ...]:
    counts = list(bins or [0] * (len(edges) + 1))
    counts[bisect_right(edges, value)] += count
    return tuple(counts)


@dataclass
class Found:
    """What is found out when it is asked for: by purpose, a function of the check, and how long an answer takes.

    Without a function nothing is answered: what was asked stays under way.
    """

    answers: dict[str, Callable[[Check], CheckResult]] = field(default_factory=dict)
    takes_s: dict[str, float] = field(default_factory=dict)
    clock: Callable[[], float] = field(default=lambda: 0.0)
    begun: list[Check] = field(default_factory=list)
    _under_way: dict[str, Check] = field(default_factory=dict)
    _begun_s: dict[str, float] = field(default_factory=dict)
    _known: dict[str, CheckResult] = field(default_factory=dict)

    def schedule(self, checks: Collection[Check]) -> None:
        self._answer()
        wanted = {check.key: check for check in checks}
        for key in self._begun_s.keys() - wanted.keys():
            for kept in (self._under_way, self._begun_s, self._known):
                kept.pop(key, None)
        for key, check in wanted.items():
            due_s = self._begun_s.get(key, -math.inf) + check.interval_s
            if key not in self._begun_s or (key not in self._under_way and self.clock() >= due_s):
                self._under_way[key], self._begun_s[key] = check, self.clock()
                self.begun.append(check)

    def check_results(self) -> Mapping[str, CheckResult]:
        self._answer()
        return dict(self._known)

    def _answer(self) -> None:
        for key, check in [*self._under_way.items()]:
            over = self.clock() >= self._begun_s[key] + self.takes_s.get(check.purpose, 0.0)
            if over and check.purpose in self.answers:
                self._known[key] = self.answers[check.purpose](check)
                if getattr(self._known[key], "done", True):
                    del self._under_way[key]


@dataclass
class Announced:
    """Announcements in a list."""

    told: list[tuple[str, str]] = field(default_factory=list)

    def announce(self, announcement: Announce | AnnounceDrift) -> None:
        events = (announcement.event,) if isinstance(announcement, AnnounceDrift) else announcement.events
        self.told += [(announcement.model, event.reason) for event in events]


@dataclass
class World:
    """All ports in memory, a clock, and the promise that nobody is sent where no answer is."""

    store: InMemoryStore = field(default_factory=InMemoryStore)
    fleet: InMemoryFleet = field(default_factory=InMemoryFleet)
    traffic: RecordedTraffic = field(default_factory=RecordedTraffic)
    found: Found = field(default_factory=Found)
    announced: Announced = field(default_factory=Announced)
    rollout_cache: RolloutCache = field(default_factory=RolloutCache)
    failures: dict[tuple[str, str], EffectFailure] = field(default_factory=dict)
    now_s: float = 1_000_000

    def __post_init__(self) -> None:
        self.traffic.clock = self.found.clock = lambda: self.now_s

    @property
    def service(self) -> Service:
        return self.service_over(self.store, self.fleet, self.traffic)

    def service_over(self, store: Any, fleet: Any, traffic: Any) -> Service:
        return Service(
            store=store,
            fleet=fleet,
            traffic=traffic,
            clock=lambda: self.now_s,
            check_runner=self.found,
            announcer=self.announced,
            rollout_cache=self.rollout_cache,
            failures=self.failures,
        )

    def restart(self) -> None:
        """End the process that makes passes, with what only it knew."""
        self.rollout_cache = RolloutCache()
        self.failures = {}

    async def passes(self, count: int = 8, *, seconds_each: float = 1) -> None:
        for _ in range(count):
            await self.service.run_once()
            self.check()
            self.fleet.work()
            self.now_s += seconds_each

    def check(self) -> None:
        """Every routed request finds a server that holds the revision it was routed to."""
        for route in self.traffic.plan.routes if self.traffic.plan else ():
            for share in route.shares:
                if share.endpoints:
                    group = self.fleet.members[share.group]
                    held = {told.revision for told in group.assignment.models}
                    assert share.revision in held, f"{share.group} was told to drop {share.revision} under traffic"

    def role(self, model: str, role: str) -> tuple[str, str | None] | None:
        holder = getattr(self.store.objects[model].roles, role)
        return (holder.revision, holder.group) if holder is not None else None

    def condition(self, model: str, kind: str) -> tuple[str, str]:
        found = next(s for s in self.store.objects[model].status.conditions if s.type == kind)
        return found.status, found.reason


@dataclass
class CountedWrites:
    """Dies before (or after) the write number `die_at`, counted from 1 over all ports that share it."""

    die_at: int
    after: bool
    names: list[str] = field(default_factory=list)

    def around(self, port: Any) -> Any:
        """Return the port with every write counted."""
        return _Counted(port, self)


WRITES = frozenset(
    {
        *("save_revision", "drop_revision", "save_status", "save_pool_status", "emit", "forget"),
        "save_rollout",
        *("start", "assign", "stop", "apply"),
    }
)


class _Counted:
    def __init__(self, port: Any, writes: CountedWrites) -> None:
        self._port = port
        self._writes = writes

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._port, name)
        if name not in WRITES:
            return method

        async def counted(*arguments: Any) -> None:
            self._writes.names.append(name)
            dies = len(self._writes.names) == self._writes.die_at
            if dies and not self._writes.after:
                raise Crash
            await method(*arguments)
            if dies:
                raise Crash

        return counted
