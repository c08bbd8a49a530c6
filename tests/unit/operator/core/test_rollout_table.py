"""The engine as a table: what a rollout is at, what is known, and the one decision that follows. Each row is a rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import pytest

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

STEPS = [
    pytest.param(Given(), NEXT_STEP, id="what is proved to do little harm gets the next weight"),
    pytest.param(
        Given(step=2), Follows(Signal.CERTIFIED, Phase.BAKING, 95.0), id="the last step ends with all but the holdback"
    ),
    pytest.param(Given(seen=9.0), stays(25.0, Wait.DATA), id="a step does not end before minRequests"),
    pytest.param(
        Given(judged=replace(GOOD, enough=np.array(False))), stays(25.0, Wait.DATA), id="a gate without data holds"
    ),
    pytest.param(Given(judged=NO_DATA), stays(25.0, Wait.HARM), id="no data at all bounds no harm"),
    pytest.param(
        Given(judged=HARMFUL, rate=1e4), stays(25.0, Wait.HARM), id="harm that the budget does not hold waits"
    ),
    pytest.param(Given(judged=INCIDENT), stays(25.0, Wait.INCIDENT), id="an incident of both holds the weight"),
    pytest.param(
        Given(heard=Signals(allowed=False)), stays(25.0, Wait.GATE), id="a gate of another kind that is undecided holds"
    ),
    pytest.param(Given(policy=TIMED), stays(25.0, Wait.TIME), id="a step lasts for its minimum, whatever is proved"),
    pytest.param(Given(policy=TIMED, step_s=120.0), NEXT_STEP, id="a step ends at its minimum where all is proved"),
    pytest.param(Given(policy=ASKS), stays(25.0, Wait.PERSON), id="a step that asks waits for a person"),
    pytest.param(
        Given(policy=ASKS, heard=said(Signal.ADVANCE)),
        replace(NEXT_STEP, wait=None),
        id="a person's resume ends a step that asks",
    ),
    pytest.param(
        Given(policy=ASKS, judged=NO_DATA, heard=said(Signal.ADVANCE)),
        stays(25.0, Wait.HARM),
        id="a person's resume is no evidence: what else holds a step that asks holds on",
    ),
    pytest.param(
        Given(policy=replace(POLICY, steps=()), step=-1, seen=0.0, judged=NO_DATA),
        Follows(Signal.CERTIFIED, Phase.BAKING, 95.0),
        id="without steps there is nothing to learn before all requests",
    ),
]

LATE = [
    pytest.param(
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(HOLD)),
        stays(25.0, Wait.HARM),
        id="Hold holds the undecided at the deadline",
    ),
    pytest.param(
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        back(Signal.GIVE_UP),
        id="Rollback ends the undecided at the deadline",
    ),
    pytest.param(
        Given(started_s=LATE_S, judged=NO_DATA, policy=undecided(PROMOTE)),
        PROMOTED,
        id="Promote promotes the undecided at the deadline",
    ),
    *(
        pytest.param(
            Given(policy=undecided(PROMOTE, TIMED), heard=Signals(allowed=False, held=True), **late),
            stays(25.0, Wait.GATE),
            id=f"Promote promotes nothing {when} where a person decides about a proof",
        )
        for when, late in (("at the deadline", {"started_s": LATE_S}), ("at a step's maximum", {"step_s": 600.0}))
    ),
    pytest.param(
        Given(started_s=LATE_S, policy=undecided(PROMOTE), heard=Signals(asked=int(Signal.PROMOTE), held=True)),
        PROMOTED,
        id="a person promotes what a proof holds",
    ),
    pytest.param(
        Given(
            Phase.SHADOW,
            -1,
            started_s=LATE_S,
            judged=PROVED_WORSE,
            policy=replace(undecided(PROMOTE), shadow=ShadowPolicy(), on_breach=(OnBreach.HOLD,)),
        ),
        Follows(Signal.NONE, Phase.SHADOW, 0.0),
        id="Promote at the deadline promotes nothing that a proof holds in Shadow",
    ),
    pytest.param(
        Given(started_s=LATE_S, policy=undecided(ROLLBACK)),
        NEXT_STEP,
        id="the deadline is of no account where the evidence allows the next step",
    ),
    pytest.param(
        Given(Phase.GOLDEN, -1, started_s=LATE_S, policy=undecided(ROLLBACK), heard=Signals(golden=0, allowed=False)),
        back(Signal.GIVE_UP),
        id="Rollback ends at the deadline what waits for its labels",
    ),
    pytest.param(
        replace(QUARANTINE, quarantines=4.0, started_s=LATE_S, policy=undecided(ROLLBACK), heard=Signals(probes=1)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
        id="what was quarantined too often waits for a person, not for the deadline",
    ),
    pytest.param(
        Given(Phase.GOLDEN, -1, started_s=LATE_S, policy=undecided(PROMOTE), heard=Signals(golden=0, allowed=False)),
        stays(0.0, Wait.GATE, Phase.GOLDEN),
        id="Promote at the deadline promotes nothing that has had no requests",
    ),
    pytest.param(
        Given(Phase.BAKING, 2, started_s=LATE_S, step_s=60.0, policy=undecided(ROLLBACK)),
        stays(95.0, Wait.TIME, Phase.BAKING),
        id="the deadline is over for what is promoted",
    ),
    pytest.param(
        Given(step_s=599.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        stays(25.0, Wait.HARM),
        id="a step that is undecided holds until its maximum",
    ),
    pytest.param(
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        back(Signal.GIVE_UP),
        id="Rollback ends what is undecided at its step's maximum",
    ),
    pytest.param(
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(PROMOTE, TIMED)),
        PROMOTED,
        id="Promote promotes what is undecided at its step's maximum",
    ),
    pytest.param(
        Given(step_s=600.0, judged=NO_DATA, policy=undecided(HOLD, TIMED)),
        stays(25.0, Wait.HARM),
        id="Hold holds what is undecided at its step's maximum",
    ),
    pytest.param(
        Given(step_s=600.0, policy=undecided(ROLLBACK, TIMED)), NEXT_STEP, id="a maximum ends nothing that is proved"
    ),
    pytest.param(
        replace(QUARANTINE, step_s=600.0, policy=undecided(PROMOTE, TIMED), heard=Signals(probes=0)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
        id="a step's maximum does not run in quarantine",
    ),
]

PAUSED = [
    pytest.param(Given(paused=True), stays(25.0, Wait.PAUSED), id="a pause holds what is proved good"),
    *(
        pytest.param(
            Given(paused=True, started_s=LATE_S, judged=judged, policy=undecided(choice)),
            stays(25.0, Wait.PAUSED),
            id=f"the deadline moves nothing that a person holds, {what}, with {choice}",
        )
        for choice in (HOLD, ROLLBACK, PROMOTE)
        for judged, what in ((NO_DATA, "undecided"), (GOOD, "proved good"))
    ),
    *(
        pytest.param(
            Given(paused=True, step_s=700.0, judged=judged, policy=undecided(choice, TIMED)),
            stays(25.0, Wait.PAUSED),
            id=f"a step's maximum moves nothing that a person holds, {what}, with {choice}",
        )
        for choice in (HOLD, ROLLBACK, PROMOTE)
        for judged, what in ((NO_DATA, "undecided"), (GOOD, "proved good"))
    ),
    *(
        pytest.param(
            replace(start, paused=True, started_s=LATE_S, policy=undecided(ROLLBACK)),
            stays(0.0, Wait.PAUSED, start.phase),
            id=f"the deadline does not end what a person holds while it is {start.phase.label}",
        )
        for start in (
            Given(Phase.PENDING, -1, heard=Signals(ready=False)),
            Given(Phase.GOLDEN, -1, heard=Signals(golden=0, allowed=False)),
            QUARANTINE,
        )
    ),
    pytest.param(
        Given(started_s=LATE_S, resumed_s=0.0, judged=NO_DATA, policy=undecided(PROMOTE)),
        stays(25.0, Wait.HARM),
        id="what is resumed after its deadline is not promoted at once",
    ),
    pytest.param(
        Given(started_s=LATE_S, resumed_s=HOUR_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        stays(25.0, Wait.HARM),
        id="the deadline begins anew with a resume",
    ),
    pytest.param(
        Given(started_s=9 * HOUR_S, resumed_s=2 * HOUR_S, judged=NO_DATA, policy=undecided(ROLLBACK)),
        back(Signal.GIVE_UP),
        id="the deadline after a resume ends what is undecided",
    ),
    pytest.param(
        Given(step_s=900.0, resumed_s=599.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        stays(25.0, Wait.HARM),
        id="a step's maximum begins anew with a resume",
    ),
    pytest.param(
        Given(step_s=900.0, resumed_s=600.0, judged=NO_DATA, policy=undecided(ROLLBACK, TIMED)),
        back(Signal.GIVE_UP),
        id="a step's maximum after a resume ends what is undecided",
    ),
    pytest.param(
        Given(step_s=900.0, resumed_s=0.0, policy=TIMED),
        NEXT_STEP,
        id="a step's minimum counts the time on hold too, for the evidence came in",
    ),
    pytest.param(
        replace(BAKING, paused=True), stays(95.0, Wait.PAUSED, Phase.BAKING), id="a pause holds what is watched"
    ),
    pytest.param(Given(paused=True, judged=PROVED_WORSE), back(Signal.BREACH), id="a breach rolls back what is paused"),
    pytest.param(
        Given(paused=True, heard=Signals(forbidden=True)),
        back(Signal.BREACH),
        id="a breach of another kind of gate rolls back what is paused",
    ),
    pytest.param(
        Given(paused=True, failures=3.0), QUARANTINED, id="what fails in a row is quarantined though it is paused"
    ),
    pytest.param(
        Given(paused=True, heard=said(Signal.ABORT)), back(Signal.ABORT), id="a person may abort what is paused"
    ),
    pytest.param(Given(paused=True, heard=said(Signal.PROMOTE)), PROMOTED, id="a person may promote what is paused"),
    pytest.param(
        Given(paused=True, heard=Signals(superseded=True)),
        Follows(Signal.CANCEL, Phase.CANCELLED, 0.0),
        id="another revision cancels what is paused",
    ),
]

HARM = [
    pytest.param(
        Given(judged=PROVED_WORSE), back(Signal.BREACH), id="proof against a candidate takes all its requests"
    ),
    pytest.param(
        Given(judged=judgement(breach=9.0, harm=0.5, incident=True, shared=True)),
        back(Signal.BREACH),
        id="what is worse than a broken stable is rolled back all the same",
    ),
    pytest.param(Given(judged=judgement(incident=True)), NEXT_STEP, id="a broken stable does not block its fix"),
    pytest.param(
        Given(heard=Signals(forbidden=True)), back(Signal.BREACH), id="another gate's breach needs no proof here"
    ),
    pytest.param(
        Given(judged=PROVED_WORSE, started_s=LATE_S, policy=undecided(PROMOTE)),
        back(Signal.BREACH),
        id="a breach goes before the deadline's promotion",
    ),
    pytest.param(
        Given(judged=PROVED_WORSE, heard=said(Signal.PROMOTE)),
        back(Signal.BREACH),
        id="a breach goes before a person's promotion",
    ),
    pytest.param(replace(BAKING, judged=PROVED_WORSE), back(Signal.BREACH), id="a breach takes back what is promoted"),
    pytest.param(Given(failures=2.0), NEXT_STEP, id="two failures in a row are no reason"),
    pytest.param(Given(failures=3.0), QUARANTINED, id="three failures in a row while stable answers quarantine"),
    pytest.param(
        Given(failures=3.0, stable_answered_s=60.0), NEXT_STEP, id="failures while stable is silent quarantine nobody"
    ),
    pytest.param(Given(judged=judgement(excess=100.0)), QUARANTINED, id="as many bad requests as declared quarantine"),
    pytest.param(
        Given(judged=judgement(excess=100.0, incident=True)),
        NEXT_STEP,
        id="bad requests while stable is out of bounds too are not the candidate's",
    ),
    pytest.param(Given(judged=SUSPECT), QUARANTINED, id="a suspicion has us ask the candidate ourselves"),
    pytest.param(Given(judged=SUSPECT, quarantines=1.0), NEXT_STEP, id="a suspicion quarantines once"),
    pytest.param(
        replace(BAKING, step_s=60.0, judged=SUSPECT),
        Follows(Signal.NONE, Phase.BAKING, 95.0),
        id="a suspicion quarantines nobody who is promoted",
    ),
    pytest.param(Given(heard=Signals(lost=True)), QUARANTINED, id="a candidate without servers gets no requests"),
    pytest.param(
        replace(BAKING, failures=3.0, stable_answered_s=1e4),
        QUARANTINED,
        id="what is promoted and fails is quarantined, though its predecessor has had no requests",
    ),
]

ON_THE_WAY = [
    pytest.param(
        Given(Phase.PENDING, -1, heard=Signals(ready=False)),
        Follows(Signal.NONE, Phase.PENDING, 0.0),
        id="what is not proved gets no requests",
    ),
    pytest.param(
        Given(Phase.PENDING, -1), Follows(Signal.PROVED, Phase.GOLDEN, 0.0), id="what is proved is asked labels"
    ),
    pytest.param(
        Given(Phase.GOLDEN, -1, heard=Signals(golden=-1)),
        back(Signal.BREACH),
        id="failed labels end it before any request",
    ),
    pytest.param(
        Given(Phase.GOLDEN, -1, heard=Signals(golden=0)),
        stays(0.0, Wait.NOTHING, Phase.GOLDEN),
        id="labels that are not answered yet hold it at 0 %",
    ),
    pytest.param(
        Given(Phase.GOLDEN, -1),
        Follows(Signal.GOLDEN_PASSED, Phase.PROGRESSING, 5.0),
        id="answered labels bring the first step",
    ),
    pytest.param(
        replace(QUARANTINE, heard=Signals(probes=1)),
        Follows(Signal.RESUMED, Phase.PROGRESSING, 25.0),
        id="answered probes bring back the step's weight",
    ),
    pytest.param(replace(QUARANTINE, heard=Signals(probes=-1)), back(Signal.CONFIRMED), id="failed probes roll back"),
    pytest.param(
        replace(QUARANTINE, quarantines=4.0, heard=Signals(probes=1)),
        Follows(Signal.NONE, Phase.QUARANTINED, 0.0),
        id="after maxQuarantines answered probes are not enough",
    ),
    pytest.param(
        replace(QUARANTINE, quarantines=4.0, heard=said(Signal.PROMOTE)),
        PROMOTED,
        id="a person may promote what was quarantined too often",
    ),
    pytest.param(
        replace(BAKING, step_s=599.0), stays(95.0, Wait.TIME, Phase.BAKING), id="what is promoted is watched for bake"
    ),
    pytest.param(BAKING, Follows(Signal.BAKED, Phase.SUCCEEDED, 100.0), id="what was watched for bake has succeeded"),
    pytest.param(
        replace(BAKING, judged=INCIDENT), stays(95.0, Wait.INCIDENT, Phase.BAKING), id="an incident prolongs the watch"
    ),
]

VERBS = [
    pytest.param(Given(heard=said(Signal.ABORT)), back(Signal.ABORT), id="abort goes before the next step"),
    pytest.param(
        Given(judged=PROVED_WORSE, heard=said(Signal.ABORT)), back(Signal.ABORT), id="abort goes before a breach"
    ),
    pytest.param(
        Given(heard=Signals(asked=int(Signal.ABORT), superseded=True)),
        Follows(Signal.CANCEL, Phase.CANCELLED, 0.0),
        id="another revision goes before abort",
    ),
    pytest.param(Given(judged=NO_DATA, heard=said(Signal.PROMOTE)), PROMOTED, id="promote needs no evidence"),
    pytest.param(
        Given(Phase.GOLDEN, -1, heard=Signals(golden=0, asked=int(Signal.PROMOTE))),
        PROMOTED,
        id="promote does not wait for labels",
    ),
    pytest.param(
        Given(Phase.PENDING, -1, heard=Signals(ready=False, asked=int(Signal.PROMOTE))),
        Follows(Signal.NONE, Phase.PENDING, 0.0),
        id="promote moves nothing that no server holds",
    ),
    pytest.param(
        Given(policy=TIMED, heard=said(Signal.ADVANCE)), stays(25.0, Wait.TIME), id="resume does not shorten a minimum"
    ),
    *(
        pytest.param(
            Given(phase, 2, started_s=LATE_S, judged=PROVED_WORSE, heard=Signals(asked=asked, superseded=True)),
            Follows(Signal.NONE, phase, 100.0 if phase is Phase.SUCCEEDED else 0.0),
            id=f"{name} moves nothing that is {phase.label}",
        )
        for phase in sorted(ENDED)
        for asked, name in ((int(Signal.ABORT), "abort"), (int(Signal.PROMOTE), "promote"))
    ),
]


@pytest.mark.parametrize(("given", "follows"), [*STEPS, *LATE, *PAUSED, *HARM, *ON_THE_WAY, *VERBS])
def test_one_decision_follows_from(given: Given, follows: Follows) -> None:
    transition = next_transition(given.policy, given.progress(), (given.judged,), given.heard, NOW_S)

    found = Follows(
        Signal(int(transition.signal)),
        Phase(int(transition.progress.phase)),
        float(transition.weight),
        WAITS[int(transition.waits_for)] if follows.wait is not None else None,
    )
    assert found == follows


@pytest.mark.parametrize(
    ("was", "now", "resumed_s"),
    [
        pytest.param(False, False, 0.0, id="what was never paused was never resumed"),
        pytest.param(False, True, 0.0, id="a pause is no resume"),
        pytest.param(True, True, 0.0, id="what stays paused was not resumed"),
        pytest.param(True, False, NOW_S, id="the end of a pause is remembered"),
    ],
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
