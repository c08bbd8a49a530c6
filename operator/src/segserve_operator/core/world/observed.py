"""The world as observed by one pass: models with their roles, groups with their reports, traffic. Immutable.

It includes what a process keeps between passes: the SLO watch and the self-test of each model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self

from segserve_builder.agent.protocol import AssignedModel, Assignment, ModelReport, ModelState
from segserve_operator.api.drift import Drift
from segserve_operator.api.pool_update import Update
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.api.segmentation_model import Capture
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.core.failure import FailureReason, shortened
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.rollout.counters import HungRequests, Sample
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.statistics.past import StablePast
from segserve_operator.core.traffic import AccessRule, CredentialKind, Endpoint, RouteLimits, TrafficState

_NO_PAST: Final = StablePast.none()
MAIN: Final = "main"
CANARY: Final = "canary"
PROGRESS_DEADLINE_S: Final = 600.0
JUDGED_REASONS: Final = frozenset({"JudgedWell", "JudgedUndecided"})
"""Reasons of a candidate that was judged and not promoted."""
Truth = Literal["True", "False", "Unknown"]
_PROGRESS: Final = (
    ModelState.FAILED,
    ModelState.UNLOADING,
    ModelState.FETCHING,
    ModelState.LOADING,
    ModelState.PROVING,
    ModelState.READY,
)


@dataclass(frozen=True, slots=True)
class Minute:
    """Requests of one minute, and by objective ("error", or a percentile of the SLO) the number that missed it."""

    minute: int
    requests: int
    broken: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SloWatch:
    """The last hour of one model's stable group, and how its requests depended on each other."""

    group: str = ""
    measured_s: float = float("-inf")
    seen: Sample = field(default_factory=dict)
    hung: HungRequests = field(default_factory=HungRequests)
    minutes: tuple[Minute, ...] = ()
    past: StablePast = field(default=_NO_PAST, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class RoleHolder:
    """A revision in a role, the group that serves it, and the time (Unix seconds) at which it got the role."""

    revision: str
    group: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A revision that is to become stable. One that failed, was only judged, or waits for a slot, has no group.

    `since_s` is when it got the role, its group, or gave that up. `failure` is also why one that was `judged` goes no
    further. `template` is the template of the servers that failed to serve it: another one may be able to. `stalled` is
    why it gave its group up: others go first until it gets another. `promoted`: a person has asked to roll out what was
    judged.
    """

    revision: str
    group: str | None
    since_s: float
    failure: FailureReason | None = None
    stalled: FailureReason | None = None
    promoted: bool = False
    template: str = ""

    @property
    def judged(self) -> bool:
        """Whether it has a verdict of a rollout that promotes nothing by itself, and waits for a person."""
        return self.failure is not None and self.failure.reason in JUDGED_REASONS


@dataclass(frozen=True, slots=True)
class Roles:
    """The revisions of a model by role."""

    stable: RoleHolder | None = None
    candidate: Candidate | None = None
    previous: RoleHolder | None = None

    def loaded_revisions(self) -> tuple[tuple[str, str], ...]:
        """Return the (group, revision) pairs that the roles keep loaded."""
        holders = [(h.group, h.revision) for h in (self.stable, self.previous) if h is not None]
        if self.candidate is not None and self.candidate.group is not None:
            holders.append((self.candidate.group, self.candidate.revision))
        return tuple(holders)

    def revisions(self) -> frozenset[str]:
        """Return the names of all revisions that have a role."""
        return frozenset(r.revision for r in (self.stable, self.candidate, self.previous) if r is not None)


@dataclass(frozen=True, slots=True)
class ObservedCondition:
    """A condition without its timestamps: `reason` is one CamelCase word; a long message is cut."""

    type: str
    status: Truth
    reason: str
    message: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "message", shortened(self.message))


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """Content of a model's status. `weight` is the percentage of requests that the newest revision gets.

    `observed_generation` is the latest generation of the spec that serves, or that was refused; `read_generation` the
    one that the conditions are about. `rollout` is the state of the latest rollout, `handled` the texts of annotations
    that were handled, and `slo` the state of the SLO: Met, Breached, Unknown, or empty without an SLO. `drift`
    is the stored reference of the stable revision's answers, empty without one. `device` is the device of the stable
    revision's networks: `cpu`, `gpu` or `cpu,gpu`, empty until a server reports it.
    """

    observed_generation: int = 0
    roles: Roles = Roles()
    conditions: tuple[ObservedCondition, ...] = ()
    weight: int = 0
    url: str = ""
    rollout: RolloutState | None = None
    handled: tuple[str, ...] = ()
    slo: str = ""
    read_generation: int = 0
    drift: str = ""
    device: str = ""

    @property
    def phase(self) -> Phase | None:
        """The phase of the latest rollout if it says what its revision is now; None once that is history."""
        state, roles = self.rollout, self.roles
        if state is None or not state.ended:
            return state.phase if state is not None else None
        failed = roles.candidate if roles.candidate is not None and roles.candidate.failure is not None else None
        holder = roles.stable if state.phase is Phase.SUCCEEDED else failed
        is_present = holder is not None and holder.revision == state.revision and state.phase is not Phase.CANCELLED
        return state.phase if is_present else None


@dataclass(frozen=True, slots=True)
class Wanted:
    """Content of a model's spec. Without a policy a revision is promoted as soon as it is proved.

    `progress_deadline_s` is how long a candidate's servers may take to prove it.
    """

    assigned: AssignedModel
    keep_previous_s: float
    allow_class_changes: bool = False
    policy: RolloutPolicy | None = None
    slo: Slo | None = None
    progress_deadline_s: float = PROGRESS_DEADLINE_S
    capture: Capture | None = None
    drift: Drift | None = None


@dataclass(frozen=True, slots=True)
class ModelObserved:
    """One model: its spec (or why it cannot be read) and its status.

    `annotations` contains the ones with segserve's prefix. `access` says who may use the model: any caller that
    the gateway admits if it is None, and no caller by the spec if it is empty. It is `deleting` since `deleted_s` (Unix
    seconds).
    """

    name: str
    generation: int
    wanted: Wanted | None
    problem: FailureReason | None = None
    status: ModelStatus = ModelStatus()
    deleting: bool = False
    deleted_s: float = math.inf
    annotations: Mapping[str, str] = field(default_factory=dict)
    access: tuple[AccessRule, ...] | None = None
    limits: RouteLimits | None = None

    @property
    def roles(self) -> Roles:
        """The roles in the status."""
        return self.status.roles

    def rolls_out(self, candidate: Candidate) -> bool:
        """Return whether a rollout of a candidate is in progress."""
        state = self.status.rollout
        return state is not None and not state.ended and state.revision == candidate.revision

    def is_left_as_it_was(self, candidate: Candidate | None) -> bool:
        """Return whether a rollout goes on although the spec cannot be read now: what it began with was accepted."""
        return self.wanted is None and candidate is not None and candidate.failure is None and self.rolls_out(candidate)


@dataclass(frozen=True, slots=True)
class ServerObserved:
    """One server of a group: its endpoint and its agent's reports.

    `ready` is False if the agent is silent or cannot reach its Triton; its reports are then void. `node` is the name of
    its machine, empty if it is not known. `is_read` is False if its pod is ready, but its report cannot be read.
    """

    name: str
    endpoint: Endpoint
    ready: bool
    reports: tuple[ModelReport, ...] = ()
    node: str = ""
    is_read: bool = True
    _by_revision: Mapping[str, ModelReport] = field(init=False, repr=False, compare=False)
    _models: frozenset[str] = field(init=False, repr=False, compare=False)
    failing: frozenset[str] = field(init=False, repr=False, compare=False)
    """The revisions that the server says it cannot serve now."""

    def __post_init__(self) -> None:
        # Looked up many times for each of thousands of models, so indexed once.
        object.__setattr__(self, "_by_revision", {report.revision: report for report in self.reports})
        object.__setattr__(self, "_models", frozenset(report.model for report in self.reports))
        failing = (report.revision for report in self.reports if report.state is ModelState.FAILED)
        object.__setattr__(self, "failing", frozenset(failing) if self.ready else frozenset())

    def report(self, revision: str) -> ModelReport | None:
        """Return the agent's report on a revision; None without one, or if the server is not ready."""
        return self._by_revision.get(revision) if self.ready else None

    def proved(self, revision: str) -> bool:
        """Return whether the server serves exactly that revision."""
        report = self.report(revision)
        return report is not None and report.state is ModelState.READY

    def holds(self, model: str) -> bool:
        """Return whether the server may still have any revision of a model, ready or not."""
        return model in self._models


@dataclass(frozen=True, slots=True)
class RevisionReports:
    """The reports of a group's ready servers on one revision: all of them, and the servers that serve it or fail.

    `device` is the device of its networks: `cpu`, `gpu` or `cpu,gpu`; empty if no server reports it. `load_s` is the
    time in whole seconds in which the slowest server last loaded it.
    """

    said: tuple[tuple[ServerObserved, ModelReport], ...]
    proved: tuple[ServerObserved, ...]
    failed: tuple[ServerObserved, ...]
    device: str = ""
    load_s: int = 0

    @classmethod
    def of(cls, servers: Iterable[ServerObserved], revision: str) -> Self:
        """Gather the servers' reports on a revision."""
        reports = ((server, server.report(revision)) for server in servers)
        said = tuple((server, report) for server, report in reports if report is not None)
        proofs = (report.proved for _, report in said if report.state is ModelState.READY)
        devices = {device for proof in proofs if proof is not None for device in proof.devices}
        return cls(
            said,
            tuple(server for server, report in said if report.state is ModelState.READY),
            tuple(server for server, report in said if report.state is ModelState.FAILED),
            ",".join(sorted(devices)),
            math.ceil(max((report.load_s for _, report in said), default=0.0)),
        )

    def least(self, *, without_failed: bool = False) -> ModelReport | None:
        """Return the report of the least advanced server; None if there is no report."""
        reports = [each for _, each in self.said if not (without_failed and each.state is ModelState.FAILED)]
        return min(reports, key=lambda report: _PROGRESS.index(report.state), default=None)


@dataclass(frozen=True, slots=True)
class GroupObserved:
    """One group of equal servers: its assignment and the servers' reports.

    `leaving` are terminating servers, which no longer count but answer if no other does. `wanted` is the desired number
    of servers, `replicas` the number that was last set for the group. `intact` is False if something else of the
    group must be started or corrected, `written` is False if the agents cannot read the whole assignment. `problem`
    says why servers do not become ready.
    """

    name: str
    servers: tuple[ServerObserved, ...] = ()
    wanted: int = 1
    intact: bool = True
    assignment: Assignment = field(default_factory=Assignment)
    written: bool = True
    problem: FailureReason | None = None
    leaving: tuple[ServerObserved, ...] = ()
    replicas: int = 1
    _assigned: frozenset[str] = field(init=False, repr=False, compare=False)
    _reports: dict[str, RevisionReports] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_assigned", frozenset(assigned.model for assigned in self.assignment.models))

    def reports(self, revision: str) -> RevisionReports:
        """Return what the servers report of a revision; computed once, however often it is looked up."""
        found = self._reports.get(revision)
        if found is None:
            found = self._reports[revision] = RevisionReports.of(self.servers, revision)
        return found

    def report(self, revision: str) -> ModelReport | None:
        """Return the report of the server that is least advanced with a revision; None if there is no report."""
        return self.reports(revision).least()

    def proved(self, revision: str) -> tuple[ServerObserved, ...]:
        """Return the servers that serve exactly that revision."""
        return self.reports(revision).proved

    def endpoints(self, revision: str) -> tuple[Endpoint, ...]:
        """Return the endpoints that serve a revision."""
        servers = self.proved(revision) or tuple(server for server in self.leaving if server.proved(revision))
        return tuple(server.endpoint for server in servers)

    def complete(self, revision: str) -> bool:
        """Return whether all `wanted` servers, and at least one, serve a revision."""
        return len(self.proved(revision)) >= max(self.wanted, 1)

    def failed(self, revision: str) -> tuple[ServerObserved, ...]:
        """Return the servers that say that they cannot serve a revision now."""
        return self.reports(revision).failed

    def holds(self, model: str) -> bool:
        """Return whether the group's servers may still have any revision of a model."""
        return model in self._assigned or any(server.holds(model) for server in self.servers)


@dataclass(frozen=True, slots=True)
class Template:
    """The template of a pool's servers, which has a `digest`.

    `settings` is the digest of the pool's own settings and `request` the text of the annotation that asks for updates,
    both as they were when the pool adopted it. The template `next`, if there is one, replaces it from `since_s` (Unix
    seconds) on.
    """

    digest: str
    settings: str = ""
    request: str = ""
    next: str = ""
    since_s: float = 0.0


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """Content of a pool's status. `servers` is the number of ready servers of the main group.

    `idle` are the groups that get no requests, which an autoscaler must not look at.
    `waiting_since_s` is the time since which too few servers or no gateway are ready, None if the pool is ready.
    """

    observed_generation: int = 0
    conditions: tuple[ObservedCondition, ...] = ()
    main_group: str = ""
    idle: tuple[str, ...] = ()
    servers: int = 0
    models: int = 0
    url: str = ""
    waiting_since_s: float | None = None
    template: Template | None = None


@dataclass(frozen=True, slots=True)
class MinReady:
    """Number of a group's servers that must have proved a revision before it serves: `servers`, else a percentage."""

    servers: int | None = None
    percent: int = 80

    def of(self, wanted: int) -> int:
        """Return the number in a group of `wanted` servers: from 1 to all of them, a percentage to the nearest."""
        number = self.servers if self.servers is not None else (wanted * self.percent + 50) // 100
        return max(1, min(number, wanted))


@dataclass(frozen=True, slots=True)
class PoolGateway:
    """The capabilities of a pool's gateway.

    `credentials` are the kinds that it takes, None if it is not known. With `session_affinity` it sends requests of one
    id to one revision and one server. Without `shadow` it has no comparator, without `capture` nothing that keeps
    samples. With `plain_http` it also takes an image as the body of a request.
    """

    credentials: frozenset[CredentialKind] | None = None
    session_affinity: bool = False
    shadow: bool = True
    capture: bool = True
    plain_http: bool = False


@dataclass(frozen=True, slots=True)
class ServerUpdate:
    """The update of a pool's servers to another template.

    `settings` is the digest of the pool's own part of the present template, `request` the text that asks for the
    update, `difference` what changed. `kept` is the template of the main group, `counts` the next numbers of servers of
    the main groups of all templates, `stuck` the condition that says why the update goes no further.
    """

    policy: Update = field(default_factory=Update)
    settings: str = ""
    request: str = ""
    difference: str = ""
    kept: Template | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    stuck: ObservedCondition | None = None


@dataclass(frozen=True, slots=True)
class PoolObserved:
    """The pool: its spec and its status.

    `template` identifies the template that groups are made from now: groups made from another one are replaced, not
    changed. The local platform has no template. With `shared` isolation candidates share one group. `replicas` is the
    number of servers of a group, `min_ready` how many of them must have proved a revision before it serves. `progress`
    is the condition that says how far a change is, `ignored` which part of the spec the operator does not allow.
    """

    name: str = ""
    generation: int = 0
    status: PoolStatus | None = None
    progress: ObservedCondition | None = None
    ignored: FailureReason | None = None
    template: str = ""
    replicas: int = 1
    min_ready: MinReady = MinReady()
    shared: bool = False
    update: ServerUpdate = field(default_factory=ServerUpdate)
    gateway: PoolGateway = PoolGateway()

    @property
    def main(self) -> str:
        """The name of the group that serves stable revisions."""
        return f"{MAIN}-{self.update.kept.digest}" if self.update.kept is not None else self._group(MAIN)

    @property
    def canary(self) -> str:
        """The name of the group that candidates share."""
        return self._group(CANARY)

    def own(self, revision: str) -> str:
        """Return the name of a candidate's own group."""
        return self._group(revision)

    def _group(self, name: str) -> str:
        return f"{name}-{self.template}" if self.template else name


@dataclass(frozen=True, slots=True)
class EffectFailure:
    """An effect that failed the last `attempts` times: its kind and its subject, such as StartGroup and `main`.

    `content` is what was to be written: another content is tried at once, the same one again from `retry_s` (Unix
    seconds) on. `reported`: statuses report it; a failure that may pass in seconds is reported only after it has
    lasted.
    """

    kind: str
    subject: str
    reason: FailureReason
    attempts: int
    retry_s: float
    reported: bool
    content: object = None


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one pass decides from.

    `now_s` is Unix time, `gateway_url` the base URL for clients, `revisions` the records of revisions by name. Without
    a pool nothing is served. For rollouts: `records` by name, the newest known; `written` by name, the last decision in
    the store and the time of its write; `samples` by model, the gateways' counters; `check_results` by key.
    `watches` and `drifts` are kept by model, `failures` of effects by kind and subject.
    """

    now_s: float
    gateway_url: str = ""
    models: tuple[ModelObserved, ...] = ()
    revisions: Mapping[str, AssignedModel] = field(default_factory=dict)
    groups: Mapping[str, GroupObserved] = field(default_factory=dict)
    traffic: TrafficState = field(default_factory=lambda: TrafficState(None))
    pool: PoolObserved | None = field(default_factory=PoolObserved)
    records: Mapping[str, Record] = field(default_factory=dict)
    written: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    samples: Mapping[str, Sample] = field(default_factory=dict)
    check_results: Mapping[str, CheckResult] = field(default_factory=dict)
    watches: Mapping[str, SloWatch] = field(default_factory=dict)
    drifts: Mapping[str, DriftWatch] = field(default_factory=dict)
    failures: Mapping[tuple[str, str], EffectFailure] = field(default_factory=dict)

    @property
    def main(self) -> str:
        """The name of the main group."""
        return self.pool.main if self.pool is not None else MAIN

    @property
    def compares(self) -> bool:
        """Whether the pool's gateways have comparators."""
        return self.pool is not None and self.pool.gateway.shadow

    def complete(self, group: str, revision: str) -> bool:
        """Return whether all servers of a group serve exactly that revision."""
        return group in self.groups and self.groups[group].complete(revision)
