"""The rollout engine: from evidence and signals to the next step. Pure; for one rollout or thousands at once.

Quantities that differ between rollouts are arrays with leading axes; the clock is an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import numpy as np

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, EvidenceWindow, Floats, Ints, Judgement
from segserve_operator.core.gates.base import OnBreach
from segserve_operator.core.rollout.phases import Phase, Signal, legal, moved

LOOKAHEAD_S: Final = 60.0
PART_AT_RISK: Final = 0.1
"""Part of the remaining budget for bad requests that one step may risk."""
LARGEST_HARM: Final = 0.05
"""Upper limit of the possible excess of failures (share of requests) for a promotion, however few requests come."""
SUSPICION: Final = float(np.log(20.0))
"""Log evidence from which on the candidate is probed with segserve's own requests: 1 in 20 is suspicious, not proof."""
RATE_MEMORY_S: Final = 60.0
QUIET_S: Final = 60.0
"""Time of Shadow without a request of a caller, after which none is waited for any more."""
QUIET_PER_S: Final = 0.005
"""Rate of callers' requests below which the last one was more than a minute ago: one raises it by 1 / 60."""


class OnUndecided(StrEnum):
    """The action at the deadline of a rollout that is still undecided."""

    HOLD = "Hold"
    ROLLBACK = "Rollback"
    PROMOTE = "Promote"


@dataclass(frozen=True, slots=True)
class Step:
    """A weight (percent) and its shortest duration; with `ask` a person must then resume the rollout.

    If still undecided after `maximum_s`, the policy's `on_undecided` applies.
    """

    weight: int
    minimum_s: float = 0.0
    maximum_s: float = float("inf")
    ask: bool = False


HOLDBACK: Final = 5.0
"""Percent of requests that a canary's predecessor keeps while its successor bakes, for comparison."""
MAX_QUARANTINES: Final = 3
"""Quarantines that end without help; a further one waits for a person."""


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """How long the candidate gets copies of callers' requests: `min_requests` of them, at most `maximum_s`.

    With `skips_steps`, steps whose rate of requests it has had then are left out.
    """

    min_requests: float = 200.0
    maximum_s: float = 600.0
    skips_steps: bool = True


@dataclass(frozen=True, slots=True)
class Policy:
    """The engine's policy for a rollout.

    `levels` are the gates' shares of alpha, `tolerances` the harm (a share of requests) that is negligible for each;
    both in the order of the judgements, and so is `on_breach`, what the proof of each does (empty: each rolls back).
    Without `shadow`, the steps follow the golden images. If it does not `serve`, Shadow ends with a verdict, and only a
    person gives the candidate requests.
    """

    steps: tuple[Step, ...] = (Step(5), Step(25), Step(50))
    levels: tuple[float, ...] = (0.005, 0.005)
    tolerances: tuple[float, ...] = (0.005, 0.03)
    max_bad_requests: float = 100.0
    min_requests: float = 10.0
    deadline_s: float = 6 * 3600.0
    on_undecided: OnUndecided = OnUndecided.HOLD
    bake_s: float = 600.0
    holdback: float = HOLDBACK
    failures_in_a_row: float = 3.0
    max_quarantines: float = MAX_QUARANTINES
    shadow: ShadowPolicy | None = None
    on_breach: tuple[OnBreach, ...] = ()
    serves: bool = True


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of rollouts; every field has the leading axes of the simulation, or none.

    `step` is -1 before the first; `since_s`, `step_since_s`, `started_s` and `resumed_s`, when a person last ended a
    pause (0 is never), are Unix time. `failures` counts the candidate's failures in a row, `stable_answered_s` is when
    stable last answered. `seen` are the candidate's requests in this step (in Shadow: the copies that it got),
    `bad` its excess bad requests before the last quarantine, `rate` all requests of callers a second.
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
        """Return rollouts that start now."""
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
    """Inputs of a decision besides the evidence. Arrays as in `Progress`, or plain values for all rollouts.

    `ready`: enough of the candidate's servers serve it, and the gateways have their addresses. `grown`: they also
    suffice for the next weight. `lost`: it should get requests, but no server serves it. `golden`: golden images passed
    (1), failed (-1), or neither (0). `probes`: segserve's own requests in quarantine are answered (1), fail (-1), or
    neither (0). `forbidden`: a checked gate breaches; `allowed`: all checked gates pass. `asked`: a person's request
    (ABORT, PROMOTE, or ADVANCE to resume), else `Signal.NONE`. `superseded`: the spec requires another revision.
    `counted`: gateways compare both revisions and report their counts of callers' requests.
    """

    ready: Bools | bool = True
    grown: Bools | bool = True
    lost: Bools | bool = False
    golden: Ints | int = 1
    probes: Ints | int = 0
    forbidden: Bools | bool = False
    allowed: Bools | bool = True
    asked: Ints | int = Signal.NONE
    superseded: Bools | bool = False
    counted: Bools | bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """The next progress, the signal that led there, and the weight (percent) of the candidate from now on."""

    progress: Progress
    signal: Ints
    weight: Floats
    waits_for: Ints = field(repr=False)


class Wait(StrEnum):
    """Why a rollout does not advance now."""

    NOTHING = "Nothing"
    PERSON = "PersonAsked"
    TIME = "MinimumTime"
    DATA = "TooFewRequests"
    HARM = "HarmNotBounded"
    INCIDENT = "Incident"
    GATE = "GateUndecided"
    PAUSED = "Paused"
    SERVERS = "WaitingForServers"


WAITS: Final = tuple(Wait)


def weights(policy: Policy, phase: Ints, step: Ints) -> Floats:
    """Return the candidate's percentage of requests; once it is stable, all except the holdback."""
    steps = np.array([0.0, *(each.weight for each in policy.steps)])
    progressing: Floats = np.where(phase == Phase.PROGRESSING, steps[np.clip(step + 1, 0, len(policy.steps))], 0.0)
    promoted: Floats = np.where(phase == Phase.BAKING, 100.0 - policy.holdback, progressing)
    return np.where(phase == Phase.SUCCEEDED, 100.0, promoted)


def with_pause(progress: Progress, paused: Bools, now_s: float) -> Progress:
    """Return the rollouts with their pauses; the time of a resume is kept, since deadlines count from it."""
    resumed_s = np.where(progress.paused & ~paused, now_s, progress.resumed_s)
    return replace(progress, paused=paused, resumed_s=resumed_s)


def watch(progress: Progress, window: EvidenceWindow, now_s: float) -> Progress:
    """Add a window: consecutive failures, callers' rate, and the requests of this step."""
    requests, errors = window.requests[..., CANDIDATE], window.errors[..., CANDIDATE]
    # The order within a window is unknown: if only some requests failed, none count as consecutive.
    in_a_row = np.where(errors >= requests, progress.failures + errors, 0.0)
    failures = np.where(requests > 0, in_a_row, progress.failures)
    answered = window.requests[..., STABLE] - window.errors[..., STABLE] > 0.5 * window.requests[..., STABLE]
    share = -np.expm1(-window.seconds / RATE_MEMORY_S)
    callers = window.requests.sum(-1) if window.pairs is None else window.pairs.callers
    rate = callers / np.maximum(window.seconds, 1e-9)
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
    """Return the transition that follows from the inputs; equal inputs give equal transitions."""
    # If the clock was set back, durations start anew.
    times = ("started_s", "since_s", "step_since_s", "resumed_s", "stable_answered_s")
    progress = replace(progress, **{name: np.minimum(getattr(progress, name), now_s) for name in times})
    wait = _waits(policy, progress, judged, heard, now_s)
    signal = _signal(policy, progress, judged, heard, wait, now_s)
    phase = moved(progress.phase, signal)
    entered = legal(progress.phase, signal)
    step = np.where((phase == Phase.PROGRESSING) & (signal == Signal.ADVANCE), progress.step + 1, progress.step)
    step = np.where(signal == Signal.GOLDEN_PASSED, 0, step)
    from_shadow = (signal == Signal.SHADOW_PASSED) | (signal == Signal.SHADOW_OVER)
    begins = np.where(signal == Signal.SHADOW_PASSED, step_after_shadow(policy, progress, now_s), 0)
    step = np.where(from_shadow, begins, step).astype(np.int8)
    quarantined = entered & (phase == Phase.QUARANTINED)
    after = replace(
        progress,
        phase=phase,
        step=step,
        since_s=np.where(phase != progress.phase, now_s, progress.since_s),
        step_since_s=np.where(entered, now_s, progress.step_since_s),
        seen=np.where(entered & (phase != Phase.JUDGED), 0.0, progress.seen),
        failures=np.where(entered, 0.0, progress.failures),
        quarantines=progress.quarantines + quarantined,
        bad=np.where(quarantined, excess_of(judged, progress), progress.bad),
    )
    return Transition(after, signal, weights(policy, phase, step), wait)


def excess_of(judged: Sequence[Judgement], progress: Progress) -> Floats:
    """Return the estimated number of requests that went wrong because of the candidate, by any gate."""
    most: Floats = np.maximum.reduce([np.zeros(progress.phase.shape), *(each.excess for each in judged)])
    return most


def _signal(
    policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, wait: Ints, now_s: float
) -> Ints:
    """Return for each rollout the first legal signal among those that apply."""
    phase = progress.phase
    grown = np.asarray(heard.grown)
    released = grown & (wait == WAITS.index(Wait.PERSON)) & (np.asarray(heard.asked) == Signal.ADVANCE)
    goes_on = (wait == WAITS.index(Wait.NOTHING)) | released
    last = progress.step + 1 >= len(policy.steps)
    cold: Bools = np.zeros(phase.shape, bool)
    for judgement in judged:
        cold = cold | judgement.settling
    # A paused rollout is not undecided: a person decided to hold it, so deadlines do not apply.
    late = _late(policy, progress, now_s) & ~goes_on & ~progress.paused
    held = _holds_shadow(policy, progress, judged)
    over = _shadow_over(policy, progress, judged, now_s)
    ends: Bools = (over | _late(policy, progress, now_s)) & ~progress.paused & (not policy.serves)
    given = {
        Signal.CANCEL: np.asarray(heard.superseded),
        Signal.ABORT: np.asarray(heard.asked) == Signal.ABORT,
        Signal.BREACH: np.asarray(heard.forbidden)
        | breached(policy, judged)
        | ((phase == Phase.GOLDEN) & (np.asarray(heard.golden) < 0)),
        Signal.CONFIRMED: np.asarray(heard.probes) < 0,
        Signal.QUARANTINE: _fails(policy, progress, judged, heard, now_s),
        Signal.GIVE_UP: late & (policy.on_undecided is OnUndecided.ROLLBACK),
        Signal.PROMOTE: grown
        & (
            (np.asarray(heard.asked) == Signal.PROMOTE)
            | (
                late
                & (policy.on_undecided is OnUndecided.PROMOTE)
                & ~held
                & policy.serves
                & ((phase == Phase.PROGRESSING) | (phase == Phase.SHADOW))
            )
        ),
        Signal.RESUMED: (np.asarray(heard.probes) > 0) & (progress.quarantines <= policy.max_quarantines) & ~cold,
        Signal.PROVED: np.asarray(heard.ready),
        Signal.SHADOW_BEGINS: goes_on & (np.asarray(heard.golden) > 0) & (policy.shadow is not None),
        Signal.GOLDEN_PASSED: goes_on & (np.asarray(heard.golden) > 0) & policy.serves,
        Signal.JUDGED_WELL: goes_on & shadow_passes(policy, progress, judged) & (not policy.serves),
        Signal.JUDGED_UNDECIDED: ends,
        Signal.SHADOW_PASSED: goes_on & shadow_passes(policy, progress, judged) & policy.serves,
        Signal.SHADOW_OVER: goes_on & policy.serves,
        Signal.ADVANCE: goes_on & ~last,
        Signal.CERTIFIED: goes_on & last,
        Signal.BAKED: goes_on,
    }
    signal = np.full(phase.shape, Signal.NONE, np.int8)
    for each in reversed(given):
        signal = np.where(given[each] & legal(phase, int(each)), np.int8(each), signal)
    return signal


def breached(policy: Policy, judged: Sequence[Judgement], on_breach: OnBreach = OnBreach.ROLLBACK) -> Bools:
    """Return whether any gate has proof of a breach at its level, of those whose proof does `on_breach`."""
    proved: Bools = np.asarray(False)
    for judgement, level, does in zip(judged, policy.levels, _on_breach(policy), strict=True):
        if does is on_breach:
            settling = judgement.settling & np.isfinite(judgement.breach)
            proved = proved | ((judgement.breach >= -np.log(level)) & ~settling)
    return proved


def _holds_shadow(policy: Policy, progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Return whether a gate's proof holds a rollout in Shadow until a person decides."""
    holds: Bools = (progress.phase == Phase.SHADOW) & breached(policy, judged, OnBreach.HOLD)
    return holds


def _on_breach(policy: Policy) -> tuple[OnBreach, ...]:
    return policy.on_breach or (OnBreach.ROLLBACK,) * len(policy.levels)


def _fails(policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, now_s: float) -> Bools:
    """Return whether the candidate fails while stable answers, or does more harm than the policy allows."""
    answers = (now_s - progress.stable_answered_s < RATE_MEMORY_S) | (progress.phase == Phase.BAKING)
    in_a_row = (progress.failures >= policy.failures_in_a_row) & answers
    incident = np.logical_or.reduce([each.incident for each in judged]) if judged else np.asarray(False)
    too_many = (excess_of(judged, progress) - progress.bad >= policy.max_bad_requests) & ~incident
    # What holds or is noted is nothing that segserve's own requests could confirm.
    rolls_back = [each for each, does in zip(judged, _on_breach(policy), strict=True) if does is OnBreach.ROLLBACK]
    # Servers that are gone are no fault as long as nobody's request failed.
    died = np.asarray(heard.lost) & (progress.failures > 0)
    fails: Bools = in_a_row | too_many | _suspect(progress, rolls_back) | died
    stops: Bools = fails | _surges(progress, rolls_back)
    return stops


def _surges(progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Return whether a candidate that serves callers suddenly fails, and stable is not known to fail as well."""
    surging: Bools = np.zeros(progress.phase.shape, bool)
    for each in judged:
        surging = surging | (each.surging & ~each.incident)
    serves: Bools = (progress.phase == Phase.PROGRESSING) | (progress.phase == Phase.BAKING)
    return surging & serves


def _suspect(progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Return whether there is evidence, though not proof, against a candidate that has not been probed yet.

    Probing once is enough: what segserve's own requests do not show, the gates have to prove.
    """
    suspected: Bools = np.zeros(progress.phase.shape, bool)
    cold: Bools = np.zeros(progress.phase.shape, bool)
    for each in judged:
        now = (each.breach >= SUSPICION) & np.isfinite(each.breach)
        suspected = suspected | (now & ~each.incident & (progress.phase == Phase.PROGRESSING))
        cold = cold | (now & each.settling)
    suspect: Bools = (suspected & (progress.quarantines == 0)) | cold
    return suspect


def _late(policy: Policy, progress: Progress, now_s: float) -> Bools:
    """Return whether the deadline or the step's longest duration has passed; both start anew after a resume."""
    longest = np.array([np.inf, *(step.maximum_s for step in policy.steps)])
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    step_s = now_s - np.maximum(progress.step_since_s, progress.resumed_s)
    step_over = (progress.phase == Phase.PROGRESSING) & (step_s >= longest[at])
    late: Bools = step_over | (now_s - np.maximum(progress.started_s, progress.resumed_s) >= policy.deadline_s)
    return late


def _waits(policy: Policy, progress: Progress, judged: Sequence[Judgement], heard: Signals, now_s: float) -> Ints:
    """Return for each rollout why it does not advance, as an index into `WAITS`; the last of several."""
    phase, shape = progress.phase, progress.phase.shape
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    shortest = np.array([0.0, *(step.minimum_s for step in policy.steps)])[at]
    shortest = np.where(phase == Phase.BAKING, policy.bake_s, shortest)
    asks = np.array([False, *(step.ask for step in policy.steps)])[at]
    # Without steps there is no evidence to collect before it gets all requests.
    progressing = (phase == Phase.PROGRESSING) & bool(policy.steps)
    shadowing = (phase == Phase.SHADOW) & ~shadow_passes(policy, progress, judged)
    # A rollout that only judges has nothing else to wait for.
    unused = _is_quiet(progress, now_s) & np.asarray(heard.counted) & policy.serves
    shadowing = shadowing & ~_shadow_over(policy, progress, judged, now_s) & ~unused
    few = np.where(phase == Phase.SHADOW, policy.shadow.min_requests if policy.shadow else 0.0, policy.min_requests)
    data = progress.seen < few
    incident = np.zeros(shape, bool)
    for each in judged:
        data, incident = data | ~each.enough, incident | each.shared
    asks = (progressing & asks) | _holds_shadow(policy, progress, judged)
    unproved = ~np.logical_and.reduce(affordable(policy, progress, judged))
    harmless = np.logical_and.reduce(_negligible(policy, judged))
    before = (phase == Phase.GOLDEN) | (phase == Phase.SHADOW)
    reason = np.zeros(shape, np.int8)
    for wait, holds in (
        (Wait.SERVERS, ((phase == Phase.PROGRESSING) | before) & ~np.asarray(heard.grown)),
        (Wait.PERSON, asks),
        (Wait.TIME, now_s - progress.step_since_s < shortest),
        (Wait.DATA, (progressing | shadowing) & data),
        (Wait.HARM, (progressing & unproved) | (shadowing & ~harmless & ~data)),
        (Wait.INCIDENT, (progressing | shadowing | (phase == Phase.BAKING)) & incident),
        (Wait.GATE, (progressing | before) & ~np.asarray(heard.allowed)),
        (Wait.PAUSED, progress.paused),
    ):
        reason = np.where(holds, np.int8(WAITS.index(wait)), reason)
    return reason


def affordable(policy: Policy, progress: Progress, judged: Sequence[Judgement]) -> list[Bools]:
    """Return for each gate whether the worst harm of the next weight is negligible or within the budget.

    A step may use a part of the remaining budget within a minute; all requests may use all of it until the bake ends.
    For a candidate that is probably worse none of it may be used.
    """
    following = np.array([*(step.weight for step in policy.steps), 100.0])
    at = np.clip(progress.step + 1, 0, len(policy.steps))
    seconds = np.where(at == len(policy.steps), max(policy.bake_s, LOOKAHEAD_S), LOOKAHEAD_S)
    part = np.where(at == len(policy.steps), 1.0, PART_AT_RISK)
    largest = np.where(at == len(policy.steps), LARGEST_HARM, 1.0)
    at_risk = progress.rate * following[at] / 100.0 * seconds
    left = policy.max_bad_requests - (excess_of(judged, progress) - progress.bad)
    return [
        negligible | ((judgement.harm * at_risk <= part * left) & (judgement.harm <= largest) & ~judgement.doubtful)
        for judgement, negligible in zip(judged, _negligible(policy, judged), strict=True)
    ]


def _negligible(policy: Policy, judged: Sequence[Judgement]) -> list[Bools]:
    """Return for each gate whether the worst harm is negligible at any weight."""
    return [judgement.harm <= tolerance for judgement, tolerance in zip(judged, policy.tolerances, strict=True)]


def shadow_passes(policy: Policy, progress: Progress, judged: Sequence[Judgement]) -> Bools:
    """Return whether a candidate in Shadow got enough copies, and all gates have bounded its harm."""
    few = policy.shadow.min_requests if policy.shadow is not None else np.inf
    passes: Bools = (progress.phase == Phase.SHADOW) & (progress.seen >= few)
    for judgement, negligible in zip(judged, _negligible(policy, judged), strict=True):
        passes = passes & judgement.enough & ~judgement.shared & negligible
    return passes


def _is_quiet(progress: Progress, now_s: float) -> Bools:
    """Return whether callers bring no requests to a rollout in Shadow, so that there is nothing to be copied."""
    since_s = np.maximum(progress.step_since_s, progress.resumed_s)
    unused: Bools = (progress.phase == Phase.SHADOW) & (progress.seen == 0) & (now_s - since_s >= QUIET_S)
    return unused & (progress.rate < QUIET_PER_S)


def _shadow_over(policy: Policy, progress: Progress, judged: Sequence[Judgement], now_s: float) -> Bools:
    """Return whether Shadow's time is over; one that is probably worse stays until the rollout's deadline."""
    longest_s = policy.shadow.maximum_s if policy.shadow is not None else 0.0
    over: Bools = now_s - np.maximum(progress.step_since_s, progress.resumed_s) >= longest_s
    for judgement, negligible in zip(judged, _negligible(policy, judged), strict=True):
        over = over & (negligible | ~judgement.doubtful)
    return over


def step_after_shadow(policy: Policy, progress: Progress, now_s: float) -> Ints:
    """Return the first step that a candidate in Shadow has to take: the first that brings more requests than Shadow's.

    A step after which a person must resume, or with a shortest duration, is not left out; nor is the last step.
    """
    step = np.zeros(progress.phase.shape, np.int8)
    if policy.shadow is None or not policy.shadow.skips_steps:
        return step
    copies_per_s = progress.seen / np.maximum(now_s - progress.step_since_s, 1e-9)
    for index, each in enumerate(policy.steps[:-1]):
        covered = (progress.rate > 0) & (progress.rate * each.weight / 100.0 <= copies_per_s)
        if each.ask or each.minimum_s > 0:
            break
        step = np.where((step == index) & covered, np.int8(index + 1), step)
    return step
