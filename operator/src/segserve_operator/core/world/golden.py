"""Trials of an edited golden set: the servers prove a revision with it while they serve, and adopt it if they can.

A revision's record holds the set that it was proved with, so that a restarted server never depends on a set that
failed. A trial changes neither the revision nor its traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

from segserve_builder.agent.protocol import AssignedModel, ModelReport, ModelState
from segserve_builder.spec.model_spec import Golden
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import GroupObserved, ModelObserved, Observed
from segserve_operator.core.world.quorum import suffices


@dataclass(frozen=True, slots=True)
class TrialProgress:
    """A trial of `golden` (None: the built-in image) on a revision: `passed` on `servers` of `wanted` servers.

    `images` is the number of images that each of them answered. `possible` is False if the servers' agents cannot make
    one, because no server has proved the revision yet or the agents are of a version without trials.
    """

    revision: str
    golden: Golden | None
    possible: bool
    servers: int
    wanted: int
    images: int = 0
    passed: bool = False
    failure: FailureReason | None = None

    @property
    def name(self) -> str:
        """The set as messages name it."""
        return name_of(self.golden.sha256 if self.golden is not None else None)

    @property
    def pending(self) -> bool:
        """Whether the trial has neither passed nor failed."""
        return not self.passed and self.failure is None


def name_of(sha256: str | None) -> str:
    """Return a golden set's name in messages, from its digest; None is the built-in image."""
    return f"golden set {sha256[:12]}" if sha256 is not None else "the built-in image"


def trial_of(revision: str, model: ModelObserved, world: Observed) -> TrialProgress | None:
    """Return the trial of the spec's golden set; None unless `revision` is the spec's and its record has another."""
    record, wanted = world.revisions.get(revision), model.wanted
    if record is None or wanted is None or wanted.assigned.revision != revision:
        return None
    if record.golden == wanted.assigned.golden:
        return None
    golden, group = wanted.assigned.golden, _group_of(revision, model, world)
    if group is None:
        return TrialProgress(revision, golden, possible=False, servers=0, wanted=1)
    reports = [report for _, report in group.reports(revision).said]
    outcomes = [each.trial for each in reports if each.trial is not None and each.trial.golden == golden]
    passed = [outcome for outcome in outcomes if outcome.passed]
    refused = next((outcome for outcome in outcomes if outcome.reason), None)
    # A trial that a server dies of is not withdrawn meanwhile: its agent counts how often that happens.
    assigned = any(each.revision == revision and each.trial is not None for each in group.assignment.models)
    return TrialProgress(
        revision,
        golden,
        possible=assigned or any(report.proved is not None for report in reports),
        servers=len(passed),
        wanted=max(group.wanted, 1),
        images=passed[0].images if passed else 0,
        passed=suffices(group.name, revision, world) and len(passed) == len(group.proved(revision)),
        failure=FailureReason(refused.reason, refused.message) if refused is not None else None,
    )


def golden_of(record: AssignedModel, model: ModelObserved, world: Observed) -> Golden | None:
    """Return the golden set of a revision of the spec: its record's until the spec's has passed its trial.

    A candidate that its servers cannot prove takes the spec's at once: no caller depends on it.
    """
    trial = trial_of(record.revision, model, world)
    if trial is None or trial.passed or _fails(record.revision, model, world):
        return model.wanted.assigned.golden if model.wanted is not None else record.golden
    return record.golden


def _fails(revision: str, model: ModelObserved, world: Observed) -> bool:
    candidate, group = model.roles.candidate, _group_of(revision, model, world)
    if candidate is None or candidate.revision != revision or group is None or group.endpoints(revision):
        return False
    report: ModelReport | None = group.report(revision)
    return report is not None and report.state is ModelState.FAILED


def _group_of(revision: str, model: ModelObserved, world: Observed) -> GroupObserved | None:
    roles = model.roles
    holders = (holder for holder in (roles.stable, roles.candidate, roles.previous) if holder is not None)
    name = next((holder.group for holder in holders if holder.revision == revision), None)
    return world.groups.get(name) if name is not None else None
