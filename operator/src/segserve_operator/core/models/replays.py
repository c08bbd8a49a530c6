"""Segserve's own requests in Shadow, where callers bring none: when they are made, and what they say.

The comparator asks both revisions the golden images that the operator has, or the built-in one. On a cluster only
servers have credentials for golden sets: their agents ask each its own server, and report which images it answered.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import numpy as np

from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.models.golden_scores import answers, image_scores, is_asked
from segserve_operator.core.models.observed import ModelObserved, Observed
from segserve_operator.core.rollout.engine import is_quiet
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState

REPLAY: Final = "replay"
"""Purpose of the check."""
VERDICT: Final = "shadowReplay"
"""Name of the verdict. It has a capital letter, as no name of a user's gate has."""
MANY_FAILED: Final = 3
"""Requests that the candidate alone must have failed: a server that starts again may lose one."""
LONGEST_ANSWER_S: Final = 65.0
"""The comparator takes an answer that comes later for none, and counts it as failed."""
_Counts: TypeAlias = "tuple[int, int, int, int]"
"""Images that both answered, that the candidate alone failed, that stable alone failed, and that both failed."""


def replay_key(state: RolloutState) -> str:
    """Return the key of the check that makes the requests."""
    return f"{state.rollout}/{VERDICT}"


def is_replaying(state: RolloutState, record: Record, world: Observed) -> bool:
    """Tell whether a rollout in Shadow has nothing to be copied, although its gateways would compare it."""
    in_shadow = state.phase is Phase.SHADOW and record.policy.shadow is not None and not state.paused
    return in_shadow and world.compares and bool(is_quiet(record.progress, world.now_s))


def replay_outcome(
    record: Record, state: RolloutState, groups: tuple[str, str], model: ModelObserved, world: Observed
) -> int:
    """Return 1 if the requests were answered, -1 if the candidate alone fails them, and 0 while neither is known.

    Requests that could not be made, since no gateway has a comparator that takes them, count as answered, and so does a
    golden set that agents cannot score: nobody waits for them. While no gateway tells its counts, nothing is known.
    """
    if not is_replaying(state, record, world) or not world.samples.get(model.name):
        return 0
    found = world.check_results.get(replay_key(state))
    if found is None or not found.done:
        return 0
    own, scored = _replayed(record, groups), _scored(record, state, groups, model, world)
    if fails_alone(_together(own, scored)):
        return -1
    is_answered = found.problem or sum(own) >= found.asked[1] or world.now_s - found.at_s >= LONGEST_ANSWER_S
    return int(bool(is_answered) and scored is not None)


def fails_alone(replayed: _Counts) -> bool:
    """Tell whether the candidate fails segserve's own requests while stable answers all of them."""
    _, candidate_alone, stable_alone, both = replayed
    return candidate_alone >= MANY_FAILED and not stable_alone + both


def replay_verdict(
    record: Record, state: RolloutState, groups: tuple[str, str], model: ModelObserved, world: Observed
) -> Verdict | None:
    """Return what the requests say so far, for the record; None unless they are being made."""
    found = world.check_results.get(replay_key(state))
    if found is None or state.phase is not Phase.SHADOW:
        return None
    scored = _scored(record, state, groups, model, world)
    counted = _together(_replayed(record, groups), scored)
    if found.problem and not sum(counted):
        text = f"no requests of callers come, and segserve's own cannot be made: {found.problem}"
        return Verdict(VERDICT, Outcome.UNDECIDED, "NotReplayed", text)
    answered = sum(counted) - counted[1] - counted[3]
    text = (
        f"the candidate answered {answered} of {sum(counted)} images that segserve sent, as no requests of callers come"
    )
    if found.done and fails_alone(counted):
        return Verdict(VERDICT, Outcome.BREACH, "ReplayFailed", f"{text}; stable answered all")
    if not found.done or scored is None or not sum(counted):
        return Verdict(VERDICT, Outcome.UNDECIDED, "Replaying", text)
    return Verdict(VERDICT, Outcome.PASS, "Replayed", text)


def _replayed(record: Record, groups: tuple[str, str]) -> _Counts:
    """Return the counts of all gateways together; a comparator counts from zero in each Shadow."""
    counts = (counters.pairs for counters in record.seen.values())
    own = [pairs.replayed for pairs in counts if pairs is not None and (pairs.stable, pairs.candidate) == groups]
    both, candidate, stable, neither = (sum(each) for each in zip(*own, strict=True)) if own else (0, 0, 0, 0)
    return both, candidate, stable, neither


def _scored(
    record: Record, state: RolloutState, groups: tuple[str, str], model: ModelObserved, world: Observed
) -> _Counts | None:
    """Return the counts of the golden images that the agents of both asked; None while they are awaited.

    All are zero if nobody is asked, or if a revision's agents say that they cannot.
    """
    golden = model.wanted.assigned.golden if model.wanted is not None else None
    revisions = (record.stable, state.revision)
    asked = all(is_asked(world.groups.get(group), each) for group, each in zip(groups, revisions, strict=True))
    if golden is None or not asked:
        return 0, 0, 0, 0
    said = [answers(each, each, group, golden.sha256, world) for group, each in zip(groups, revisions, strict=True)]
    if any(each.problem for each in said):
        return 0, 0, 0, 0
    if not all(each.reports for each in said):
        return None
    stable, candidate = (np.isnan(image_scores(each.reports)) for each in said)
    size = min(len(stable), len(candidate))
    cells = np.bincount(2 * stable[:size] + candidate[:size], minlength=4).tolist()
    # Agents try each image three times at their own server: one that neither answers is broken itself.
    return cells[0], cells[1], cells[2], 0


def _together(own: _Counts, scored: _Counts | None) -> _Counts:
    both, candidate, stable, neither = (sum(each) for each in zip(own, scored or (0, 0, 0, 0), strict=True))
    return both, candidate, stable, neither
