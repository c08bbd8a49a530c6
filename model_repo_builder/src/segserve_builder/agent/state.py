"""The agent's values: assigned revisions, actions, snapshots of the server, and the state kept between passes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from segserve_builder.agent.answer_counts import AnswerCounts
from segserve_builder.agent.protocol import AnswerCounting, AssignedModel, GoldenScoring
from segserve_builder.agent.scoring import Replays
from segserve_builder.render.tree import Tree
from segserve_builder.spec.model_spec import Golden
from segserve_common.backoff import Backoff, Repeats

READY = "READY"
LOADING = "LOADING"
UNLOADING = "UNLOADING"

BACKOFF: Final = Backoff(first_s=1.0, longest_s=30.0)
"""Delay before a retryable failure is tried again."""
LOAD_BACKOFF: Final = Backoff(first_s=2.0, longest_s=300.0)
"""Delay before a load that Triton refused is tried again."""
REPEAT_BACKOFF: Final = Backoff(first_s=0.5, longest_s=30.0)
"""Delay before an action is repeated that Triton accepted and that changed nothing."""
UNLOADS_ALLOWED: Final = 2
"""Unloads without effect before a model is loaded again to be unloaded."""
RELOADS_ALLOWED: Final = 3
"""Further unloads without effect, each after a load, before a server without an assignment is ended."""
LOADS_ALLOWED: Final = 3
"""Loads that Triton may refuse before others stop waiting for this server; it goes on trying."""
OPENING_S: Final = 120.0
"""How long a revision's shared steps may take to open its members before that is a failed load."""
CRASHES_ALLOWED: Final = 3
"""Proofs that may die with a step's process before the revision counts as failed."""

ProofKind: TypeAlias = Literal["golden", "builtin"]


@dataclass(frozen=True, slots=True)
class AssignedRevision:
    """An assigned model with the name of its revision, a digest that is too costly to compute in every pass.

    A trial, which is the same revision with another golden set, a scoring and a counting do not count in comparisons.
    """

    revision: str
    model: str
    spec: AssignedModel
    trial: AssignedRevision | None = field(default=None, compare=False)
    scoring: GoldenScoring | None = field(default=None, compare=False)
    counting: AnswerCounting | None = field(default=None, compare=False)

    @classmethod
    def of(cls, spec: AssignedModel) -> AssignedRevision:
        """Return the assigned model with its revision's name."""
        if spec.trial is None and spec.scoring is None and spec.counting is None:
            return cls(spec.revision, spec.model, spec)
        own = spec.model_copy(update={"trial": None, "scoring": None, "counting": None})
        tried = own.model_copy(update={"golden": spec.trial.golden}) if spec.trial is not None else None
        trial = cls(spec.revision, spec.model, tried) if tried is not None else None
        return cls(spec.revision, spec.model, own, trial, spec.scoring, spec.counting)

    @property
    def specs(self) -> tuple[AssignedModel, ...]:
        """The assigned model, and the same with the golden set that it is tried with or scored on."""
        trial = (self.trial.spec,) if self.trial is not None else ()
        if self.scoring is None:
            return (self.spec, *trial)
        return (self.spec, *trial, self.spec.model_copy(update={"golden": self.scoring.golden}))

    def orders(self, action: Score) -> bool:
        """Return whether this golden set is required now."""
        return self.scoring is not None and self.scoring.golden == action.golden

    @property
    def golden_sha256(self) -> str | None:
        """The digest of the golden set, None without one."""
        return self.spec.golden.sha256 if self.spec.golden is not None else None


@dataclass(frozen=True, slots=True)
class _OnName:
    name: str

    @property
    def subject(self) -> str:
        """The model name that no two actions may work on at a time."""
        return self.name


@dataclass(frozen=True, slots=True)
class _OnRevision:
    revision: str
    model: str

    @property
    def subject(self) -> str:
        """The model name that no two actions may work on at a time."""
        return self.model


class Prepare(_OnRevision):
    """Fetch and check a revision's artifact and golden set, and publish its steps."""

    __slots__ = ()

    @property
    def subject(self) -> str:
        """The revision, since preparing it does not disturb other revisions of its model."""
        return self.revision


class LoadStep(_OnName):
    """Load a published step."""

    __slots__ = ()


class RepairStep(_OnName):
    """Reload a step whose process has died; the models that use it stay loaded."""

    __slots__ = ()


class Serve(_OnRevision):
    """Switch the model's public names to a revision."""

    __slots__ = ()


class Prove(_OnRevision):
    """Check the answers of a loaded revision against its golden set."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Try(_OnRevision):
    """Fetch the golden set on trial and check the answers of a proved revision against it; None: the built-in image."""

    golden: Golden | None

    @property
    def subject(self) -> str:
        """The revision, since a trial disturbs neither its requests nor other revisions of its model."""
        return self.revision


@dataclass(frozen=True, slots=True)
class Score(_OnRevision):
    """Replay a golden set to a proved revision and score the answers."""

    golden: Golden

    @property
    def subject(self) -> str:
        """The same for all: a server answers one replay at a time, and does everything else meanwhile."""
        return "golden scores"


class Probe(_OnRevision):
    """Send one request to a proved revision, to check that it still answers."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Unload(_OnName):
    """Unload a model that nothing uses.

    Triton accepts it and does nothing if some of an ensemble's steps are not loaded: `load_first` loads all of it.
    """

    load_first: bool = field(default=False, compare=False)


class Remove(_OnName):
    """Remove the folder of a model that is not loaded."""

    __slots__ = ()


Action: TypeAlias = Prepare | LoadStep | RepairStep | Serve | Prove | Try | Score | Probe | Unload | Remove


@dataclass(frozen=True, slots=True)
class Ensemble:
    """The revision behind a public name, the steps that it calls, and the members that it selects in shared steps."""

    revision: str
    steps: frozenset[str]
    members: frozenset[str] = frozenset()

    @property
    def folders(self) -> frozenset[str]:
        """The names in the repository of all that it needs."""
        return self.steps | self.members


@dataclass(frozen=True, slots=True)
class StepDeath:
    """When a process of a step was found dead, as a Unix time in seconds, and what ended it."""

    at_s: float
    cause: str


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """The state of the server and its repository at one moment.

    `states` are the repository index's, by model name; `loaded` are the ready ensembles as the server reports them,
    `published` all ensembles as the repository's files describe them; `folders` are the names in the repository,
    `dead` the steps that Triton reports as ready although a process of theirs has died, and `deaths` the last death of
    every step that ever had one. `opened` are, by shared step, the members that it has opened, as "",
    and why others cannot be.
    """

    ready: bool
    states: Mapping[str, str] = field(default_factory=dict)
    loaded: Mapping[str, Ensemble] = field(default_factory=dict)
    published: Mapping[str, Ensemble] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()
    deaths: Mapping[str, StepDeath] = field(default_factory=dict)
    opened: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def is_active(self, name: str) -> bool:
        """Return whether the server may still run requests of the model `name`."""
        return self.states.get(name) in (READY, LOADING, UNLOADING)

    def used_steps(self) -> frozenset[str]:
        """Return the steps that active ensembles call, and their members, according to the server or to the files."""
        active = [name for name in {*self.loaded, *self.published} if self.is_active(name)]
        sources = (self.loaded, self.published)
        ensembles = [source[name] for source in sources for name in active if name in source]
        return frozenset(name for ensemble in ensembles for name in ensemble.folders)

    def serves(self, name: str, revision: str, folders: Collection[str] | None = None) -> bool:
        """Return whether the public name `name` is ready and stands for `revision`, and needs only `folders`.

        Metrics change a revision's steps but not its name: a revision that serves with its former steps does serve.
        """
        ensemble = self.loaded.get(name)
        if self.states.get(name) != READY or ensemble is None or ensemble.revision != revision:
            return False
        return folders is None or ensemble.folders <= set(folders)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A published revision, with the number of processes of each of its steps, in order."""

    assigned: AssignedRevision
    tree: Tree
    processes: Mapping[str, int]
    golden: Path | None

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(self.processes)

    @property
    def folders(self) -> tuple[str, ...]:
        """The names in the repository of the steps, and of the members of shared steps."""
        return (*self.processes, *self.tree.members)

    def outcomes(self, opened: Mapping[str, Mapping[str, str]]) -> dict[str, str | None]:
        """Return what became of each member, given `opened` members by step: "" once it is open, None before
        that.

        A shared step that cannot say it is not waited for.
        """
        steps = self.tree.member_steps
        return {member: opened[step].get(member) for member, step in steps.items() if step in opened}


@dataclass(frozen=True, slots=True)
class Proof:
    """How a revision was proved, with the sha256 of its golden set if it has one, and the number of images.

    `cascade_loss` is the bound of its cascade's expected loss, if the spec declares one. `devices` are the devices of
    its networks, and `gpus` the server's GPUs.
    """

    kind: ProofKind
    golden_sha256: str | None
    images: int = 1
    cascade_loss: float | None = None
    devices: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrialProof:
    """A trial that passed: the published revision with the golden set on trial, and how it was proved with it."""

    prepared: Prepared
    proof: Proof


@dataclass(frozen=True, slots=True)
class RevisionFailure:
    """Why a revision is not served. `retry_at_s` is None if only another assignment can help.

    `given_up`: it is retried, but was refused so often that the operator should not wait for it.
    """

    assigned: AssignedRevision
    reason: str
    message: str
    attempts: int = 1
    retry_at_s: float | None = None
    published: bool = False
    """Whether the artifact had been verified before the failure."""
    given_up: bool = False

    @property
    def retryable(self) -> bool:
        """Whether a retry may soon help."""
        return self.retry_at_s is not None and not self.given_up

    def is_due(self, now_s: float) -> bool:
        """Return whether to try again."""
        return self.retry_at_s is not None and now_s >= self.retry_at_s


@dataclass(slots=True)
class RevisionState:
    """State of one revision. Times are of a monotonic clock, and infinite if unset."""

    prepared: Prepared | None = None
    proof: Proof | None = None
    failure: RevisionFailure | None = None
    trial_proof: TrialProof | None = None
    trial_failure: RevisionFailure | None = None
    crashes: int = 0
    progress: str = ""
    """The last message of a download."""
    load_started_s: float = math.inf
    load_s: float = 0.0
    opening_since_s: float = math.inf
    """Since when it waits for members that are not open."""
    failing_since_s: float = math.inf
    """Its first failed probe, since which its members are opened anew."""

    def follow(self, assigned: AssignedRevision) -> None:
        """Forget what is about former assignments; a set that passed its trial and was adopted is the proof now."""
        if self.failure is not None and self.failure.assigned != assigned:
            self.failure = None
        if self.trial_failure is not None and self.trial_failure.assigned != assigned.trial:
            self.trial_failure = None
        passed = self.trial_proof
        if passed is not None and passed.prepared.assigned != assigned.trial:
            self.trial_proof = None
            if passed.prepared.assigned == assigned:
                # Nothing is fetched for it again: a source that is away must not take what serves.
                self.prepared, self.proof = passed.prepared, passed.proof


@dataclass(slots=True)
class AgentState:
    """State kept between passes. Losing it costs no more than new snapshots and proofs."""

    revisions: defaultdict[str, RevisionState] = field(default_factory=lambda: defaultdict(RevisionState))
    replays: Replays = field(default_factory=Replays)
    answers: AnswerCounts = field(default_factory=AnswerCounts)
    running: dict[Action, float] = field(default_factory=dict)
    """When actions that run were started."""
    repeats: Repeats[Action] = field(default_factory=lambda: Repeats(REPEAT_BACKOFF))

    def keep_only(self, assignment: Sequence[AssignedRevision]) -> None:
        """Forget revisions that are no longer assigned, and what is about former assignments of the others."""
        by_revision = {model.revision: model for model in assignment}
        for revision in self.revisions.keys() - by_revision.keys():
            del self.revisions[revision]
        for revision, state in self.revisions.items():
            state.follow(by_revision[revision])
        counted = [(each, each.counting) for each in assignment if each.counting is not None]
        self.answers.follow({each.revision: (each.spec, counting) for each, counting in counted})
        self.replays.follow({model.revision: model.scoring for model in assignment if model.scoring is not None})

    def published(self) -> list[Prepared]:
        """Return the published revisions; any thread may call this."""
        return [prepared for each in list(self.revisions.values()) if (prepared := each.prepared) is not None]

    def invalidate_proofs(self, assignment: Iterable[AssignedRevision], snapshot: ServerSnapshot) -> None:
        """Forget the proofs of revisions that the server no longer holds completely."""
        for assigned in assignment:
            if not is_loaded(assigned, snapshot, self):
                state = self.revisions[assigned.revision]
                state.proof = state.trial_proof = None
                self.replays.lose(assigned.revision)

    def follow_openings(self, snapshot: ServerSnapshot, now_s: float) -> None:
        """Record since when revisions wait for members to be opened."""
        for state in self.revisions.values():
            waits = state.prepared is not None and None in state.prepared.outcomes(snapshot.opened).values()
            state.opening_since_s = min(state.opening_since_s, now_s) if waits else math.inf

    def users(self, step: str) -> list[AssignedRevision]:
        """Return the assigned models that use a step."""
        return [prepared.assigned for prepared in self.published() if step in prepared.steps]

    def fail(
        self, assigned: AssignedRevision, reason: str, message: str, *, retry_from_s: float | None, serves: bool = False
    ) -> None:
        """Record why a revision is not served as assigned; `retry_from_s` is the current time if a retry may help.

        It stays proved if it `serves` as it was assigned before.
        """
        state = self.revisions[assigned.revision]
        attempts = state.failure.attempts + 1 if state.failure is not None else 1
        retry_at_s = None if retry_from_s is None else retry_from_s + BACKOFF.delay_s(attempts)
        verified = state.prepared is not None
        state.failure = RevisionFailure(assigned, reason, message, attempts, retry_at_s, verified)
        if not serves:
            state.proof = None

    def fail_load(
        self, assigned: AssignedRevision, reason: str, message: str, now_s: float, *, serves: bool = False
    ) -> None:
        """Record that Triton refused to load a revision, with `serves` as of `fail`.

        Perhaps memory is short only now: it is retried for as long as it is assigned, but after `LOADS_ALLOWED`
        attempts the operator should not wait for it.
        """
        state = self.revisions[assigned.revision]
        if state.failure is not None and not state.failure.is_due(now_s):
            return  # another step of the same attempt
        attempts = state.failure.attempts + 1 if state.failure is not None else 1
        state.failure = RevisionFailure(
            assigned,
            reason,
            message,
            attempts,
            now_s + LOAD_BACKOFF.delay_s(attempts),
            published=state.prepared is not None,
            given_up=attempts >= LOADS_ALLOWED,
        )
        if not serves:
            state.proof = None

    def fail_trial(
        self, trial: AssignedRevision, reason: str, message: str, *, retry_from_s: float | None, died: bool = False
    ) -> None:
        """Record why a trial failed, with `retry_from_s` as of `fail`; the revision stays proved.

        A trial in which the server or a step `died` is given up after `CRASHES_ALLOWED` attempts: perhaps the images
        did it, and the same processes serve callers.
        """
        state = self.revisions[trial.revision]
        attempts = state.trial_failure.attempts + 1 if state.trial_failure is not None else 1
        retry_at_s = None if retry_from_s is None else retry_from_s + BACKOFF.delay_s(attempts)
        if died and attempts >= CRASHES_ALLOWED:
            retry_at_s = None
        state.trial_failure = RevisionFailure(trial, reason, message, attempts, retry_at_s)

    def start(self, action: Action, now_s: float) -> None:
        """Record that an action is running."""
        self.running[action] = now_s
        revisions = [action.revision] if isinstance(action, Serve) else []
        if isinstance(action, LoadStep | RepairStep):
            revisions = [assigned.revision for assigned in self.users(action.name)]
        for state in map(self.revisions.__getitem__, revisions):
            state.load_started_s = min(state.load_started_s, now_s)

    def prepare(self, prepared: Prepared) -> None:
        """Record that a revision is published."""
        state = self.revisions[prepared.assigned.revision]
        state.prepared, state.failure = prepared, None

    def serve(self, revision: str, now_s: float) -> None:
        """Record that a revision is loaded, and how long that took."""
        state = self.revisions[revision]
        if state.proof is not None:  # it served before with other steps, and is not proved again
            state.failure = None
        if state.load_started_s < math.inf:
            state.load_s, state.load_started_s = round(now_s - state.load_started_s, 3), math.inf

    def prove(self, revision: str, proof: Proof) -> None:
        """Record that a revision gave the expected answers."""
        state = self.revisions[revision]
        state.proof, state.failure, state.crashes, state.failing_since_s = proof, None, 0, math.inf

    def pass_trial(self, tried: Prepared, proof: Proof) -> None:
        """Record that a revision gave the answers of the set on trial."""
        state = self.revisions[tried.assigned.revision]
        state.trial_proof, state.trial_failure = TrialProof(tried, proof), None


def is_loaded(assigned: AssignedRevision, snapshot: ServerSnapshot, state: AgentState) -> bool:
    """Return whether the model's public name stands for the revision, with all steps that it calls ready and alive."""
    if state.revisions[assigned.revision].prepared is None or not snapshot.ready:
        return False
    if not snapshot.serves(assigned.model, assigned.revision):
        return False
    steps = snapshot.loaded[assigned.model].steps
    return all(snapshot.states.get(step) == READY and step not in snapshot.dead for step in steps)
