"""The rollout engine: from evidence and requests to the next step. Pure; thousands at once, or one.

What differs between rollouts is in arrays with leading axes; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, EvidenceWindow, Floats, Ints, Judgement
from segserve_operator.core.rollout.phases import Phase, Signal, legal, moved

LOOKAHEAD_S: Final = 60.0
PART_AT_RISK: Final = 0.1
"""No step may risk more than this part of what is left of the budget for bad requests."""
LARGEST_HARM: Final = 0.05
"""A revision that may fail so many requests more than stable is not promoted, however few come."""
SUSPICION: Final = float(np.log(20.0))
"""Evidence of 1 in 20 is no proof, and reason enough to ask the candidate ourselves before callers do."""
RATE_MEMORY_S: Final = 60.0


class OnUndecided(StrEnum):
    """What the deadline does with a rollout that is neither proved bad nor good."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"
    PROMOTE = "Promote"


@dataclass(frozen=True, slots=True)
class Step:
    """A weight (percent), and for how long it lasts at least; `ask` waits for a person's word after that.

    Undecided for `maximum_s`, the rollout does what the policy says of the undecided.
    """

    weight: int
    minimum_s: float = 0.0
    maximum_s: float = float("inf")
    ask: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What a rollout is decided by.

    `levels` are the gates' shares of alpha, `tolerances` the harm (a share of requests) that each takes for next to
    nothing; both in the order of their judgements.
    """

    steps: tuple[Step, ...] = (Step(5), Step(25), Step(50))
    levels: tuple[float, ...] = (0.005, 0.005)
    tolerances: tuple[float, ...] = (0.005, 0.03)
    max_bad_requests: float = 100.0
    min_requests: float = 10.0
    deadline_s: float = 6 * 3600.0
    on_undecided: OnUndecided = OnUndecided.HOLD
    bake_s: float = 600.0
    holdback: float = 5.0
    failures_in_a_row: float = 3.0
    max_quarantines: float = 3.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Where rollouts stand; every field has the leading axes of the simulation, or none.

    `step` is -1 before the first; `since_s`, `step_since_s`, `started_s` Unix time, and `resumed_s` too: when a person
    last ended a pause (0 is never). `failures` counts the candidate's failures in a row, `stable_answered_s` is when
    stable last answered. `seen` are the candidate's requests in this step, `bad` its excess bad requests before the
    last quarantine, `rate` all requests a second.
    """

    phase: Ints
    step: Ints
    paused: Bools
    quarantines: Floats
    started_s: Floats
    since_s: Floats
    step_since_s: Floats
    resumed_s: Floats
    failures: Floats
    stable_answered_s: Floats
    seen: Floats
    bad: Floats
    rate: Floats

    @classmethod
    def begun(cls, now_s: float, shape: tuple[int, ...] = ()) -> Progress:
        """Return rollouts that begin now."""
        zero, now = np.zeros(shape), np.full(shape, now_s)
        return cls(
            phase=np.full(shape, Phase.PENDING, np.int8),
            step=np.full(shape, -1, np.int8),
            paused=np.zeros(shape, bool),
            quarantines=zero,
            started_s=now,
            since_s=now,
            step_since_s=now,
            resumed_s=zero,
            failures=zero,
            stable_answered_s=np.full(shape, -np.inf),
            seen=zero,
            bad=zero,
            rate=zero,
        )


@dataclass(frozen=True, slots=True)
class Signals:
    """What else a decision sees. Arrays as in `Progress`, or plain values for all.

    `ready`: all the candidate's servers answer, and the gateways know them. `lost`: it has requests and no server
    answers. `golden`: labelled images passed (1), failed for good (-1), or neither (0). `probes`: our own requests in
    quarantine are answered (1), fail (-1), or neither. `forbidden`: a gate of another kind breaches; `allowed`: none of
    them is undecided. `asked`: a person's word (ABORT, PROMOTE, or ADVANCE where a step waits for it), else
    `Signal.NONE`. `superseded`: another revision is wanted.
    """

    ready: Bools | bool = True
    lost: Bools | bool = False
    golden: Ints | int = 1
    probes: Ints | int = 0
    forbidden: Bools | bool = False
    allowed: Bools | bool = True
    asked: Ints | int = Signal.NONE
    superseded: Bools | bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """The next progress, the signal that led there, and the weight (percent) of the candidate from now on."""

    progress: Progress
    signal: Ints
    weight: Floats
    waits_for: Ints = field(repr=False)


class Wait(StrEnum):
    """Why a rollout does not go on now."""

    NOTHING = "Nothing"
    PERSON = "PersonAsked"
    TIME = "MinimumTime"
    DATA = "TooFewRequests"
    HARM = "HarmNotBounded"
    INCIDENT = "Incident"
    GATE = "GateUndecided"
    PAUSED = "Paused"


WAITS: Final = tuple(Wait)


def weights(policy: Policy, phase: Ints, step: Ints) -> Floats:
    """Return the candidate's percentage of requests; once it is stable, all but what its predecessor keeps."""
    steps = np.array([0.0, *(each.weight for each in policy.steps)])
    progressing: Floats = np.where(phase == Phase.PROGRESSING, steps[np.clip(step + 1, 0, len(policy.steps))], 0.0)
    promoted: Floats = np.where(phase == Phase.BAKING, 100.0 - policy.holdback, progressing)
    return np.where(phase == Phase.SUCCEEDED, 100.0, promoted)


def with_pause(progress: Progress, paused: Bools, now_s: float) -> Progress:
    """Return rollouts that people hold, or let go on; a resume is remembered, for deadlines count from then."""
    resumed_s = np.where(progress.paused & ~paused, now_s, progress.resumed_s)
    return replace(progress, paused=paused, resumed_s=resumed_s)


def watch(progress: Progress, window: EvidenceWindow, now_s: float) -> Progress:
    """Take a look in: failures in a row, the rate, and the requests of this step."""
    requests, errors = window.requests[..., CANDIDATE], window.errors[..., CANDIDATE]
    # The order within a look is not known: where some failed and some did not, nothing is in a row.
    in_a_row = np.where(errors >= requests, progress.failures + errors, 0.0)
    failures = np.where(requests > 0, in_a_row, progress.failures)
    answered = window.requests[..., STABLE] - window.errors[..., STABLE] > 0.5 * window.requests[..., STABLE]
    share = -np.expm1(-window.seconds / RATE_MEMORY_S)
    rate = window.requests.sum(-1) / np.maximum(window.seconds, 1e-9)
    return replace(
        progress,
        failures=failures,
        stable_answered_s=np.where(answered, now_s, progress.stable_answered_s),
        seen=progress.seen + requests,
        rate=progress.rate + share * (rate - progress.rate),
    )


def next_transition(
    policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, now_s: float
) -> Transition:
    """Return what follows from all that was seen; a decision repeated on the same input is the same."""
    progress = _not_ahead(progress, now_s)
    wait = _waits(policy, progress, judged, heard, now_s)
    signal = _signal(policy, progress, judged, heard, wait, now_s)
    phase = moved(progress.phase, signal)
    entered = legal(progress.phase, signal)
    step = np.where((phase == Phase.PROGRESSING) & (signal == Signal.ADVANCE), progress.step + 1, progress.step)
    step = np.where(signal == Signal.GOLDEN_PASSED, 0, step).astype(np.int8)
    quarantined = entered & (phase == Phase.QUARANTINED)
    excess = _excess(judged, progress)
    after = replace(
        progress,
        phase=phase,
        step=step,
        since_s=np.where(phase != progress.phase, now_s, progress.since_s),
        step_since_s=np.where(entered, now_s, progress.step_since_s),
        seen=np.where(entered, 0.0, progress.seen),
        failures=np.where(entered, 0.0, progress.failures),
        quarantines=progress.quarantines + quarantined,
        bad=np.where(quarantined, excess, progress.bad),
    )
    return Transition(after, signal, weights(policy, phase, step), wait)


def _not_ahead(progress: Progress, now_s: float) -> Progress:
    """Return it with no time that is still to come: where the clock was put back, times begin anew."""
    times = ("started_s", "since_s", "step_since_s", "resumed_s", "stable_answered_s")
    return replace(progress, **{name: np.minimum(getattr(progress, name), now_s) for name in times})


def _excess(judged: Sequence[Judgement], progress: Progress) -> Floats:
    found: Floats = np.maximum.reduce([np.zeros(progress.phase.shape), *(each.excess for each in judged)])
    return found


def _signal(
    policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, wait: Ints, now_s: float
) -> Ints:
    """Return for each rollout the first legal signal of those that its look gives."""
    phase = progress.phase
    released = (wait == WAITS.index(Wait.PERSON)) & (np.asarray(heard.asked) == Signal.ADVANCE)
    goes_on = (wait == WAITS.index(Wait.NOTHING)) | released
    last = progress.step + 1 >= len(policy.steps)
    # A person who holds a rollout has decided: it is not the undecided that deadlines are for.
    late = _late(policy, progress, now_s) & ~goes_on & ~progress.paused
    given = {
        Signal.CANCEL: np.asarray(heard.superseded),
        Signal.ABORT: np.asarray(heard.asked) == Signal.ABORT,
        Signal.BREACH: np.asarray(heard.forbidden)
        | breached(policy, judged)
        | ((phase == Phase.GOLDEN) & (np.asarray(heard.golden) < 0)),
        Signal.CONFIRMED: np.asarray(heard.probes) < 0,
        Signal.QUARANTINE: _fails(policy, progress, judged, heard, now_s),
        Signal.GIVE_UP: late & (policy.on_undecided is OnUndecided.ROLLBACK),
        Signal.PROMOTE: (np.asarray(heard.asked) == Signal.PROMOTE)
        | (late & (policy.on_undecided is OnUndecided.PROMOTE) & (phase == Phase.PROGRESSING)),
        Signal.RESUMED: (np.asarray(heard.probes) > 0) & (progress.quarantines <= policy.max_quarantines),
        Signal.PROVED: np.asarray(heard.ready),
        Signal.GOLDEN_PASSED: goes_on & (np.asarray(heard.golden) > 0),
        Signal.ADVANCE: goes_on & ~last,
        Signal.CERTIFIED: goes_on & last,
        Signal.BAKED: goes_on,
    }
    signal = np.full(phase.shape, Signal.NONE, np.int8)
    for each in reversed(given):
        signal = np.where(given[each] & legal(phase, int(each)), np.int8(each), signal)
    return signal


def breached(policy: Policy, judged: Sequence[Judgement]) -> Bools:
    """Tell whether any gate has proof at its level."""
    found: Bools = np.asarray(False)
    for judgement, level in zip(judged, policy.levels, strict=True):
        found = found | (judgement.breach >= -np.log(level))
    return found


def _fails(policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, now_s: float) -> Bools:
    """Tell whether the candidate fails while stable answers, or does more harm than was declared."""
    answers = (now_s - progress.stable_answered_s < RATE_MEMORY_S) | (progress.phase == Phase.BAKING)
    in_a_row = (progress.failures >= policy.failures_in_a_row) & answers
    incident = np.logical_or.reduce([each.incident for each in judged]) if judged else np.asarray(False)
    too_many = (_excess(judged, progress) - progress.bad >= policy.max_bad_requests) & ~incident
    fails: Bools = in_a_row | too_many | _suspect(progress, judged) | np.asarray(heard.lost)
    return fails


def _suspect(progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Tell whether there is evidence against a candidate that was not asked by ourselves yet: no proof, but a reason.

    Once is enough: what our own requests do not show, the gates have to prove.
    """
    found: Bools = np.zeros(progress.phase.shape, bool)
    for each in judged:
        found = found | ((each.breach >= SUSPICION) & np.isfinite(each.breach) & ~each.incident)
    suspect: Bools = found & (progress.phase == Phase.PROGRESSING) & (progress.quarantines == 0)
    return suspect


def _late(policy: Policy, progress: Progress, now_s: float) -> Bools:
    """Tell whether the deadline or the step's maximum has passed; both begin anew where a person ends a pause."""
    longest = np.array([np.inf, *(step.maximum_s for step in policy.steps)])
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    step_s = now_s - np.maximum(progress.step_since_s, progress.resumed_s)
    step_over = (progress.phase == Phase.PROGRESSING) & (step_s >= longest[at])
    late: Bools = step_over | (now_s - np.maximum(progress.started_s, progress.resumed_s) >= policy.deadline_s)
    return late


def _waits(policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, now_s: float) -> Ints:
    """Return for each rollout why it does not go on, as an index into `WAITS`; of several the last there."""
    phase, shape = progress.phase, progress.phase.shape
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    shortest = np.array([0.0, *(step.minimum_s for step in policy.steps)])[at]
    shortest = np.where(phase == Phase.BAKING, policy.bake_s, shortest)
    asks = np.array([False, *(step.ask for step in policy.steps)])[at]
    # Where no step gives it a share, there is nothing to learn before it gets all.
    progressing = (phase == Phase.PROGRESSING) & bool(policy.steps)
    data = progress.seen < policy.min_requests
    incident = np.zeros(shape, bool)
    for each in judged:
        data, incident = data | ~each.enough, incident | each.shared
    found = np.zeros(shape, np.int8)
    for wait, holds in (
        (Wait.PERSON, progressing & asks),
        (Wait.TIME, now_s - progress.step_since_s < shortest),
        (Wait.DATA, progressing & data),
        (Wait.HARM, progressing & ~_affordable(policy, progress, judged)),
        (Wait.INCIDENT, (progressing | (phase == Phase.BAKING)) & incident),
        (Wait.GATE, (progressing | (phase == Phase.GOLDEN)) & ~np.asarray(heard.allowed)),
        (Wait.PAUSED, progress.paused),
    ):
        found = np.where(holds, np.int8(WAITS.index(wait)), found)
    return found


def _affordable(policy: Policy, progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Tell whether what the next weight may do at worst is, for each gate, next to nothing or within the budget.

    A step may take a part of what is left of it, within a minute; all requests may take all of it until the bake's end.
    """
    following = np.array([*(step.weight for step in policy.steps), 100.0])
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    seconds = np.where(at == len(policy.steps), max(policy.bake_s, LOOKAHEAD_S), LOOKAHEAD_S)
    part = np.where(at == len(policy.steps), 1.0, PART_AT_RISK)
    largest = np.where(at == len(policy.steps), LARGEST_HARM, 1.0)
    at_risk = progress.rate * following[at] / 100.0 * seconds
    left = policy.max_bad_requests - (_excess(judged, progress) - progress.bad)
    affordable: Bools = np.ones(progress.phase.shape, bool)
    for judgement, tolerance in zip(judged, policy.tolerances, strict=True):
        fits = (judgement.harm * at_risk <= part * left) & (judgement.harm <= largest)
        affordable = affordable & ((judgement.harm <= tolerance) | fits)
    return affordable
