"""The revisions that serve now, in the one form that every view shows. A record of a rollout is history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

_ROLES: Final = ("stable", "candidate", "previous")


@dataclass(frozen=True, slots=True)
class Present:
    """Revisions by role, the percentage of requests that each role gets, and the phase of the latest rollout.

    `phase` is empty without a rollout, and once the latest one no longer says what its revision is.
    """

    revisions: Mapping[str, str]
    shares: Mapping[str, int]
    phase: str = ""

    @classmethod
    def of(cls, model: Mapping[str, Any]) -> Self:
        """Return what a model's status says; it may be of a newer operator."""
        status = model.get("status") or {}
        roles = status.get("roles") or {}
        revisions = {role: str(roles[role].get("revision", "")) for role in _ROLES if role in roles}
        newest, other = ("candidate", "stable") if "candidate" in revisions else ("stable", "previous")
        weight = int(status.get("weight") or 0)
        shares = {newest: weight, other: 100 - weight} if "stable" in revisions else {}
        return cls(revisions, {role: shares.get(role, 0) for role in revisions}, str(status.get("phase") or ""))

    def role_of(self, revision: str) -> str:
        """Return the role of a revision; empty if it has none."""
        return next((role for role, held in self.revisions.items() if held == revision), "")

    def share_of(self, revision: str) -> int:
        """Return the percentage of requests that a revision gets."""
        return self.shares.get(self.role_of(revision), 0)

    @property
    def text(self) -> str:
        """Who gets requests: `coins-1f has all requests`, `coins-1f has 90 % of requests, coins-2b 10 %`."""
        serving = [(self.revisions[role], share) for role, share in self.shares.items() if share]
        if not serving:
            return "nothing serves"
        (first, share), *others = serving
        part = "all" if share == 100 else f"{share} % of"
        return ", ".join((f"{first} has {part} requests", *(f"{revision} {share} %" for revision, share in others)))
