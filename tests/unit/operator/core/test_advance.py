"""A model's rollout in one pass: each row is where it stands and what the pass sees, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from fakes.cases import cases
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
    WRITE_INTERVAL_S,
    RolloutUpdate,
    advance,
    is_due,
    unchanged,
    with_checks,
)
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.checks import ServiceStatus
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

BEGIN = {
    "a candidate that has servers begins a rollout": (coins(), (Phase.GOLDEN, 0, "Proved")),
    "no policy, no rollout": (coins(policy=None), None),
    "a first revision has nothing to be compared with": (coins(roles=Roles(None, candidate(SECOND))), None),
    "no candidate, no rollout": (coins(roles=SERVED), None),
    "who waits for servers waits here too": (coins(roles=Roles(holder(FIRST, "main"), candidate(SECOND, None))), None),
    "what failed on its servers is not rolled out": (coins(roles=FAILED), None),
    "a spec that cannot be read begins nothing": (model(None, CHANGING), None),
    "another revision begins after the end of one": (coins(ENDED_BEFORE), (Phase.GOLDEN, 0, "Proved")),
    "the same revision begins again once it may": (coins(AT[Phase.ROLLED_BACK]), (Phase.GOLDEN, 0, "Proved")),
    "the same revision does not begin again while it counts as failed": (
        coins(AT[Phase.ROLLED_BACK], FAILED),
        (Phase.ROLLED_BACK, 0, ""),
    ),
    "what has succeeded stays where it is": (coins(AT[Phase.SUCCEEDED], CHANGED), (Phase.SUCCEEDED, 100, "")),
}

GO_ON = {
    "servers that answer and are known bring the labels": (coins(AT[Phase.PENDING]), (Phase.GOLDEN, 0, "Proved")),
    "without labels the first step comes at once": (coins(AT[Phase.GOLDEN]), (Phase.PROGRESSING, 5, "GoldenPassed")),
    "without requests a weight stays": (coins(PROGRESSING), (Phase.PROGRESSING, 25, "TooFewRequests")),
    "a policy without gates asks for requests all the same": (
        coins(replace(PROGRESSING, step=2), policy=RolloutPolicy(gates=())),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
    ),
    "a quarantine waits for our own requests": (coins(AT[Phase.QUARANTINED]), (Phase.QUARANTINED, 0, "Probing")),
    "what is promoted is watched": (coins(AT[Phase.BAKING], CHANGED), (Phase.BAKING, 95, "MinimumTime")),
    "what was watched for long enough has succeeded": (
        coins(replace(AT[Phase.BAKING], step_since_s=NOW_S - 600), CHANGED),
        (Phase.SUCCEEDED, 100, "Baked"),
    ),
}

PEOPLE = {
    "abort ends it": (coins(PROGRESSING, asked={"abort": ASKED}), (Phase.ROLLED_BACK, 0, "Aborted"), "RequestTaken"),
    "promote gives it all requests": (
        coins(PROGRESSING, asked={"promote": ASKED}),
        (Phase.BAKING, 95, "PromotedEarly"),
        "RequestTaken",
    ),
    "abort goes before promote": (
        coins(PROGRESSING, asked={"promote": ASKED, "abort": ASKED}),
        (Phase.ROLLED_BACK, 0, "Aborted"),
        "RequestTaken",
    ),
    "pause holds it": (coins(PROGRESSING, asked={"pause": ASKED}), (Phase.PROGRESSING, 25, "Paused"), "RequestTaken"),
    "resume lets it wait for what it waits for": (
        coins(replace(PROGRESSING, paused=True), asked={"resume": ASKED}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestTaken",
    ),
    "what is paused stays paused": (coins(replace(PROGRESSING, paused=True)), (Phase.PROGRESSING, 25, "Paused"), None),
    "what is paused is not promoted by its deadline": (
        coins(
            replace(PROGRESSING, paused=True, started_s=0.0),
            policy=POLICY.model_copy(update={"on_undecided": "Promote"}),
        ),
        (Phase.PROGRESSING, 25, "Paused"),
        None,
    ),
    "a deadline that holds is what it says": (
        coins(replace(PROGRESSING, started_s=0.0)),
        (Phase.PROGRESSING, 25, "DeadlinePassed"),
        None,
    ),
    "after a resume the deadline is not what it says": (
        coins(replace(PROGRESSING, started_s=0.0, resumed_s=NOW_S - 60)),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        None,
    ),
    "rollback of what is watched ends its rollout": (
        coins(AT[Phase.BAKING], CHANGED, asked={"rollback": ASKED}),
        (Phase.ROLLED_BACK, 0, "Aborted"),
        "RequestTaken",
    ),
    "a word about another revision does nothing": (
        coins(PROGRESSING, asked={"promote": THIRD.revision}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestRefused",
    ),
    "a word about what has ended does nothing": (
        coins(AT[Phase.SUCCEEDED], CHANGED, asked={"abort": ASKED}),
        (Phase.SUCCEEDED, 100, ""),
        "RequestRefused",
    ),
    "a gate that there is not is not put aside": (
        coins(PROGRESSING, asked={"skip-gate": f"horoscope@{ASKED}"}),
        (Phase.PROGRESSING, 25, "TooFewRequests"),
        "RequestRefused",
    ),
}


@cases(("observed", "expected"), {**BEGIN, **GO_ON})
def test_in_one_pass(observed: ModelObserved, expected: tuple[Phase, int, str] | None) -> None:
    found = rolled(observed)

    assert where(found) == expected
    assert (found.retry, found.return_to_previous, found.handled, found.events) == (False, False, (), ())


@cases(("observed", "expected", "events"), PEOPLE)
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


@cases(
    ("observed", "retry", "return_to_previous"),
    {
        "retry of what failed is granted": (coins(AT[Phase.ROLLED_BACK], FAILED, asked={"retry": ASKED}), True, False),
        "retry of what did not fail is refused": (
            coins(AT[Phase.ROLLED_BACK], FAILED, asked={"retry": THIRD.revision}),
            False,
            False,
        ),
        "rollback leaves what has succeeded for the one before": (
            coins(AT[Phase.SUCCEEDED], CHANGED, asked={"rollback": ASKED}),
            False,
            True,
        ),
        "rollback is refused where the one before is not kept": (
            coins(AT[Phase.SUCCEEDED], Roles(holder(SECOND)), asked={"rollback": ASKED}),
            False,
            False,
        ),
        "rollback needs no policy": (coins(None, CHANGED, policy=None, asked={"rollback": ASKED}), False, True),
        "rollback of what is watched is its rollout's matter": (
            coins(AT[Phase.BAKING], CHANGED, asked={"rollback": ASKED}),
            False,
            False,
        ),
    },
)
def test_words_that_the_roles_follow(observed: ModelObserved, retry: bool, return_to_previous: bool) -> None:
    found = rolled(observed)

    assert (found.retry, found.return_to_previous) == (retry, return_to_previous)


@cases(
    ("at", "roles", "expected", "ended"),
    {
        "who goes back to stable cancels": (PROGRESSING, SERVED, (Phase.CANCELLED, 0, "Superseded"), [Phase.CANCELLED]),
        "another candidate cancels the one before, and begins in the same pass": (
            PROGRESSING,
            OTHER,
            (Phase.PENDING, 0, "Proving"),
            [Phase.CANCELLED, Phase.PENDING],
        ),
        "what is watched and not stable any more is cancelled": (
            AT[Phase.BAKING],
            SERVED,
            (Phase.CANCELLED, 0, "Superseded"),
            [Phase.CANCELLED],
        ),
        "a candidate that fails on its servers is rolled back with their reason": (
            PROGRESSING,
            FAILED,
            (Phase.ROLLED_BACK, 0, FAILURE.reason),
            [Phase.ROLLED_BACK],
        ),
        "what has ended is not ended again": (AT[Phase.CANCELLED], SERVED, (Phase.CANCELLED, 0, ""), []),
    },
)
def test_when_the_roles_change(
    at: RolloutState, roles: Roles, expected: tuple[Phase, int, str], ended: list[Phase]
) -> None:
    found = rolled(coins(at, policy=POLICY), roles)

    assert where(found) == expected
    assert [Phase(int(record.progress.phase)) for record in found.records] == ended


@cases(
    "own",
    {"loading it": group(SECOND.revision, SECOND, state=ModelState.LOADING), "gone": lost(SECOND.revision, SECOND)},
)
def test_a_rollout_begins_at_weight_0_and_waits_for_servers_that_are(own: GroupObserved) -> None:
    found = rolled(coins(), groups=(MAIN, own))

    assert where(found) == (Phase.PENDING, 0, "Proving")
    assert record_of(found).name == f"{ASKED}-{int(NOW_S):08x}"


def test_a_candidate_that_lost_its_servers_is_not_quarantined_as_long_as_nobody_asked() -> None:
    found = rolled(coins(PROGRESSING), groups=(MAIN, lost(SECOND.revision, SECOND)))

    assert where(found)[:2] == (Phase.PROGRESSING, 25)


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
    assert (word.skipped, after.skipped, after.phase) == (("budget",), ("budget",), Phase.PROGRESSING)


def test_what_was_found_out_is_the_verdict_of_the_same_pass() -> None:
    asks = POLICY.model_copy(update={"gates": (BUDGET,)})
    found = rolled(coins(PROGRESSING, policy=asks), check_results={f"{NAME}/budget": ServiceStatus(404)})

    assert where(found) == (Phase.ROLLED_BACK, 0, "Breaches")
    assert [verdict.outcome for verdict in record_of(found).verdicts] == [Outcome.BREACH]


@cases(
    ("asked", "actor"),
    {
        "the engine": ({}, "segserve"),
        "who asked for it": ({"promote": f"{ASKED}@monday"}, f"promote={ASKED}@monday"),
        "not who was refused": ({"promote": THIRD.revision}, "segserve"),
    },
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


@cases(
    ("sequence", "records"),
    {
        "one decision behind its status is made to agree": (PROGRESSING.sequence + 1, ["LOST"]),
        "as new as its status is left alone": (PROGRESSING.sequence, []),
    },
)
@pytest.mark.parametrize("phase", sorted(ENDED))
def test_after_its_end_a_record(phase: Phase, sequence: int, records: list[str]) -> None:
    began = record_of(rolled(coins(PROGRESSING)))
    found = rolled(coins(replace(AT[phase], sequence=sequence), SERVED), records={NAME: began})

    assert [record.decisions[-1].signal for record in found.records] == records


def test_after_its_end_a_record_that_is_gone_stays_gone() -> None:
    assert rolled(coins(AT[Phase.SUCCEEDED], CHANGED)).records == ()


WRITTEN = {NAME: (PROGRESSING.sequence, NOW_S)}


@cases(
    ("written", "reason"),
    {
        "not while nothing is to be written": (WRITTEN, "Incident"),
        "with the next write": ({NAME: (PROGRESSING.sequence, NOW_S - MAX_WRITE_INTERVAL_S)}, "TooFewRequests"),
    },
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


@cases(
    ("samples", "requests"),
    {
        "gateways that do not answer are no look": ([{}, {}], []),
        "what was counted before the rollout is no look": ([sample(100, 9)], []),
        "a sample that says the same is no look": ([sample(100, 9), sample(100, 9)], []),
        "between two samples lies a look": ([sample(100, 9), sample(175, 34, at_s=NOW_S + 1)], [(75, 25)]),
        "what was counted while nobody answered comes with the next look": (
            [sample(100, 9), {}, sample(175, 34, at_s=NOW_S + 2)],
            [(75, 25)],
        ),
    },
)
def test_looks(samples: list[Sample], requests: list[tuple[int, int]]) -> None:
    assert [row.requests for row in record_of(passes(*samples)).rows] == requests


@cases(
    ("slo", "hangs_after_s"),
    {
        "10 s where nothing is promised": (None, 10),
        "four times the promised p99": (Slo(p99_milliseconds=500), 2),
        "four times the promised p95 where no p99 is promised": (Slo(p95_milliseconds=500), 2),
        "p99 goes before p95": (Slo(p95_milliseconds=500, p99_milliseconds=1000), 4),
        "1 s at least": (Slo(p99_milliseconds=10), 1),
        "10 s at most": (Slo(p99_milliseconds=9000), 10),
    },
)
def test_a_request_hangs_after(slo: Slo | None, hangs_after_s: int) -> None:
    under_way = [sample(75 * number, 9, at_s=NOW_S + number, active=3) for number in range(13)]
    rows = record_of(passes(*under_way, slo=slo)).rows
    hung = [dict(row.latencies[1]).get(len(EDGES_MS), 0) for row in rows]

    assert hung.index(3) + 1 == hangs_after_s
    assert sum(hung) == 3


@cases(
    ("written", "active", "due"),
    {
        "that was never written is due": (None, True, True),
        "with a decision that was not written is due at once": ((0, NOW_S), True, True),
        "with a decision that was not written is due after its end too": ((0, NOW_S), False, True),
        "that only saw more is not due yet": ((1, NOW_S - WRITE_INTERVAL_S + 1), True, False),
        "that only saw more is due now and then": ((1, NOW_S - MAX_WRITE_INTERVAL_S), True, True),
        "is due where the clock was put back": ((1, NOW_S + MAX_WRITE_INTERVAL_S), True, True),
        "of what has ended is due no more": ((1, NOW_S - MAX_WRITE_INTERVAL_S), False, False),
    },
)
def test_a_record(written: tuple[int, float] | None, active: bool, due: bool) -> None:
    record = record_of(rolled(coins(PROGRESSING)))
    observed = seen(coins(PROGRESSING), written={NAME: written} if written is not None else {})

    assert record.sequence == 1
    assert is_due(record, observed, active=active) is due


@cases(
    ("step_s", "interval_s"),
    {
        "often at first": (0.0, WRITE_INTERVAL_S),
        "less often the longer a step lasts": (150.0, 30.0),
        "every minute at last": (86_400.0, MAX_WRITE_INTERVAL_S),
    },
)
def test_a_record_without_a_decision_is_written(step_s: float, interval_s: float) -> None:
    at = replace(PROGRESSING, step_since_s=NOW_S - step_s)
    record = record_of(rolled(coins(at)))
    due = [
        is_due(record, seen(coins(at), written={NAME: (1, NOW_S - seconds)}))
        for seconds in (interval_s - 1, interval_s)
    ]

    assert due == [False, True]


@cases(
    ("observed", "keys"),
    {
        "what a rollout under way asks": (coins(PROGRESSING), [f"{NAME}/budget"]),
        "what one asks that has just begun": (coins(), [f"{ASKED}-{int(NOW_S):08x}/budget"]),
        "nothing without a rollout": (coins(policy=None), []),
        "nothing of one that has ended": (coins(AT[Phase.SUCCEEDED], CHANGED), []),
        "nothing of one that ends in this pass": (coins(PROGRESSING, asked={"abort": ASKED}), []),
    },
)
def test_is_to_be_found_out(observed: ModelObserved, keys: list[str]) -> None:
    wanted = observed.wanted
    policy = wanted.policy.model_copy(update={"gates": (BUDGET,)}) if wanted.policy is not None else None
    asks = replace(observed, wanted=replace(wanted, policy=policy))
    found = with_checks(rolled(asks), asks.roles, asks, seen(asks))

    assert [check.key for check in found.checks] == keys


@cases(
    ("at", "roles", "known", "keys"),
    {
        "keeps what it has found out under way": (PROGRESSING, CHANGING, True, [f"{NAME}/budget"]),
        "without a record has nothing found out": (PROGRESSING, CHANGING, False, []),
        "that has ended has nothing found out": (AT[Phase.SUCCEEDED], CHANGED, True, []),
        "that has not begun has nothing found out": (None, CHANGING, True, []),
    },
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

    assert (found.state.paused, found.state.resumed_s) == (False, NOW_S)
    assert found.state.undecided_since_s == NOW_S
