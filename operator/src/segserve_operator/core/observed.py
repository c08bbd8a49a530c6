"""The world as one pass saw it: models with their roles, groups with their reports, traffic. All immutable."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from segserve_builder.agent.protocol import Assignment, ModelState
from segserve_operator.core.traffic import TrafficState

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_builder.agent.protocol import AssignedModel, ModelReport
    from segserve_operator.core.traffic import Endpoint

MAIN: Final = "main"
Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why something cannot go on: one CamelCase word, and a text that says what was seen and what is allowed."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Holder:
    """A revision that has a role, the group that holds it, and since when (Unix seconds) it has the role."""

    revision: str
    group: str
    since_s: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A revision on its way to become stable. One that failed holds no group any more."""

    revision: str
    group: str | None
    since_s: float
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Roles:
    """What each revision is to its model now."""

    stable: Holder | None = None
    candidate: Candidate | None = None
    previous: Holder | None = None

    def held(self) -> tuple[tuple[str, str], ...]:
        """Return the (group, revision) pairs that the roles keep loaded."""
        holders = [(h.group, h.revision) for h in (self.stable, self.previous) if h is not None]
        if self.candidate is not None and self.candidate.group is not None:
            holders.append((self.candidate.group, self.candidate.revision))
        return tuple(holders)

    def revisions(self) -> frozenset[str]:
        """Return the names of all revisions that have a role."""
        return frozenset(r.revision for r in (self.stable, self.candidate, self.previous) if r is not None)


@dataclass(frozen=True, slots=True)
class Statement:
    """One condition without its times: `reason` is one CamelCase word."""

    type: str
    status: Truth
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """What a model's status records. `weight` is the percentage of requests that the newest revision gets."""

    observed_generation: int = 0
    roles: Roles = Roles()
    statements: tuple[Statement, ...] = ()
    weight: int = 0
    url: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a model's spec asks for."""

    assigned: AssignedModel
    keep_previous_s: float
    allow_class_changes: bool = False


@dataclass(frozen=True, slots=True)
class ModelObserved:
    """One model: what its spec asks for (or why that cannot be read), and what its status records."""

    name: str
    generation: int
    wanted: Wanted | None
    problem: Failure | None = None
    status: ModelStatus = ModelStatus()
    deleting: bool = False

    @property
    def roles(self) -> Roles:
        """The roles that the status records."""
        return self.status.roles


@dataclass(frozen=True, slots=True)
class GroupObserved:
    """One group of servers: where it listens, what it was told to hold, what its agent says of that.

    `running` is False where one of its processes has ended. `server_ready` is False where the agent has been
    silent or cannot reach its Triton; its reports are void then.
    """

    name: str
    endpoint: Endpoint
    running: bool
    server_ready: bool
    assignment: Assignment = field(default_factory=Assignment)
    reports: tuple[ModelReport, ...] = ()

    def report(self, revision: str) -> ModelReport | None:
        """Return what the group's agent says of a revision; None where it says nothing or cannot know."""
        if not self.server_ready:
            return None
        return next((r for r in self.reports if r.revision == revision), None)

    def proved(self, revision: str) -> bool:
        """Tell whether the group answers with that very revision."""
        report = self.report(revision)
        return report is not None and report.state is ModelState.READY

    def holds(self, model: str) -> bool:
        """Tell whether anything of a model may still be on the group's servers."""
        return any(a.model == model for a in self.assignment.models) or any(r.model == model for r in self.reports)


@dataclass(frozen=True, slots=True)
class Observed:
    """Everything that one pass decides from.

    `now_s` is Unix time, `gateway_url` where clients call, `revisions` the records by name.
    """

    now_s: float
    gateway_url: str = ""
    models: tuple[ModelObserved, ...] = ()
    revisions: Mapping[str, AssignedModel] = field(default_factory=dict)
    groups: Mapping[str, GroupObserved] = field(default_factory=dict)
    traffic: TrafficState = field(default_factory=lambda: TrafficState(None))

    def proved(self, group: str, revision: str) -> bool:
        """Tell whether a group answers with that very revision."""
        return group in self.groups and self.groups[group].proved(revision)

    def drained(self, model: str, group: str) -> bool:
        """Tell whether no request of a model is on its way to a group, nor can be: the gateway took that over."""
        plan = self.traffic.plan
        if plan is None or self.traffic.active.get((model, group), 0):
            return False
        return all(share.group != group for r in plan.routes if r.model == model for share in r.shares)
