"""What people ask of a rollout by annotations: bound to a revision, and dealt with once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from segserve_operator.core.rollout.phases import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_operator.core.models.observed import Roles
    from segserve_operator.core.rollout.record import Standing

PREFIX: Final = "segserve.dev/"
VERBS: Final = ("abort", "rollback", "pause", "promote", "resume", "skip-gate", "retry")
"""In the order in which they are dealt with where several are there at once."""
MAX_HANDLED: Final = 32
_WATCHED: Final = (Phase.GOLDEN, Phase.PROGRESSING, Phase.QUARANTINED)
PHASES: Final[Mapping[str, tuple[Phase, ...]]] = {
    "abort": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "pause": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "resume": (Phase.PENDING, *_WATCHED, Phase.BAKING),
    "promote": _WATCHED,
    "skip-gate": (Phase.PENDING, *_WATCHED, Phase.BAKING),
}
"""When each verb that is about a running rollout means anything."""


@dataclass(frozen=True, slots=True)
class Request:
    """One annotation: a verb, the revision that it is about, and for skip-gate the gate."""

    verb: str
    value: str

    @property
    def text(self) -> str:
        """What marks it as handled."""
        return f"{self.verb}={self.value}"

    @property
    def revision(self) -> str:
        """The revision that it names."""
        named = self.value.partition("@")[2] if self.verb == "skip-gate" else self.value
        return named.partition("@")[0]

    @property
    def gate(self) -> str:
        """The gate that skip-gate names."""
        return self.value.partition("@")[0]


def next_request(annotations: Mapping[str, str], handled: Iterable[str]) -> Request | None:
    """Return the first request that was not dealt with yet."""
    known = frozenset(handled)
    for verb in VERBS:
        if PREFIX + verb in annotations:
            request = Request(verb, annotations[PREFIX + verb])
            if request.text not in known:
                return request
    return None


def with_handled(handled: tuple[str, ...], request: Request) -> tuple[str, ...]:
    """Return the texts of what was dealt with, the newest last."""
    return (*(text for text in handled if text != request.text), request.text)[-MAX_HANDLED:]


def refusal(request: Request, standing: Standing | None, roles: Roles, gates: Iterable[str]) -> str | None:
    """Return why a request cannot be met; None where it can."""
    if request.verb == "rollback":
        return _rollback_refusal(request, roles)
    if request.verb == "retry":
        failed = roles.candidate if roles.candidate is not None and roles.candidate.failure is not None else None
        return _other(request, failed.revision if failed is not None else None, "has failed")
    if standing is None or standing.ended:
        return f"{request.verb}: no rollout is under way"
    if request.revision != standing.revision:
        return _other(request, standing.revision, "is rolled out")
    if standing.phase not in PHASES[request.verb]:
        return f"{request.verb}: not while the rollout is {standing.phase.label}"
    if request.verb == "skip-gate" and request.gate not in gates:
        return f"skip-gate: there is no gate {request.gate!r}; there are: {', '.join(gates) or 'none'}"
    return None


def _rollback_refusal(request: Request, roles: Roles) -> str | None:
    if roles.stable is None or request.revision != roles.stable.revision:
        return _other(request, roles.stable.revision if roles.stable is not None else None, "is stable")
    if roles.previous is None:
        return f"rollback: no former revision is kept beside {request.revision}; apply the one that you want"
    return None


def _other(request: Request, current: str | None, what: str) -> str | None:
    if current is None:
        return f"{request.verb}: no revision {what}"
    if request.revision == current:
        return None
    return f"{request.verb} names {request.revision!r}, but {current} {what}"
