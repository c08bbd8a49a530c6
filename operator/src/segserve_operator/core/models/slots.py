"""Slots for proving candidates: many models may change at once, and each candidate needs servers of its own."""

from __future__ import annotations

import math
from typing import Final

from segserve_operator.core.models.observed import ModelObserved, Observed

MAX_CANDIDATE_GROUPS: Final = 8
"""Number of candidates of a pool that have a group of their own at a time; further ones wait."""


def free_slots(world: Observed) -> frozenset[str]:
    """Return the models whose candidate may get a group of its own now, longest waiting first.

    Models whose candidate failed come last: it may be retried, but most stay as they are and must not block others.
    """
    running = sum(_holds_own_group(model, world) for model in world.models)
    waiting = sorted((model for model in world.models if _waits(model)), key=_place)
    return frozenset(model.name for model in waiting[: max(MAX_CANDIDATE_GROUPS - running, 0)])


def _place(model: ModelObserved) -> tuple[bool, float, str]:
    candidate = model.roles.candidate
    if candidate is None:
        return False, math.inf, model.name
    return candidate.failure is not None, candidate.since_s, model.name


def _holds_own_group(model: ModelObserved, world: Observed) -> bool:
    """Tell whether a model's change still occupies servers: until its candidate failed, or is stable and settled.

    A stable revision that stays in its group only because of its predecessor occupies no slot.
    """
    candidate, stable = model.roles.candidate, model.roles.stable
    groups = [candidate.group] if candidate is not None else []
    if stable is not None and model.roles.previous is None:
        groups.append(stable.group)
    return any(group is not None and group != world.main for group in groups)


def _waits(model: ModelObserved) -> bool:
    """Tell whether a model's spec requires a revision that has neither a role nor a group."""
    if model.wanted is None or model.deleting:
        return False
    roles, wanted = model.roles, model.wanted.assigned.revision
    if any(holder is not None and holder.revision == wanted for holder in (roles.stable, roles.previous)):
        return False
    candidate = roles.candidate
    return candidate is None or candidate.revision != wanted or candidate.group is None
