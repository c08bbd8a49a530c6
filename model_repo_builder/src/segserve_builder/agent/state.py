"""What an agent sees, what it remembers, and what it can do: the values that `decide` works on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from segserve_builder.agent.protocol import AssignedModel
    from segserve_builder.render.tree import Tree

READY = "READY"
LOADING = "LOADING"
UNLOADING = "UNLOADING"

ProofKind: TypeAlias = Literal["golden", "builtin"]


@dataclass(frozen=True, slots=True)
class AssignedRevision:
    """An assigned model, with the name of its revision: a digest, too costly to compute at every look."""

    revision: str
    model: str
    spec: AssignedModel

    @classmethod
    def of(cls, spec: AssignedModel) -> AssignedRevision:
        """Return an assigned model with its revision's name."""
        return cls(spec.revision, spec.model, spec)


@dataclass(frozen=True, slots=True)
class _OnName:
    name: str

    @property
    def subject(self) -> str:
        """What no second action may work on at the same time."""
        return self.name


@dataclass(frozen=True, slots=True)
class _OnRevision:
    revision: str
    model: str

    @property
    def subject(self) -> str:
        """What no second action may work on at the same time."""
        return self.model


class Prepare(_OnRevision):
    """Fetch and check a revision's artifact and golden set, and publish its steps."""

    __slots__ = ()

    @property
    def subject(self) -> str:
        """The revision: preparing one disturbs no other of its model."""
        return self.revision


class LoadStep(_OnName):
    """Load a published step."""

    __slots__ = ()


class RepairStep(_OnName):
    """Reload a step whose process has died; the models that use it keep their place."""

    __slots__ = ()


class Serve(_OnRevision):
    """Make a revision the one behind its public names."""

    __slots__ = ()


class Prove(_OnRevision):
    """Ask a loaded revision for its golden answers."""

    __slots__ = ()


class Probe(_OnRevision):
    """Ask a proved revision for one answer, to see that it still answers."""

    __slots__ = ()


class Unload(_OnName):
    """Unload a model that nothing uses any more."""

    __slots__ = ()


class Remove(_OnName):
    """Remove the folder of a model that is not loaded."""

    __slots__ = ()


Action: TypeAlias = Prepare | LoadStep | RepairStep | Serve | Prove | Probe | Unload | Remove


@dataclass(frozen=True, slots=True)
class Ensemble:
    """What a public name stands for: the revision, and the steps it calls."""

    revision: str
    steps: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServerSnapshot:
    """One look at the server and its repository.

    `states` are the index's by model name, `loaded` what the server says of its ready ensembles, `published`
    what the repository's files say of all ensembles, `folders` the names in the repository, and `dead` the
    steps that count as ready and have lost a process.
    """

    ready: bool
    states: Mapping[str, str] = field(default_factory=dict)
    loaded: Mapping[str, Ensemble] = field(default_factory=dict)
    published: Mapping[str, Ensemble] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()
    dead: frozenset[str] = frozenset()

    def is_active(self, name: str) -> bool:
        """Tell whether the server may still run requests of the model `name`."""
        return self.states.get(name) in (READY, LOADING, UNLOADING)

    def used_steps(self) -> frozenset[str]:
        """Return the steps that active ensembles call, by the server's word and by the files'."""
        active = [name for name in {*self.loaded, *self.published} if self.is_active(name)]
        known = [source[name] for source in (self.loaded, self.published) for name in active if name in source]
        return frozenset(step for ensemble in known for step in ensemble.steps)


@dataclass(frozen=True, slots=True)
class Prepared:
    """An assigned revision that is published, with the number of processes of each of its steps, in order."""

    told: AssignedRevision
    tree: Tree
    processes: Mapping[str, int]
    golden: Path | None

    @property
    def steps(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(self.processes)


@dataclass(frozen=True, slots=True)
class Proof:
    """What a revision has proved, and the golden set's sha256 where there is one."""

    kind: ProofKind
    golden_sha256: str | None


@dataclass(frozen=True, slots=True)
class RevisionFailure:
    """Why a revision is not served. `retry_at_s` is None where only another assignment can help."""

    told: AssignedRevision
    reason: str
    message: str
    attempts: int = 1
    retry_at_s: float | None = None
    published: bool = False
    """Whether the artifact had been verified by then."""

    def is_due(self, now_s: float) -> bool:
        """Tell whether to try again."""
        return self.retry_at_s is not None and now_s >= self.retry_at_s
