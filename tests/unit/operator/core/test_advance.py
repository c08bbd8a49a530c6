"""A model's rollout in one pass: each row is where it stands and what the pass sees, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fakes.observed_models import (
    FAILURE,
    FIRST,
    NOW_S,
    SECOND,
    THEN_S,
    THIRD,
    candidate,
    decided,
    group,
    holder,
    lost,
    model,
    state,
    world,
)
from segserve_builder.agent.protocol import ModelState
from segserve_operator.api.rollout_policy import ErrorRateGate, RolloutPolicy, RolloutStep, Slo, WebhookGate
from segserve_operator.core.advance.advance import (
    MAX_WRITE_INTERVAL_S,
    SETTLED_S,
    WRITE_INTERVAL_S,
    RolloutUpdate,
    advance,
    is_due,
    unchanged,
    with_checks,
)
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.world.observed import GroupObserved, ModelObserved, Observed, Roles

BUDGET = WebhookGate(name="budget", url="http://budget.example/")
POLICY = RolloutPolicy(gates=(ErrorRateGate(),))
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
CHANGED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
SERVED = Roles(holder(FIRST, "main"))
OTHER = Roles(holder(FIRST, "main"), candidate(THIRD))
FAILED = Roles(holder(FIRST, "main"), candidate(SECOND, failure=FAILURE))
MAIN, OWN = group("main", FIRST), group(SECOND.revision, SECOND)
AT = {phase: state(SECOND, phase) for phase in Phase}
PROGRESSING = AT[Phase.PROGRESSING]
NAME = PROGRESSING.rollout


def coins(
    at: RolloutState | None = None,
    roles: Roles = CHANGING,
    policy: RolloutPolicy | None = POLICY,
    asked: Mapping[str, str] | None = None,
    **changes: Any,
) -> ModelObserved:
    """Return a model whose rollout stands so, of which people ask this (a value by verb)."""
    annotations = {f"segserve.dev/{verb}": value for verb, value in (asked or {}).items()}
    return model(SECOND, roles, policy=policy, rollout=at, annotations=annotations, **changes)


def seen(observed: ModelObserved, *, groups: Any = (MAIN, OWN), records: Any = None, **changes: Any) -> Observed:
    return replace(world(observed, groups=groups, **changes), records=records or {})


def rolled(observed: ModelObserved, roles: Roles | None = None, **changes: Any) -> RolloutUpdate:
    """Return what a pass makes of it; `roles` are those that the spec asks for by now, if others than before."""
    return decided(advance(observed, roles or observed.roles, seen(observed, **changes)))


def where(found: RolloutUpdate) -> tuple[Phase, int, str] | None:
    at = found.state
    return (at.phase, at.weight, at.reason) if at is not None else None


def record_of(found: RolloutUpdate) -> Record:
    (record,) = found.records
    return record


ASKED = SECOND.revision
ENDED_BEFORE = state(THIRD, Phase.ROLLED_BACK)

BEGIN = [
    pytest.param(coins(), (Phase.GOLDEN, 0, "Proved"), id="a candidate that has servers begins a rollout"),
    pytest.param(coins(policy=None), None, id="no policy, no rollout"),
    pytest.param(
        coins(roles=Roles(None, candidate(SECOND))), None, id="a first revision has nothing to be compared with"
    ),
    pytest.param(coins(roles=SERVED), None, id="no candidate, no rollout"),
    pytest.param(
        coins(roles=Roles(holder(FIRST, "main"), candidate(SECOND, None))),
        None,
        id="who waits for servers waits here too",
    ),
    pytest.param(coins(roles=FAILED), None, id="what failed on its servers is not rolled out"),
    pytest.param(model(None, CHANGING), None, id="a spec that cannot be read begins nothing"),
    pytest.param(coins(ENDED_BEFORE), (Phase.GOLDEN, 0, "Proved"), id="another revision begins after the end of one"),
    pytest.param(
        coins(AT[Phase.ROLLED_BACK]), (Phase.GOLDEN, 0, "Proved"), id="the same revision begins again once it may"
    ),
    pytest.param(
        coins(AT[Phase.ROLLED_BACK], FAILED),
        (Phase.ROLLED_BACK, 0, ""),
        id="the same revision does not begin again while it counts as failed",
    ),
    pytest.param(
        coins(AT[Phase.SUCCEEDED], CHANGED), (Phase.SUCCEEDED, 100, ""), id="what has succeeded stays where it is"
    ),
]

GO_ON = [
    pytest.param(
        coins(AT[Phase.PENDING]), (Phase.GOLDEN, 0, "Proved"), id="servers that answer and are known bring the labels"
    ),
    pytest.param(
        coins(AT[Phase.GOLDEN]),
        (Phase.PROGRESSING, 5, "GoldenPassed"),
        id="without labels the first step comes at once",
    ),
    pytest.param(coins(PROGRESSING), (Phase.PROGRESSING, 25, "TooFewRequests"), id="without requests a weight stays"),
    pytest.param(
        coins(replace(PROGRESSING, step=2), policy=RolloutPolicy(gates=())),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        id="a policy without gates asks for requests all the same",
    ),
    pytest.param(
        coins(AT[Phase.QUARANTINED]), (Phase.QUARANTINED, 0, "Probing"), id="a quarantine waits for our own requests"
    ),
    pytest.param(coins(AT[Phase.BAKING], CHANGED), (Phase.BAKING, 95, "MinimumTime"), id="what is promoted is watched"),
    pytest.param(
        coins(replace(AT[Phase.BAKING], step_since_s=NOW_S - 600), CHANGED),
        (Phase.SUCCEEDED, 100, "Baked"),
        id="what was watched for long enough has succeeded",
    ),
]

PEOPLE = [
    pytest.param(
        coins(PROGRESSING, asked={"abort": ASKED}),
        (Phase.ROLLED_BACK, 0, "Aborted"),
        "RequestTaken",
        id="abort ends it",
    ),
    pytest.param(
        coins(PROGRESSING, asked={"promote": ASKED}),
        (Phase.BAKING, 95, "PromotedEarly"),
        "RequestTaken",
        id="promote gives it all requests",
    ),
    pytest.param(
        coins(PROGRESSING, asked={"promote": ASKED, "abort": ASKED}),
        (Phase.ROLLED_BACK, 0, "Aborted"),
        "RequestTaken",
        id="abort goes before promote",
    ),
    pytest.param(
        coins(PROGRESSING, asked={"pause": ASKED}),
        (Phase.PROGRESSING, 25, "Paused"),
        "RequestTaken",
        id="pause holds it",
    ),
    pytest.param(
        coins(replace(PROGRESSING, paused=True), asked={"resume": ASKED}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestTaken",
        id="resume lets it wait for what it waits for",
    ),
    pytest.param(
        coins(replace(PROGRESSING, paused=True)),
        (Phase.PROGRESSING, 25, "Paused"),
        None,
        id="what is paused stays paused",
    ),
    pytest.param(
        coins(
            replace(PROGRESSING, paused=True, started_s=0.0),
            policy=POLICY.model_copy(update={"on_undecided": "Promote"}),
        ),
        (Phase.PROGRESSING, 25, "Paused"),
        None,
        id="what is paused is not promoted by its deadline",
    ),
    pytest.param(
        coins(replace(PROGRESSING, started_s=0.0)),
        (Phase.PROGRESSING, 25, "DeadlinePassed"),
        None,
        id="a deadline that holds is what it says",
    ),
    pytest.param(
        coins(replace(PROGRESSING, started_s=0.0, resumed_s=NOW_S - 60)),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        None,
        id="after a resume the deadline is not what it says",
    ),
    pytest.param(
        coins(AT[Phase.BAKING], CHANGED, asked={"rollback": ASKED}),
        (Phase.ROLLED_BACK, 0, "Aborted"),
        "RequestTaken",
        id="rollback of what is watched ends its rollout",
    ),
    pytest.param(
        coins(PROGRESSING, asked={"promote": THIRD.revision}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestRefused",
        id="a word about another revision does nothing",
    ),
    pytest.param(
        coins(AT[Phase.SUCCEEDED], CHANGED, asked={"abort": ASKED}),
        (Phase.SUCCEEDED, 100, ""),
        "RequestRefused",
        id="a word about what has ended does nothing",
    ),
    pytest.param(
        coins(PROGRESSING, asked={"skip-gate": f"horoscope@{ASKED}"}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestRefused",
        id="a gate that there is not is not put aside",
    ),
]


@pytest.mark.parametrize(("observed", "expected"), [*BEGIN, *GO_ON])
def test_in_one_pass(observed: ModelObserved, expected: tuple[Phase, int, str] | None) -> None:
    found = rolled(observed)

    assert where(found) == expected
    assert (found.retry, found.return_to_previous, found.handled, found.events) == (False, False, (), ())


@pytest.mark.parametrize(("observed", "expected", "events"), PEOPLE)
def test_by_a_persons_word(observed: ModelObserved, expected: tuple[Phase, int, str], events: str | None) -> None:
    found = rolled(observed)

    assert where(found) == expected
    assert [event.reason for event in found.events] == ([events] if events is not None else [])
    assert len(found.handled) == len(found.events)


def test_a_word_that_was_dealt_with_does_nothing_again() -> None:
    observed = coins(PROGRESSING, asked={"abort": ASKED})
    handled = replace(observed, status=replace(observed.status, handled=(f"abort={ASKED}",)))
    found = rolled(handled)

    assert where(found) == (Phase.PROGRESSING, 25, "TooFewRequests")
    assert (found.events, found.handled) == ((), (f"abort={ASKED}",))


@pytest.mark.parametrize(
    ("observed", "retry", "return_to_previous"),
    [
        pytest.param(
            coins(AT[Phase.ROLLED_BACK], FAILED, asked={"retry": ASKED}),
            True,
            False,
            id="retry of what failed is granted",
        ),
        pytest.param(
            coins(AT[Phase.ROLLED_BACK], FAILED, asked={"retry": THIRD.revision}),
            False,
            False,
            id="retry of what did not fail is refused",
        ),
        pytest.param(
            coins(AT[Phase.SUCCEEDED], CHANGED, asked={"rollback": ASKED}),
            False,
            True,
            id="rollback leaves what has succeeded for the one before",
        ),
        pytest.param(
            coins(AT[Phase.SUCCEEDED], Roles(holder(SECOND)), asked={"rollback": ASKED}),
            False,
            False,
            id="rollback is refused where the one before is not kept",
        ),
        pytest.param(
            coins(None, CHANGED, policy=None, asked={"rollback": ASKED}),
            False,
            True,
            id="rollback needs no policy",
        ),
        pytest.param(
            coins(AT[Phase.BAKING], CHANGED, asked={"rollback": ASKED}),
            False,
            False,
            id="rollback of what is watched is its rollout's matter",
        ),
    ],
)
def test_words_that_the_roles_follow(observed: ModelObserved, retry: bool, return_to_previous: bool) -> None:
    found = rolled(observed)

    assert (found.retry, found.return_to_previous) == (retry, return_to_previous)


@pytest.mark.parametrize(
    ("at", "roles", "expected", "ended"),
    [
        pytest.param(
            PROGRESSING,
            SERVED,
            (Phase.CANCELLED, 0, "Superseded"),
            [Phase.CANCELLED],
            id="who goes back to stable cancels",
        ),
        pytest.param(
            PROGRESSING,
            OTHER,
            (Phase.PENDING, 0, "Proving"),
            [Phase.CANCELLED, Phase.PENDING],
            id="another candidate cancels the one before, and begins in the same pass",
        ),
        pytest.param(
            AT[Phase.BAKING],
            SERVED,
            (Phase.CANCELLED, 0, "Superseded"),
            [Phase.CANCELLED],
            id="what is watched and not stable any more is cancelled",
        ),
        pytest.param(
            PROGRESSING,
            FAILED,
            (Phase.ROLLED_BACK, 0, FAILURE.reason),
            [Phase.ROLLED_BACK],
            id="a candidate that fails on its servers is rolled back with their reason",
        ),
        pytest.param(AT[Phase.CANCELLED], SERVED, (Phase.CANCELLED, 0, ""), [], id="what has ended is not ended again"),
    ],
)
def test_when_the_roles_change(
    at: RolloutState, roles: Roles, expected: tuple[Phase, int, str], ended: list[Phase]
) -> None:
    found = rolled(coins(at, policy=POLICY), roles)

    assert where(found) == expected
    assert [Phase(int(record.progress.phase)) for record in found.records] == ended


@pytest.mark.parametrize(
    "own",
    [
        pytest.param(group(SECOND.revision, SECOND, state=ModelState.LOADING), id="loading it"),
        pytest.param(lost(SECOND.revision, SECOND), id="gone"),
    ],
)
def test_a_rollout_begins_at_weight_0_and_waits_for_servers_that_are(own: GroupObserved) -> None:
    found = rolled(coins(), groups=(MAIN, own))

    assert where(found) == (Phase.PENDING, 0, "Proving")
    assert record_of(found).name == f"{ASKED}-{int(NOW_S):08x}"


def test_a_candidate_that_lost_its_servers_gets_no_requests_at_once() -> None:
    found = rolled(coins(PROGRESSING), groups=(MAIN, lost(SECOND.revision, SECOND)))

    assert where(found) == (Phase.QUARANTINED, 0, "FailsWhileStableAnswers")


def test_a_candidate_without_servers_is_promoted_only_once_it_has_some() -> None:
    queued, asked = Roles(holder(FIRST, "main"), candidate(SECOND, None)), {"promote": ASKED}
    waits = rolled(coins(AT[Phase.QUARANTINED], queued, asked=asked), groups=(MAIN,))
    goes_on = rolled(coins(AT[Phase.QUARANTINED], asked=asked))

    assert (waits.handled, waits.events, where(waits)) == ((), (), (Phase.QUARANTINED, 0, "Probing"))
    assert (goes_on.handled, where(goes_on)) == ((f"promote={ASKED}",), (Phase.BAKING, 95, "PromotedEarly"))


def test_a_gate_that_is_put_aside_stays_aside_and_holds_nothing() -> None:
    asks = POLICY.model_copy(update={"gates": (*POLICY.gates, BUDGET)})
    held = rolled(coins(AT[Phase.GOLDEN], policy=asks))
    word = rolled(coins(AT[Phase.GOLDEN], policy=asks, asked={"skip-gate": f"budget@{ASKED}"})).state
    after = rolled(coins(word, policy=asks)).state

    assert where(held) == (Phase.GOLDEN, 0, "GateUndecided")
    assert word is not None
    assert after is not None
    assert (word.skipped, after.skipped, after.phase) == (("budget",), ("budget",), Phase.PROGRESSING)


def test_what_was_found_out_is_the_verdict_of_the_same_pass() -> None:
    asks = POLICY.model_copy(update={"gates": (BUDGET,)})
    breach = CheckResult(f"{NAME}/budget", NOW_S, passes=False, breaches=True, shown="status 500")
    found = rolled(coins(PROGRESSING, policy=asks), check_results={breach.key: breach})

    assert where(found) == (Phase.ROLLED_BACK, 0, "Breaches")
    assert [verdict.outcome for verdict in record_of(found).verdicts] == [Outcome.BREACH]


@pytest.mark.parametrize(
    ("asked", "actor"),
    [
        pytest.param({}, "segserve", id="the engine"),
        pytest.param({"promote": f"{ASKED}@monday"}, f"promote={ASKED}@monday", id="who asked for it"),
        pytest.param({"promote": THIRD.revision}, "segserve", id="not who was refused"),
    ],
)
def test_a_decision_names(asked: dict[str, str], actor: str) -> None:
    found = rolled(coins(AT[Phase.GOLDEN], asked=asked))

    assert record_of(found).decisions[-1].actor == actor


def test_a_rollout_whose_record_is_lost_goes_on_where_its_status_says_by_the_policy_of_now() -> None:
    found = record_of(rolled(coins(PROGRESSING)))

    assert (found.name, found.stable, found.candidate) == (NAME, FIRST.revision, SECOND.revision)
    assert (found.policy, found.slo, found.sequence) == (POLICY, Slo(), PROGRESSING.sequence)
    assert [decision.signal for decision in found.decisions] == ["LOST"]


def test_a_record_that_is_lost_with_spec_and_stable_has_the_defaults() -> None:
    observed = replace(model(None, Roles(None, candidate(SECOND))), status=replace(coins(PROGRESSING).status))
    found = record_of(rolled(observed, Roles(None, candidate(SECOND))))

    assert (found.policy, found.slo, found.stable) == (RolloutPolicy(), Slo(), "")


def test_a_rollout_goes_by_the_policy_that_it_began_with() -> None:
    began = record_of(rolled(coins(PROGRESSING)))
    other = coins(PROGRESSING, policy=POLICY.model_copy(update={"steps": (RolloutStep(weight=9),)}))

    assert record_of(rolled(other, records={NAME: began})).policy == POLICY


@pytest.mark.parametrize(
    ("sequence", "records"),
    [
        pytest.param(PROGRESSING.sequence + 1, ["LOST"], id="one decision behind its status is made to agree"),
        pytest.param(PROGRESSING.sequence, [], id="as new as its status is left alone"),
    ],
)
@pytest.mark.parametrize("phase", sorted(ENDED))
def test_after_its_end_a_record(phase: Phase, sequence: int, records: list[str]) -> None:
    began = record_of(rolled(coins(PROGRESSING)))
    found = rolled(coins(replace(AT[phase], sequence=sequence), SERVED), records={NAME: began})

    assert [record.decisions[-1].signal for record in found.records] == records


def test_after_its_end_a_record_that_is_gone_stays_gone() -> None:
    assert rolled(coins(AT[Phase.SUCCEEDED], CHANGED)).records == ()


WRITTEN = {NAME: (PROGRESSING.sequence, NOW_S)}


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        pytest.param(WRITTEN, "Incident", id="not while nothing is to be written"),
        pytest.param(
            {NAME: (PROGRESSING.sequence, NOW_S - MAX_WRITE_INTERVAL_S)}, "TooFewRequests", id="with the next write"
        ),
    ],
)
def test_what_a_rollout_waits_for_is_told_anew(written: Any, reason: str) -> None:
    at = replace(PROGRESSING, reason="Incident", message="stable is out of bounds as well")

    assert where(rolled(coins(at), written=written)) == (Phase.PROGRESSING, 25, reason)


def test_the_gates_say_what_they_make_of_the_evidence_when_it_is_written() -> None:
    quiet, events = (rolled(coins(replace(PROGRESSING, reason="x")), written=each) for each in (WRITTEN, {}))
    began = record_of(events)

    assert record_of(quiet).verdicts == ()
    assert [verdict.gate for verdict in record_of(rolled(coins(PROGRESSING), records={NAME: began})).verdicts] == [
        "errorRate"
    ]


def sample(stable: int, own: int, *, at_s: float = NOW_S, active: int = 0) -> Sample:
    """Return what the one gateway has counted: attempts that ended, and such of the candidate that are under way."""
    by_series = {
        Series("main", "http"): SeriesCounts(stable, 0, latencies=((20.0, stable),)),
        Series(SECOND.revision, "http"): SeriesCounts(own, 0, active=active, latencies=((20.0, own),)),
    }
    return {"gateway": Counters("first", at_s, by_series)}


def passes(
    *samples: Sample, at: RolloutState = PROGRESSING, slo: Slo | None = None, seconds_each: float = 1.0
) -> RolloutUpdate:
    """Return what comes of one pass after another, each with what the gateways had counted by then."""
    found, records = RolloutUpdate(), dict[str, Record]()
    for number, each in enumerate(samples):
        observed = coins(at, slo=slo)
        now_s = NOW_S + number * seconds_each
        found = rolled(observed, records=records, samples={"coins": each} if each else {}, now_s=now_s)
        assert found.state is not None
        at, records = found.state, {NAME: record_of(found)}
    return found


@pytest.mark.parametrize(
    ("samples", "requests"),
    [
        pytest.param([{}, {}], [], id="gateways that do not answer are no look"),
        pytest.param([sample(100, 9)], [], id="what was counted before the rollout is no look"),
        pytest.param([sample(100, 9), sample(100, 9)], [], id="a sample that says the same is no look"),
        pytest.param(
            [sample(100, 9), sample(175, 34, at_s=NOW_S + 1)], [(75, 25)], id="between two samples lies a look"
        ),
        pytest.param(
            [sample(100, 9), {}, sample(175, 34, at_s=NOW_S + 2)],
            [(75, 25)],
            id="what was counted while nobody answered comes with the next look",
        ),
    ],
)
def test_looks(samples: list[Sample], requests: list[tuple[int, int]]) -> None:
    assert [row.requests for row in record_of(passes(*samples)).rows] == requests


@pytest.mark.parametrize(
    ("slo", "hangs_after_s"),
    [
        pytest.param(None, 10, id="10 s where nothing is promised"),
        pytest.param(Slo(p99_milliseconds=500), 2, id="four times the promised p99"),
        pytest.param(Slo(p95_milliseconds=500), 2, id="four times the promised p95 where no p99 is promised"),
        pytest.param(Slo(p95_milliseconds=500, p99_milliseconds=1000), 4, id="p99 goes before p95"),
        pytest.param(Slo(p99_milliseconds=10), 1, id="1 s at least"),
        pytest.param(Slo(p99_milliseconds=9000), 10, id="10 s at most"),
    ],
)
def test_a_request_hangs_after(slo: Slo | None, hangs_after_s: int) -> None:
    under_way = [sample(75 * number, 9, at_s=NOW_S + number, active=3) for number in range(13)]
    rows = record_of(passes(*under_way, slo=slo)).rows
    hung = [dict(row.latencies[1]).get(len(EDGES_MS), 0) for row in rows]

    assert hung.index(3) + 1 == hangs_after_s
    assert sum(hung) == 3


WRONG = [sample(75 * number, 100 * number, at_s=NOW_S + number) for number in range(60)]
RIGHT = [sample(75 * number, 25 * number, at_s=NOW_S + number) for number in range(60)]
HOLDS = replace(PROGRESSING, paused=True)


@pytest.mark.parametrize(
    ("samples", "at", "reason"),
    [
        pytest.param(WRONG, HOLDS, "SplitNotAsWritten", id="another split than was written is told"),
        pytest.param(RIGHT, HOLDS, "Paused", id="the split that was written is not"),
        pytest.param(
            WRONG[: int(SETTLED_S)],
            replace(HOLDS, step_since_s=NOW_S),
            "Paused",
            id="right after a change of weight a split proves nothing",
        ),
        pytest.param(
            WRONG, replace(AT[Phase.QUARANTINED], paused=True), "Probing", id="without a weight there is no split"
        ),
    ],
)
def test_the_split(samples: list[Sample], at: RolloutState, reason: str) -> None:
    found = passes(*samples, at=at)

    assert found.state is not None
    assert found.state.reason == reason


@pytest.mark.parametrize(
    ("written", "active", "due"),
    [
        pytest.param(None, True, True, id="that was never written is due"),
        pytest.param((0, NOW_S), True, True, id="with a decision that was not written is due at once"),
        pytest.param((0, NOW_S), False, True, id="with a decision that was not written is due after its end too"),
        pytest.param((1, NOW_S - WRITE_INTERVAL_S + 1), True, False, id="that only saw more is not due yet"),
        pytest.param((1, NOW_S - MAX_WRITE_INTERVAL_S), True, True, id="that only saw more is due now and then"),
        pytest.param((1, NOW_S + MAX_WRITE_INTERVAL_S), True, True, id="is due where the clock was put back"),
        pytest.param((1, NOW_S - MAX_WRITE_INTERVAL_S), False, False, id="of what has ended is due no more"),
    ],
)
def test_a_record(written: tuple[int, float] | None, active: bool, due: bool) -> None:
    record = record_of(rolled(coins(PROGRESSING)))
    observed = seen(coins(PROGRESSING), written={NAME: written} if written is not None else {})

    assert record.sequence == 1
    assert is_due(record, observed, active=active) is due


@pytest.mark.parametrize(
    ("step_s", "interval_s"),
    [
        pytest.param(0.0, WRITE_INTERVAL_S, id="often at first"),
        pytest.param(150.0, 30.0, id="less often the longer a step lasts"),
        pytest.param(86_400.0, MAX_WRITE_INTERVAL_S, id="every minute at last"),
    ],
)
def test_a_record_without_a_decision_is_written(step_s: float, interval_s: float) -> None:
    at = replace(PROGRESSING, step_since_s=NOW_S - step_s)
    record = record_of(rolled(coins(at)))
    due = [
        is_due(record, seen(coins(at), written={NAME: (1, NOW_S - seconds)}))
        for seconds in (interval_s - 1, interval_s)
    ]

    assert due == [False, True]


@pytest.mark.parametrize(
    ("observed", "keys"),
    [
        pytest.param(coins(PROGRESSING), [f"{NAME}/budget"], id="what a rollout under way asks"),
        pytest.param(coins(), [f"{ASKED}-{int(NOW_S):08x}/budget"], id="what one asks that has just begun"),
        pytest.param(coins(policy=None), [], id="nothing without a rollout"),
        pytest.param(coins(AT[Phase.SUCCEEDED], CHANGED), [], id="nothing of one that has ended"),
        pytest.param(coins(PROGRESSING, asked={"abort": ASKED}), [], id="nothing of one that ends in this pass"),
    ],
)
def test_is_to_be_found_out(observed: ModelObserved, keys: list[str]) -> None:
    wanted = observed.wanted
    assert wanted is not None
    policy = wanted.policy.model_copy(update={"gates": (BUDGET,)}) if wanted.policy is not None else None
    asks = replace(observed, wanted=replace(wanted, policy=policy))
    found = with_checks(rolled(asks), asks.roles, asks, seen(asks))

    assert [check.key for check in found.checks] == keys


@pytest.mark.parametrize(
    ("at", "roles", "known", "keys"),
    [
        pytest.param(PROGRESSING, CHANGING, True, [f"{NAME}/budget"], id="keeps what it has found out under way"),
        pytest.param(PROGRESSING, CHANGING, False, [], id="without a record has nothing found out"),
        pytest.param(AT[Phase.SUCCEEDED], CHANGED, True, [], id="that has ended has nothing found out"),
        pytest.param(None, CHANGING, True, [], id="that has not begun has nothing found out"),
    ],
)
def test_a_rollout_that_could_not_be_written_down_stays_and(
    at: RolloutState | None, roles: Roles, known: bool, keys: list[str]
) -> None:
    asks = POLICY.model_copy(update={"gates": (BUDGET,)})
    observed = coins(at, roles, policy=asks, asked={"abort": ASKED})
    records = {NAME: record_of(rolled(coins(PROGRESSING, policy=asks)))} if known else {}
    found = unchanged(observed, seen(observed, records=records))

    assert (found.state, found.records, found.handled) == (at, (), ())
    assert [check.key for check in found.checks] == keys


def test_a_step_that_waits_for_a_person_goes_on_with_a_word_and_enough_requests() -> None:
    policy = POLICY.model_copy(
        update={"steps": (RolloutStep(weight=5), RolloutStep(weight=25, pause=True), RolloutStep(weight=50))}
    )
    at, records, reasons = PROGRESSING, dict[str, Record](), list[str]()
    for number in range(240):
        asked = {"resume": ASKED} if number == 239 else {}
        counted = sample(750 * number, 250 * number, at_s=NOW_S + number)
        found = rolled(
            coins(at, policy=policy, asked=asked),
            records=records,
            samples={"coins": counted},
            now_s=NOW_S + number,
            written={NAME: (1, NOW_S + number - MAX_WRITE_INTERVAL_S)},
        )
        assert found.state is not None
        at, records = found.state, {NAME: record_of(found)}
        reasons.append(at.reason)

    assert reasons[-2] == "PersonAsked"
    assert (at.weight, at.step, at.reason) == (50, 2, "StepDone")


def test_a_resume_is_in_the_status_so_that_no_process_forgets_it() -> None:
    long_ago = coins(replace(PROGRESSING, paused=True, started_s=THEN_S - timedelta(days=9).total_seconds()))
    found = rolled(replace(long_ago, annotations={"segserve.dev/resume": ASKED}))

    assert found.state is not None
    assert (found.state.paused, found.state.resumed_s) == (False, NOW_S)
    assert found.state.undecided_since_s == NOW_S
