"""What an agent remembers between two looks: what is prepared, proved, failed, and under way."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from segserve_builder.agent.decide import is_loaded
from segserve_builder.agent.state import LoadStep, RepairStep, RevisionFailure, Serve

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from segserve_builder.agent.state import Action, AssignedRevision, Prepared, Proof, ServerSnapshot

LONGEST_PAUSE_S: Final = 30.0
CRASHES_ALLOWED: Final = 3


@dataclass(slots=True)
class AgentState:
    """All by revision. It may be lost at any time: the next looks and proofs bring it back."""

    prepared: dict[str, Prepared] = field(default_factory=dict)
    proofs: dict[str, Proof] = field(default_factory=dict)
    failures: dict[str, RevisionFailure] = field(default_factory=dict)
    load_s: dict[str, float] = field(default_factory=dict)
    running: set[Action] = field(default_factory=set)
    crashes: Counter[str] = field(default_factory=Counter)
    progress: dict[str, str] = field(default_factory=dict)
    """How far what is being prepared has come, in words."""

    _load_started_s: dict[str, float] = field(default_factory=dict)

    def keep_only(self, assigned: Sequence[AssignedRevision]) -> None:
        """Forget what is not assigned any more, and failures of what is assigned differently now."""
        told = {model.revision: model for model in assigned}
        for known in (self.prepared, self.proofs, self.load_s, self.crashes, self.progress, self._load_started_s):
            for revision in known.keys() - told.keys():
                del known[revision]
        for revision, failure in tuple(self.failures.items()):
            if told.get(revision) != failure.told:
                del self.failures[revision]

    def doubt(self, assigned: Iterable[AssignedRevision], look: ServerSnapshot) -> None:
        """Forget the proofs of what the server does not hold whole any more."""
        for told in assigned:
            if not is_loaded(told, look, self):
                self.proofs.pop(told.revision, None)

    def users(self, step: str) -> list[AssignedRevision]:
        """Return the assigned models that use a step."""
        return [prepared.told for prepared in self.prepared.values() if step in prepared.steps]

    def fail(self, told: AssignedRevision, reason: str, message: str, *, retry_from_s: float | None) -> None:
        """Take down why a revision is not served; `retry_from_s` is now where a retry may help, else None."""
        earlier = self.failures.get(told.revision)
        attempts = earlier.attempts + 1 if earlier is not None else 1
        pause = min(2.0 ** (attempts - 1), LONGEST_PAUSE_S)
        retry_at_s = None if retry_from_s is None else retry_from_s + pause
        verified = told.revision in self.prepared
        self.failures[told.revision] = RevisionFailure(told, reason, message, attempts, retry_at_s, verified)
        self.proofs.pop(told.revision, None)

    def start(self, action: Action, now_s: float) -> None:
        """Take down that an action is under way."""
        self.running.add(action)
        if isinstance(action, LoadStep | RepairStep):
            for told in self.users(action.name):
                self._load_started_s.setdefault(told.revision, now_s)
        elif isinstance(action, Serve):
            self._load_started_s.setdefault(action.revision, now_s)

    def prepare(self, prepared: Prepared) -> None:
        """Take down that a revision is published."""
        self.prepared[prepared.told.revision] = prepared
        self.failures.pop(prepared.told.revision, None)

    def serve(self, revision: str, now_s: float) -> None:
        """Take down that a revision is loaded, and how long that took."""
        started_s = self._load_started_s.pop(revision, None)
        if started_s is not None:
            self.load_s[revision] = round(now_s - started_s, 3)

    def prove(self, revision: str, proof: Proof) -> None:
        """Take down that a revision answers as it should."""
        self.proofs[revision] = proof
        self.failures.pop(revision, None)
        self.crashes.pop(revision, None)
