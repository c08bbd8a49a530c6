"""The engine as a table: what a rollout is at, what is known, and the one decision that follows. Each row is a rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from fakes.cases import cases
from fakes.judgements import judgement
from segserve_operator.core.evidence import Judgement
from segserve_operator.core.gates.base import OnBreach
from segserve_operator.core.rollout.engine import (
    WAITS,
    OnUndecided,
    Policy,
    Progress,
    ShadowPolicy,
    Signals,
    Step,
    Wait,
    next_transition,
    with_pause,
)
from segserve_operator.core.rollout.phases import ENDED, Phase, Signal

NOW_S: Final = 1_000_000.0
HOUR_S: Final = 3600.0
HOLD, ROLLBACK, PROMOTE = OnUndecided.HOLD, OnUndecided.ROLLBACK, OnUndecided.PROMOTE


GOOD: Final = judgement()
NO_DATA: Final = judgement(breach=0.0, enough=False, harm=1.0)
HARMFUL: Final = judgement(harm=0.9)
INCIDENT: Final = judgement(incident=True, shared=True)
PROVED_WORSE: Final = judgement(breach=9.0, harm=0.5)
SUSPECT: Final = judgement(breach=3.5)


@dataclass(frozen=True)
class Given:
    """A rollout at its second step of 5, 25 and 50 %, an hour before its deadline; times are seconds until now."""

    phase: Phase = Phase.PROGRESSING
    step: int = 1
    paused: bool = False
    started_s: float = HOUR_S
    step_s: float = 60.0
    resumed_s: float = np.inf
    quarantines: float = 0.0
    failures: float = 0.0
    stable_answered_s: float = 1.0
    seen: float = 50.0
    rate: float = 10.0
    judged: Judgement = GOOD
    policy: Policy = field(default_factory=lambda: POLICY)
    heard: Signals = field(default_factory=Signals)

    def progress(self) -> Progress:
        return replace(
            Progress.begun(NOW_S - self.started_s),
            phase=np.array(self.phase, np.int8),
            step=np.array(self.step, np.int8),
            paused=np.array(self.paused),
            quarantines=np.array(self.quarantines),
            since_s=np.array(NOW_S - self.step_s),
            step_since_s=np.array(NOW_S - self.step_s),
            resumed_s=np.array(NOW_S - self.resumed_s),
            failures=np.array(self.failures),
            stable_answered_s=np.array(NOW_S - self.stable_answered_s),
            seen=np.array(self.seen),
            rate=np.array(self.rate),
        )


POLICY: Final = Policy(
    steps=(Step(5), Step(25), Step(50)), levels=(0.01,), tolerances=(0.005,), deadline_s=2 * HOUR_S, bake_s=600.0
)
ASKS: Final = replace(POLICY, steps=(Step(5), Step(25, ask=True), Step(50)))
TIMED: Final = replace(POLICY, steps=(Step(5), Step(25, minimum_s=120.0, maximum_s=600.0), Step(50)))


def undecided(choice: OnUndecided, policy: Policy = POLICY) -> Policy:
    return replace(policy, on_undecided=choice)


def said(signal: Signal) -> Signals:
    return Signals(asked=int(signal))


@dataclass(frozen=True)
class Follows:
    signal: Signal
    phase: Phase
    weight: float
    wait: Wait | None = None
    """Why it does not go on; None where the row is not about that."""


def stays(weight: float, wait: Wait, phase: Phase = Phase.PROGRESSING) -> Follows:
    return Follows(Signal.NONE, phase, weight, wait)


def back(signal: Signal) -> Follows:
    return Follows(signal, Phase.ROLLED_BACK, 0.0)


PROMOTED: Final = Follows(Signal.PROMOTE, Phase.BAKING, 95.0)
QUARANTINED: Final = Follows(Signal.QUARANTINE, Phase.QUARANTINED, 0.0)
NEXT_STEP: Final = Follows(Signal.ADVANCE, Phase.PROGRESSING, 50.0, Wait.NOTHING)
LATE_S: Final = 3 * HOUR_S
QUARANTINE: Final = Given(Phase.QUARANTINED, quarantines=1.0)
BAKING: Final = Given(Phase.BAKING, step=2, step_s=700.0)

STEPS = {
    "what is proved to do little harm gets the next weight": (Given(), NEXT_STEP),
    "the last step ends with all but the holdback": (Given(step=2), Follows(Signal.CERTIFIED, Phase.BAKING, 95.0)),
    "a step does not end before minRequests": (Given(seen=9.0), stays(25.0, Wait.DATA)),
    "a gate without data holds": (Given(judged=replace(GOOD, enough=np.array(False))), stays(25.0, Wait.DATA)),
    "no data at all bounds no harm": (Given(judged=NO_DATA), stays(25.0, Wait.HARM)),
    "harm that the budget does not hold waits": (Given(judged=HARMFUL, rate=1e4), stays(25.0, Wait.HARM)),
    "an incident of both holds the weight": (Given(judged=INCIDENT), stays(25.0, Wait.INCIDENT)),
    "a gate of another kind that is undecided holds": (Given(heard=Signals(allowed=False)), stays(25.0, Wait.GATE)),
    "a step lasts for its minimum, whatever is proved": (Given(policy=TIMED), stays(25.0, Wait.TIME)),
    "a step ends at its minimum where all is proved": (Given(policy=TIMED, step_s=120.0), NEXT_STEP),
    "a step that asks waits for a person": (Given(policy=ASKS), stays(25.0, Wait.PERSON)),
    "a person's resume ends a step that asks": (
        Given(policy=ASKS, heard=said(Signal.ADVANCE)),
        replace(NEXT_STEP, wait=None),
    ),
    "a person's resume is no evidence: what else holds a step that asks holds on": (
        Given(policy=ASKS, judged=NO_DATA, heard=said(Signal.ADVANCE)),
        stays(25.0, Wait.HARM),
    ),
    "without steps there is nothing to learn before all requests": (
        Given(policy=replace(POLICY, steps=()), step=-1, seen=0.0, judged=NO_DATA),
        Follows(Signal.CERTIFIED, Phase.BAKING, 95.0),
    ),
}

LATE = {
    "Hold holds the undecided at the deadline": (
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(HOLD)),
        stays(25.0, Wait.HARM),
    ),
    "Rollback ends the undecided at the deadline": (
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        back(Signal.GIVE_UP),
    ),
    "Promote promotes the undecided at the deadline": (
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(PROMOTE)),
        PROMOTED,
    ),
    "Promote at the deadline promotes nothing that a proof holds in Shadow": (
        Given(
            Phase.SHADOW,
            -1,
            started_s=LATE_S,
            judged=PROVED_WORSE,
            policy=replace(undecided(PROMOTE), shadow=ShadowPolicy(), on_breach=(OnBreach.HOLD,)),
        ),
        Follows(Signal.NONE, Phase.SHADOW, 0.0),
    ),
    "the deadline is of no account where the evidence allows the next step": (
        Given(started_s=LATE_S, policy=undecided(ROLLBACK)),
        NEXT_STEP,
    ),
    "Rollback ends at the deadline what waits for its labels": (
        Given(Phase.GOLDEN, -1, started_s=LATE_S, policy=undecided(ROLLBACK), heard=Signals(golden=0, allowed=False)),
        back(Signal.GIVE_UP),
    ),
    "what was quarantined too often waits for a person, not for the deadline": (
        replace(QUARANTINE, quarantines=4.0, started_s=LATE_S, policy=undecided(ROLLBACK), heard=Signals(probes=1)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
    ),
    "Promote at the deadline promotes nothing that has had no requests": (
        Given(Phase.GOLDEN, -1, started_s=LATE_S, policy=undecided(PROMOTE), heard=Signals(golden=0, allowed=False)),
        stays(0.0, Wait.GATE, Phase.GOLDEN),
    ),
    "the deadline is over for what is promoted": (
        Given(Phase.BAKING, 2, started_s=LATE_S, step_s=60.0, policy=undecided(ROLLBACK)),
        stays(95.0, Wait.TIME, Phase.BAKING),
    ),
    "a step that is undecided holds until its maximum": (
        Given(step_s=599.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        stays(25.0, Wait.HARM),
    ),
    "Rollback ends what is undecided at its step's maximum": (
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        back(Signal.GIVE_UP),
    ),
    "Promote promotes what is undecided at its step's maximum": (
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(PROMOTE, TIMED)),
        PROMOTED,
    ),
    "Hold holds what is undecided at its step's maximum": (
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(HOLD, TIMED)),
        stays(25.0, Wait.HARM),
    ),
    "a maximum ends nothing that is proved": (Given(step_s=600.0, policy=undecided(ROLLBACK, TIMED)), NEXT_STEP),
    "a step's maximum does not run in quarantine": (
        replace(QUARANTINE, step_s=600.0, policy=undecided(PROMOTE, TIMED), heard=Signals(probes=0)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
    ),
}

PAUSED = {
    "a pause holds what is proved good": (Given(paused=True), stays(25.0, Wait.PAUSED)),
    **{
        f"the deadline moves nothing that a person holds, {what}, with {choice}": (
            Given(paused=True, started_s=LATE_S, judged=judged, policy=undecided(choice)),
            stays(25.0, Wait.PAUSED),
        )
        for choice in (HOLD, ROLLBACK, PROMOTE)
        for judged, what in ((NO_DATA, "undecided"), (GOOD, "proved good"))
    },
    **{
        f"a step's maximum moves nothing that a person holds, {what}, with {choice}": (
            Given(paused=True, step_s=700.0, judged=judged, policy=undecided(choice, TIMED)),
            stays(25.0, Wait.PAUSED),
        )
        for choice in (HOLD, ROLLBACK, PROMOTE)
        for judged, what in ((NO_DATA, "undecided"), (GOOD, "proved good"))
    },
    **{
        f"the deadline does not end what a person holds while it is {start.phase.label}": (
            replace(start, paused=True, started_s=LATE_S, policy=undecided(ROLLBACK)),
            stays(0.0, Wait.PAUSED, start.phase),
        )
        for start in (
            Given(Phase.PENDING, -1, heard=Signals(ready=False)),
            Given(Phase.GOLDEN, -1, heard=Signals(golden=0, allowed=False)),
            QUARANTINE,
        )
    },
    "what is resumed after its deadline is not promoted at once": (
        Given(started_s=LATE_S, resumed_s=0.0, judged=NO_DATA, policy=undecided(PROMOTE)),
        stays(25.0, Wait.HARM),
    ),
    "the deadline begins anew with a resume": (
        Given(started_s=LATE_S, resumed_s=HOUR_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        stays(25.0, Wait.HARM),
    ),
    "the deadline after a resume ends what is undecided": (
        Given(started_s=9 * HOUR_S, resumed_s=2 * HOUR_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        back(Signal.GIVE_UP),
    ),
    "a step's maximum begins anew with a resume": (
        Given(step_s=900.0, resumed_s=599.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        stays(25.0, Wait.HARM),
    ),
    "a step's maximum after a resume ends what is undecided": (
        Given(step_s=900.0, resumed_s=600.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        back(Signal.GIVE_UP),
    ),
    "a step's minimum counts the time on hold too, for the evidence came in": (
        Given(step_s=900.0, resumed_s=0.0, policy=TIMED),
        NEXT_STEP,
    ),
    "a pause holds what is watched": (replace(BAKING, paused=True), stays(95.0, Wait.PAUSED, Phase.BAKING)),
    "a breach rolls back what is paused": (Given(paused=True, judged=PROVED_WORSE), back(Signal.BREACH)),
    "a breach of another kind of gate rolls back what is paused": (
        Given(paused=True, heard=Signals(forbidden=True)),
        back(Signal.BREACH),
    ),
    "what fails in a row is quarantined though it is paused": (Given(paused=True, failures=3.0), QUARANTINED),
    "a person may abort what is paused": (Given(paused=True, heard=said(Signal.ABORT)), back(Signal.ABORT)),
    "a person may promote what is paused": (Given(paused=True, heard=said(Signal.PROMOTE)), PROMOTED),
    "another revision cancels what is paused": (
        Given(paused=True, heard=Signals(superseded=True)),
        Follows(Signal.CANCEL, Phase.CANCELLED, 0.0),
    ),
}

HARM = {
    "proof against a candidate takes all its requests": (Given(judged=PROVED_WORSE), back(Signal.BREACH)),
    "what is worse than a broken stable is rolled back all the same": (
        Given(judged=judgement(breach=9.0, harm=0.5, incident=True, shared=True)),
        back(Signal.BREACH),
    ),
    "a broken stable does not block its fix": (Given(judged=judgement(incident=True)), NEXT_STEP),
    "another gate's breach needs no proof here": (Given(heard=Signals(forbidden=True)), back(Signal.BREACH)),
    "a breach goes before the deadline's promotion": (
        Given(judged=PROVED_WORSE, started_s=LATE_S, policy=undecided(PROMOTE)),
        back(Signal.BREACH),
    ),
    "a breach goes before a person's promotion": (
        Given(judged=PROVED_WORSE, heard=said(Signal.PROMOTE)),
        back(Signal.BREACH),
    ),
    "a breach takes back what is promoted": (replace(BAKING, judged=PROVED_WORSE), back(Signal.BREACH)),
    "two failures in a row are no reason": (Given(failures=2.0), NEXT_STEP),
    "three failures in a row while stable answers quarantine": (Given(failures=3.0), QUARANTINED),
    "failures while stable is silent quarantine nobody": (Given(failures=3.0, stable_answered_s=60.0), NEXT_STEP),
    "as many bad requests as declared quarantine": (Given(judged=judgement(excess=100.0)), QUARANTINED),
    "bad requests while stable is out of bounds too are not the candidate's": (
        Given(judged=judgement(excess=100.0, incident=True)),
        NEXT_STEP,
    ),
    "a suspicion has us ask the candidate ourselves": (Given(judged=SUSPECT), QUARANTINED),
    "a suspicion quarantines once": (Given(judged=SUSPECT, quarantines=1.0), NEXT_STEP),
    "a suspicion quarantines nobody who is promoted": (
        replace(BAKING, step_s=60.0, judged=SUSPECT),
        Follows(Signal.NONE, Phase.BAKING, 95.0),
    ),
    "a candidate whose servers died under a caller is quarantined": (
        Given(failures=1.0, heard=Signals(lost=True)),
        QUARANTINED,
    ),
    "servers that are gone are no fault as long as nobody's request failed": (
        Given(heard=Signals(lost=True)),
        NEXT_STEP,
    ),
    "what is promoted and fails is quarantined, though its predecessor has had no requests": (
        replace(BAKING, failures=3.0, stable_answered_s=1e4),
        QUARANTINED,
    ),
}

ON_THE_WAY = {
    "what is not proved gets no requests": (
        Given(Phase.PENDING, -1, heard=Signals(ready=False)),
        Follows(Signal.NONE, Phase.PENDING, 0.0),
    ),
    "what is proved is asked labels": (Given(Phase.PENDING, -1), Follows(Signal.PROVED, Phase.GOLDEN, 0.0)),
    "failed labels end it before any request": (Given(Phase.GOLDEN, -1, heard=Signals(golden=-1)), back(Signal.BREACH)),
    "labels that are not answered yet hold it at 0 %": (
        Given(Phase.GOLDEN, -1, heard=Signals(golden=0)),
        stays(0.0, Wait.NOTHING, Phase.GOLDEN),
    ),
    "answered labels bring the first step": (
        Given(Phase.GOLDEN, -1),
        Follows(Signal.GOLDEN_PASSED, Phase.PROGRESSING, 5.0),
    ),
    "answered probes bring back the step's weight": (
        replace(QUARANTINE, heard=Signals(probes=1)),
        Follows(Signal.RESUMED, Phase.PROGRESSING, 25.0),
    ),
    "failed probes roll back": (replace(QUARANTINE, heard=Signals(probes=-1)), back(Signal.CONFIRMED)),
    "after maxQuarantines answered probes are not enough": (
        replace(QUARANTINE, quarantines=4.0, heard=Signals(probes=1)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
    ),
    "a person may promote what was quarantined too often": (
        replace(QUARANTINE, quarantines=4.0, heard=said(Signal.PROMOTE)),
        PROMOTED,
    ),
    "what is promoted is watched for bake": (replace(BAKING, step_s=599.0), stays(95.0, Wait.TIME, Phase.BAKING)),
    "what was watched for bake has succeeded": (BAKING, Follows(Signal.BAKED, Phase.SUCCEEDED, 100.0)),
    "an incident prolongs the watch": (replace(BAKING, judged=INCIDENT), stays(95.0, Wait.INCIDENT, Phase.BAKING)),
}

VERBS = {
    "abort goes before the next step": (Given(heard=said(Signal.ABORT)), back(Signal.ABORT)),
    "abort goes before a breach": (Given(judged=PROVED_WORSE, heard=said(Signal.ABORT)), back(Signal.ABORT)),
    "another revision goes before abort": (
        Given(heard=Signals(asked=int(Signal.ABORT), superseded=True)),
        Follows(Signal.CANCEL, Phase.CANCELLED, 0.0),
    ),
    "promote needs no evidence": (Given(judged=NO_DATA, heard=said(Signal.PROMOTE)), PROMOTED),
    "promote does not wait for labels": (
        Given(Phase.GOLDEN, -1, heard=Signals(golden=0, asked=int(Signal.PROMOTE))),
        PROMOTED,
    ),
    "promote moves nothing that no server holds": (
        Given(Phase.PENDING, -1, heard=Signals(ready=False, asked=int(Signal.PROMOTE))),
        Follows(Signal.NONE, Phase.PENDING, 0.0),
    ),
    "resume does not shorten a minimum": (Given(policy=TIMED, heard=said(Signal.ADVANCE)), stays(25.0, Wait.TIME)),
    **{
        f"{name} moves nothing that is {phase.label}": (
            Given(phase, 2, started_s=LATE_S, judged=PROVED_WORSE, heard=Signals(asked=asked, superseded=True)),
            Follows(Signal.NONE, phase, 100.0 if phase is Phase.SUCCEEDED else 0.0),
        )
        for phase in sorted(ENDED)
        for asked, name in ((int(Signal.ABORT), "abort"), (int(Signal.PROMOTE), "promote"))
    },
}


@cases(("given", "follows"), STEPS | LATE | PAUSED | HARM | ON_THE_WAY | VERBS)
def test_one_decision_follows_from(given: Given, follows: Follows) -> None:
    transition = next_transition(given.policy, given.progress(), (given.judged,), given.heard, NOW_S)

    found = Follows(
        Signal(int(transition.signal)),
        Phase(int(transition.progress.phase)),
        float(transition.weight),
        WAITS[int(transition.waits_for)] if follows.wait is not None else None,
    )
    assert found == follows


@cases(
    ("was", "now", "resumed_s"),
    {
        "what was never paused was never resumed": (False, False, 0.0),
        "a pause is no resume": (False, True, 0.0),
        "what stays paused was not resumed": (True, True, 0.0),
        "the end of a pause is remembered": (True, False, NOW_S),
    },
)
def test_the_end_of_a_pause_is_when_deadlines_begin_anew(was: bool, now: bool, resumed_s: float) -> None:
    after = with_pause(Given(paused=was, resumed_s=NOW_S).progress(), np.array(now), NOW_S)

    assert (bool(after.paused), float(after.resumed_s)) == (now, resumed_s)


def test_a_second_pause_keeps_the_time_of_the_resume_before() -> None:
    after = with_pause(Given(resumed_s=30.0).progress(), np.array(True), NOW_S)

    assert float(after.resumed_s) == NOW_S - 30.0


def test_a_clock_that_was_put_back_leaves_no_deadline_in_a_time_to_come() -> None:
    ahead = Given(judged=NO_DATA, started_s=-HOUR_S, step_s=-HOUR_S, resumed_s=-HOUR_S)
    after = next_transition(POLICY, ahead.progress(), (NO_DATA,), Signals(), NOW_S).progress

    assert (float(after.started_s), float(after.step_since_s), float(after.resumed_s)) == (NOW_S, NOW_S, NOW_S)
