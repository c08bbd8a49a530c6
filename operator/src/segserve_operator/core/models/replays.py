"""Segserve's own requests in Shadow, where callers bring none: when they are made, and what they say."""

from __future__ import annotations

from typing import Final

from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.models.observed import Observed
from segserve_operator.core.rollout.engine import is_quiet
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState

REPLAY: Final = "replay"
"""Name of the verdict, and of the check."""
MANY_FAILED: Final = 3
"""Requests that the candidate alone must have failed: a server that starts again may lose one."""
LONGEST_ANSWER_S: Final = 65.0
"""The comparator takes an answer that comes later for none, and counts it as failed."""


def replay_key(state: RolloutState) -> str:
    """Return the key of the check that makes the requests."""
    return f"{state.rollout}/{REPLAY}"


def is_replaying(state: RolloutState, record: Record, world: Observed) -> bool:
    """Tell whether a rollout in Shadow has nothing to be copied, although its gateways would compare it."""
    in_shadow = state.phase is Phase.SHADOW and record.policy.shadow is not None and not state.paused
    return in_shadow and world.compares and bool(is_quiet(record.progress, world.now_s))


def replay_outcome(record: Record, state: RolloutState, groups: tuple[str, str], model: str, world: Observed) -> int:
    """Return 1 if the requests were answered, -1 if the candidate alone fails them, and 0 while neither is known.

    Requests that could not be made, since no gateway has a comparator that takes them, count as answered: nobody waits
    for them. While no gateway tells its counts, nothing is known.
    """
    if not is_replaying(state, record, world) or not world.samples.get(model):
        return 0
    found = world.check_results.get(replay_key(state))
    if found is None or not found.done:
        return 0
    counted = _replayed(record, groups)
    if fails_alone(counted):
        return -1
    is_answered = found.problem or sum(counted) >= found.asked[1] or world.now_s - found.at_s >= LONGEST_ANSWER_S
    return int(bool(is_answered))


def fails_alone(replayed: tuple[int, int, int, int]) -> bool:
    """Tell whether the candidate fails segserve's own requests while stable answers all of them."""
    _, candidate_alone, stable_alone, both = replayed
    return candidate_alone >= MANY_FAILED and not stable_alone + both


def replay_verdict(record: Record, state: RolloutState, groups: tuple[str, str], world: Observed) -> Verdict | None:
    """Return what the requests say so far, for the record; None unless they are being made."""
    found = world.check_results.get(replay_key(state))
    if found is None or state.phase is not Phase.SHADOW:
        return None
    if found.problem:
        text = f"no requests of callers come, and segserve's own cannot be made: {found.problem}"
        return Verdict(REPLAY, Outcome.UNDECIDED, "NotReplayed", text)
    counted = _replayed(record, groups)
    answered = sum(counted) - counted[1] - counted[3]
    text = (
        f"the candidate answered {answered} of {sum(counted)} images that segserve sent, as no requests of callers come"
    )
    if found.done and fails_alone(counted):
        return Verdict(REPLAY, Outcome.BREACH, "ReplayFailed", f"{text}; stable answered all")
    if not found.done or not sum(counted):
        return Verdict(REPLAY, Outcome.UNDECIDED, "Replaying", text)
    return Verdict(REPLAY, Outcome.PASS, "Replayed", text)


def _replayed(record: Record, groups: tuple[str, str]) -> tuple[int, int, int, int]:
    """Return the counts of all gateways together; a comparator counts from zero in each Shadow."""
    counts = (counters.pairs for counters in record.seen.values())
    own = [pairs.replayed for pairs in counts if pairs is not None and (pairs.stable, pairs.candidate) == groups]
    both, candidate, stable, neither = (sum(each) for each in zip(*own, strict=True)) if own else (0, 0, 0, 0)
    return both, candidate, stable, neither
