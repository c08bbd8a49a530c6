"""Whose turn it is to be proved: many models may change at once, and each needs servers for that."""

from __future__ import annotations

import math
from typing import Final

from segserve_operator.core.models.observed import ModelObserved, Observed

MAX_CANDIDATE_GROUPS: Final = 8
"""So many candidates of a pool have a group of their own at a time; the others wait."""


def turns(world: Observed) -> frozenset[str]:
    """Return the models whose candidate may have a group of its own now, those first that have waited longest.

    One whose candidate has failed comes last: it may be tried again, but most stay as they are and must not keep others
    out.
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
    """Tell whether a model's change still takes servers: until its candidate has failed, or is stable and settled.

    A stable revision that stays in its group only for the sake of its predecessor holds up nobody.
    """
    candidate, stable = model.roles.candidate, model.roles.stable
    groups = [candidate.group] if candidate is not None else []
    if stable is not None and model.roles.previous is None:
        groups.append(stable.group)
    return any(group is not None and group != world.main for group in groups)


def _waits(model: ModelObserved) -> bool:
    """Tell whether a model asks for a revision that has neither a role nor a group yet."""
    if model.wanted is None or model.deleting:
        return False
    roles, wanted = model.roles, model.wanted.assigned.revision
    if any(holder is not None and holder.revision == wanted for holder in (roles.stable, roles.previous)):
        return False
    candidate = roles.candidate
    return candidate is None or candidate.revision != wanted or candidate.group is None
