"""One rollout in one pass: its record and state, and what its checks, verdicts and signals follow from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from segserve_builder.agent.protocol import ModelReport
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.rollout_policy import CheckedGateSpec, gate_name
from segserve_operator.core.gates import purpose_of
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import alpha_shares
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.world.deadlines import is_overdue
from segserve_operator.core.world.observed import ModelObserved, Observed, Roles
from segserve_operator.core.world.quorum import may_take_over


def groups_of(state: RolloutState, roles: Roles) -> tuple[str, str]:
    """Return the groups that the evidence calls stable and candidate; an empty name for a missing group."""
    stable = roles.stable.group if roles.stable is not None else ""
    if state.phase is Phase.BAKING:
        # After promotion the candidate has the stable role, and is compared with its predecessor.
        return roles.previous.group if roles.previous is not None else "", stable
    candidate = roles.candidate.group if roles.candidate is not None else None
    return stable, candidate or ""


def is_about(state: RolloutState, roles: Roles) -> bool:
    """Return whether a rollout in progress is still the one that the roles require."""
    if roles.candidate is not None:
        return roles.candidate.revision == state.revision
    promoted = state.phase is Phase.BAKING and roles.stable is not None
    return promoted and roles.stable is not None and roles.stable.revision == state.revision


@dataclass(frozen=True)
class RolloutCase:
    """A rollout with its record, the model and its new roles, in the world of one pass.

    What follows from these is read when it is first needed, and once. Pairs are of (stable, candidate).
    """

    record: Record
    state: RolloutState
    roles: Roles
    model: ModelObserved
    world: Observed

    @classmethod
    def current(cls, model: ModelObserved, world: Observed) -> Self | None:
        """Return the case of a model's rollout in progress by its status; None without one, or without its record."""
        state = model.status.rollout
        record = world.records.get(state.rollout) if state is not None and not state.ended else None
        return cls(record, state, model.roles, model, world) if record is not None and state is not None else None

    @property
    def failed(self) -> bool:
        """Whether the candidate's servers cannot serve it."""
        return self.roles.candidate is not None and self.roles.candidate.failure is not None

    @property
    def superseded(self) -> bool:
        """Whether the roles require another revision."""
        return not self.failed and not is_about(self.state, self.roles)

    @property
    def ready(self) -> bool:
        """Whether enough servers serve the candidate, and every gateway has their addresses."""
        world, group, revision = self.world, self.groups[1], self.state.revision
        share = world.traffic.share(self.model.name, group)
        if share is None or share.revision != revision or not share.endpoints:
            return False
        overdue = is_overdue(self.model, self.roles.candidate, world)
        return may_take_over(group, revision, self.roles.stable, world, overdue=overdue)

    @property
    def lost(self) -> bool:
        """Whether the candidate should get requests, but no server serves it, while one serves the other revision."""
        return self.state.weight > 0 and self.answering == (True, False) and not self.superseded

    @cached_property
    def answering(self) -> tuple[bool, bool]:
        """Whether any server serves the stable revision, and the candidate."""
        named = zip(self.groups, (self.record.stable, self.state.revision), strict=True)
        groups = ((self.world.groups.get(group), revision) for group, revision in named)
        stable, candidate = (group is not None and bool(group.endpoints(revision)) for group, revision in groups)
        return stable, candidate

    @property
    def served(self) -> tuple[bool, bool]:
        """Whether a server could have had the requests that were counted since the last pass, for both revisions.

        A failure is evidence against a revision only if one of its servers was there to answer: a restart, a drained
        node and a pool without servers say nothing of it.
        """
        plan = self.world.traffic.plan
        if plan is None or not any(self.answering):
            return False, False
        route = next((route for route in plan.routes if route.model == self.model.name), None)
        shares = {share.group: bool(share.endpoints) for share in route.shares} if route is not None else {}
        stable, candidate = (shares.get(group, False) for group in self.groups)
        return stable, candidate

    @cached_property
    def groups(self) -> tuple[str, str]:
        """The names of both groups; an empty name for a missing group."""
        return groups_of(self.state, self.roles)

    @cached_property
    def reports(self) -> tuple[tuple[ModelReport, ...], tuple[ModelReport, ...]]:
        """The reports of both groups' servers on their revisions."""
        stable, candidate = (self.world.groups.get(group) for group in self.groups)
        return (
            tuple(report for _, report in stable.reports(self.record.stable).said) if stable else (),
            tuple(report for _, report in candidate.reports(self.state.revision).said) if candidate else (),
        )

    @cached_property
    def golden(self) -> Golden | None:
        """The golden set of the spec, if the rollout compares its scores."""
        wanted = self.model.wanted
        return wanted.assigned.golden if wanted is not None and self.record.policy.strategy != "immediate" else None

    @cached_property
    def gates(self) -> tuple[CheckedGateSpec, ...]:
        """The gates that judge checks, except skipped gates, and golden ones without a golden set."""
        gates = (gate for gate in self.record.policy.gates if isinstance(gate, CheckedGateSpec))
        asked = (gate for gate in gates if gate_name(gate) not in self.state.skipped)
        return tuple(gate for gate in asked if self.golden is not None or purpose_of(gate) != "golden")

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """The share of alpha of each gate that tests, by name."""
        return alpha_shares(self.record.policy)

    @cached_property
    def check(self) -> Check:
        """A check of this rollout, which lacks its key and what it is for."""
        return Check(
            key="",
            model=self.model.name,
            purpose="check",
            stable_group=self.groups[0],
            stable=self.record.stable,
            candidate_group=self.groups[1],
            candidate=self.state.revision,
            phase=self.state.phase.label,
            weight=self.state.weight,
        )

    def key(self, name: str) -> str:
        """Return the key of a check, which it keeps for as long as the rollout needs its result."""
        return f"{self.state.rollout}/{name}"

    def result(self, name: str) -> CheckResult | None:
        """Return the latest result of a check, None without one."""
        return self.world.check_results.get(self.key(name))

    def gates_for(self, purpose: str) -> tuple[CheckedGateSpec, ...]:
        """Return the gates of a purpose."""
        return tuple(gate for gate in self.gates if purpose_of(gate) == purpose)

    def verdicts(self, purpose: str) -> tuple[Verdict, ...]:
        """Return the record's verdicts of the gates of a purpose."""
        known = {verdict.gate: verdict for verdict in self.record.verdicts}
        names = map(gate_name, self.gates_for(purpose))
        return tuple(
            known.get(name) or Verdict(name, Outcome.UNDECIDED, "NotChecked", "no check has finished yet")
            for name in names
        )

    def signal(self, purpose: str) -> Signals:
        """Return the signal of the verdicts of a purpose: a breach forbids, and all must pass."""
        outcomes = [verdict.outcome for verdict in self.verdicts(purpose)]
        return Signals(forbidden=Outcome.BREACH in outcomes, allowed=all(each is Outcome.PASS for each in outcomes))


@dataclass(frozen=True, slots=True)
class VerdictSource:
    """A source of verdicts: the checks to run now, its new verdicts, and the signal of the record's verdicts.

    A verdict that is not replaced stays. A signal leaves what is not its own as `Signals` has it.
    """

    checks: Callable[[RolloutCase], Iterable[Check]] = lambda _: ()
    verdicts: Callable[[RolloutCase], Iterable[Verdict]] = lambda _: ()
    signal: Callable[[RolloutCase], Signals] = lambda _: Signals()
