"""Requests about a rollout, made by annotation: each names a revision and is handled once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from segserve_operator.core.rollout.phases import Phase, Signal
from segserve_operator.core.rollout.record import RolloutState
from segserve_operator.core.world.observed import Roles

PREFIX: Final = "segserve.dev/"
VERBS: Final = ("abort", "rollback", "pause", "promote", "resume", "skip-gate", "retry")
"""Verbs in the order in which several annotations are handled."""
MAX_HANDLED: Final = 32
_WATCHED: Final = (Phase.GOLDEN, Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED)
PHASES: Final[Mapping[str, tuple[Phase, ...]]] = {
    "abort": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "pause": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "resume": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "promote": _WATCHED,
    "skip-gate": (Phase.PENDING, *_WATCHED, Phase.BAKING),
}
"""The phases in which each verb about a rollout in progress is valid."""
VERB_SIGNALS: Final[Mapping[str, Signal]] = {
    "abort": Signal.ABORT,
    "rollback": Signal.ABORT,
    "promote": Signal.PROMOTE,
    "resume": Signal.ADVANCE,
}
"""The signal that a verb sends to the engine; the others change the state itself."""


@dataclass(frozen=True, slots=True)
class RolloutRequest:
    """One annotation: a verb with the revision, and for skip-gate the gate, that it names."""

    verb: str
    value: str

    @classmethod
    def of(cls, text: str) -> RolloutRequest:
        """Return the request with this text."""
        verb, _, value = text.partition("=")
        return cls(verb, value)

    @property
    def text(self) -> str:
        """The text that marks it as handled."""
        return f"{self.verb}={self.value}"

    @property
    def revision(self) -> str:
        """The revision that it names."""
        named = self.value.partition("@")[2] if self.verb == "skip-gate" else self.value
        return named.partition("@")[0]

    @property
    def user(self) -> str:
        """The user that segserve's own clients write before the token, as `revision@user/token`; empty if none."""
        named = self.value.partition("@")[2] if self.verb == "skip-gate" else self.value
        return named.partition("@")[2].rpartition("/")[0]

    @property
    def gate(self) -> str:
        """The gate that skip-gate names."""
        return self.value.partition("@")[0]


def next_request(annotations: Mapping[str, str], handled: Iterable[str]) -> RolloutRequest | None:
    """Return the first request that has not been handled."""
    handled_texts = frozenset(handled)
    for verb in VERBS:
        if PREFIX + verb in annotations:
            request = RolloutRequest(verb, annotations[PREFIX + verb])
            if request.text not in handled_texts:
                return request
    return None


def with_handled(handled: tuple[str, ...], request: RolloutRequest) -> tuple[str, ...]:
    """Return the texts of handled requests, the newest last."""
    return (*(text for text in handled if text != request.text), request.text)[-MAX_HANDLED:]


def refusal(
    request: RolloutRequest, state: RolloutState | None, roles: Roles, gates: Iterable[str], *, can_return: bool = True
) -> str | None:
    """Return why a request is refused, or None if it is granted.

    `can_return`: a server answers for the former revision.
    """
    if request.verb == "rollback":
        if roles.stable is None or request.revision != roles.stable.revision:
            return _other(request, roles.stable.revision if roles.stable is not None else None, "is stable")
        if roles.previous is None:
            return f"rollback: no former revision is kept beside {request.revision}; apply the one that you want"
        if not can_return:
            return f"rollback: no server of group {roles.previous.group} answers for {roles.previous.revision}"
        return None
    if request.verb == "retry":
        failed = roles.candidate if roles.candidate is not None and roles.candidate.failure is not None else None
        return _other(request, failed.revision if failed is not None else None, "has failed")
    if promotes_judged(request, roles):
        return None
    if state is None or state.ended:
        return f"{request.verb}: no rollout is in progress"
    if request.revision != state.revision:
        return _other(request, state.revision, "is being rolled out")
    if state.phase not in PHASES[request.verb]:
        return f"{request.verb}: not possible while the rollout is {state.phase.label}"
    if request.verb == "skip-gate" and request.gate not in gates:
        return f"skip-gate: unknown gate {request.gate!r}; known: {', '.join(gates) or 'none'}"
    return None


def promotes_judged(request: RolloutRequest, roles: Roles) -> bool:
    """Return whether a request is to roll out a revision that was only judged."""
    candidate = roles.candidate
    judged = candidate is not None and candidate.judged and candidate.revision == request.revision
    return judged and request.verb == "promote"


def _other(request: RolloutRequest, current: str | None, what: str) -> str | None:
    if current is None:
        return f"{request.verb}: no revision {what}"
    if request.revision == current:
        return None
    return f"{request.verb} names {request.revision!r}, but {current} {what}"
