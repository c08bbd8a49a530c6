"""What a rollout hears beside the gateways' counts, and what it has found out, world by world."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np

from fakes.cases import cases
from fakes.observed_models import (
    CELLS,
    FAILURE,
    FIRST,
    NOW_S,
    SECOND,
    THIRD,
    candidate,
    group,
    holder,
    lost,
    model,
    rollout_record,
    state,
    world,
)
from segserve_builder.agent.protocol import ModelState
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.rollout_policy import (
    ErrorRateGate,
    GoldenQualityGate,
    PromqlGate,
    ResourceGate,
    RolloutPolicy,
    Slo,
    WebhookGate,
)
from segserve_operator.core.advance.case import RolloutCase, groups_of, is_about
from segserve_operator.core.advance.inputs import checks, gather_signals, sampled_groups, verdicts_with
from segserve_operator.core.advance.verdicts.probe import LONGEST_S
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import CheckResult, FailedCheck, ProbeCounts, ServiceStatus
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_operator.core.rollout.record import Record, RolloutState
from segserve_operator.core.traffic import TrafficState
from segserve_operator.core.world.observed import ModelObserved, Observed, Roles, SloWatch
from segserve_operator.core.world.slo import INTERVAL_S

LABELLED = SECOND.model_copy(update={"golden": Golden(uri="file:///golden", sha256="a" * 64)})
CHANGING = Roles(holder(FIRST, "main"), candidate(SECOND))
PROMOTED = Roles(holder(SECOND), previous=holder(FIRST, "main"))
ALONE = Roles(holder(FIRST, "main"))
MAIN, OWN = group("main", FIRST), group(SECOND.revision, SECOND)
BUDGET = WebhookGate(name="budget", url="http://budget.example/", interval=timedelta(seconds=5))
QUERY = PromqlGate(name="drift", address="http://prometheus.example", query="up", max=1.0)
POLICY = RolloutPolicy(gates=(ErrorRateGate(), GoldenQualityGate(), BUDGET))
PROGRESSING = state(SECOND, Phase.PROGRESSING)
GOLDEN, PENDING, QUARANTINED, BAKING = (
    state(SECOND, phase) for phase in (Phase.GOLDEN, Phase.PENDING, Phase.QUARANTINED, Phase.BAKING)
)
PROBE = f"{PROGRESSING.rollout}/probe/0"


def said(gate: str, outcome: Outcome) -> Verdict:
    return Verdict(gate, outcome, "Said", "so it is")


def record(*verdicts: Verdict, policy: RolloutPolicy = POLICY) -> Record:
    return rollout_record(PROGRESSING, *verdicts, policy=policy)


def coins(roles: Roles = CHANGING, wanted: Any = LABELLED, **changes: Any) -> ModelObserved:
    return model(wanted, roles, policy=POLICY, **changes)


def seen(*models: ModelObserved, groups: Any = (MAIN, OWN), **changes: Any) -> Observed:
    return world(*models, groups=groups, **changes)


@cases(
    ("at", "roles", "groups"),
    {
        "the candidate beside stable": (PROGRESSING, CHANGING, ("main", SECOND.revision)),
        "nobody where no role is taken": (PENDING, Roles(), ("", "")),
        "no group of a candidate that waits for its turn": (
            PENDING,
            Roles(holder(FIRST, "main"), candidate(SECOND, None)),
            ("main", ""),
        ),
        "the promoted revision beside the one that it replaced": (BAKING, PROMOTED, ("main", SECOND.revision)),
        "the promoted revision alone where the former is not kept": (
            BAKING,
            Roles(holder(SECOND)),
            ("", SECOND.revision),
        ),
    },
)
def test_evidence_compares(at: RolloutState, roles: Roles, groups: tuple[str, str]) -> None:
    assert groups_of(at, roles) == groups


@cases(
    ("at", "roles", "about"),
    {
        "the candidate is the one that is rolled out": (PROGRESSING, CHANGING, True),
        "another candidate takes its place": (PROGRESSING, Roles(holder(FIRST, "main"), candidate(THIRD)), False),
        "nobody is a candidate any more": (PROGRESSING, ALONE, False),
        "what is watched is stable by now": (BAKING, PROMOTED, True),
        "another revision became stable meanwhile": (BAKING, ALONE, False),
        "nothing is stable": (BAKING, Roles(), False),
        "a candidate came while the former was watched": (BAKING, Roles(holder(SECOND), candidate(THIRD)), False),
    },
)
def test_a_rollout_is_still_the_one_that_the_roles_ask_for(at: RolloutState, roles: Roles, about: bool) -> None:
    assert is_about(at, roles) is about


SLO = Slo(p95_milliseconds=250)


@cases(
    ("observed", "watch", "groups"),
    {
        "of a rollout both groups, at every look": (
            coins(rollout=PROGRESSING),
            SloWatch(measured_s=NOW_S),
            ("main", SECOND.revision),
        ),
        "of what is only being proved nothing, without an SLO": (coins(rollout=PENDING), None, None),
        "stable's alone for its SLO while the candidate is only being proved": (
            model(LABELLED, CHANGING, slo=SLO, rollout=PENDING),
            None,
            ("main", ""),
        ),
        "an SLO's when it is due": (
            model(FIRST, ALONE, slo=SLO),
            SloWatch(measured_s=NOW_S - INTERVAL_S),
            ("main", ""),
        ),
        "an SLO's not before it is due": (
            model(FIRST, ALONE, slo=SLO),
            SloWatch(measured_s=NOW_S - INTERVAL_S + 1),
            None,
        ),
        "an SLO's at once where the clock was put back": (
            model(FIRST, ALONE, slo=SLO),
            SloWatch(measured_s=NOW_S + 2 * INTERVAL_S),
            ("main", ""),
        ),
        "nothing where nothing is stable": (model(FIRST, Roles(), slo=SLO), None, None),
        "nothing where nothing was promised": (model(FIRST, ALONE), None, None),
        "of a rollout that has ended stable's alone": (
            model(FIRST, ALONE, slo=SLO, rollout=state(SECOND, Phase.ROLLED_BACK)),
            None,
            ("main", ""),
        ),
    },
)
def test_gateways_are_asked_for_the_counts_of(
    observed: ModelObserved, watch: SloWatch | None, groups: tuple[str, str] | None
) -> None:
    watches = {"coins": watch} if watch is not None else {}

    assert sampled_groups([observed], watches, NOW_S) == ({"coins": groups} if groups is not None else {})


PASSED = (said("goldenQuality", Outcome.PASS), said("budget", Outcome.PASS))
LOADING = group(SECOND.revision, SECOND, state=ModelState.LOADING)


def probed(failed: int, asked: int = 40) -> dict[str, CheckResult]:
    return {PROBE: ProbeCounts((asked, asked), (0, failed))}


@cases(
    ("at", "known", "roles", "observed", "heard"),
    {
        "all is well": (
            PROGRESSING,
            record(*PASSED),
            CHANGING,
            seen(coins()),
            {"ready": True, "lost": False, "golden": 1, "probes": 0, "forbidden": False, "allowed": True},
        ),
        "what is still loaded is not ready, and not lost while it has no requests": (
            PENDING,
            record(),
            CHANGING,
            seen(coins(), groups=(MAIN, LOADING)),
            {"ready": False, "lost": False},
        ),
        "one of two servers is not ready": (
            PENDING,
            record(),
            CHANGING,
            seen(coins(), groups=(MAIN, replace(OWN, wanted=2))),
            {"ready": False},
        ),
        "what no gateway knows is not ready": (
            PENDING,
            record(),
            CHANGING,
            seen(coins(), traffic=TrafficState(None)),
            {"ready": False},
        ),
        "a group that the gateways know for another revision is not ready": (
            PENDING,
            record(),
            CHANGING,
            seen(coins(Roles(holder(FIRST, "main"), candidate(THIRD, SECOND.revision)))),
            {"ready": False, "superseded": False},
        ),
        "no group is not ready": (PENDING, record(), CHANGING, seen(coins(), groups=(MAIN,)), {"ready": False}),
        "requests whose servers are gone are lost": (
            PROGRESSING,
            record(),
            CHANGING,
            seen(coins(), groups=(MAIN, lost(SECOND.revision, SECOND))),
            {"lost": True, "ready": False},
        ),
        "requests whose group is gone are lost": (
            PROGRESSING,
            record(),
            CHANGING,
            seen(coins(), groups=(MAIN,)),
            {"lost": True},
        ),
        "what nobody wants any more is not lost but superseded": (
            PROGRESSING,
            record(),
            ALONE,
            seen(coins(), groups=(MAIN,)),
            {"lost": False, "superseded": True},
        ),
        "a candidate that failed on its servers is forbidden, not superseded": (
            PROGRESSING,
            record(),
            Roles(holder(FIRST, "main"), candidate(SECOND, failure=FAILURE)),
            seen(coins()),
            {"forbidden": True, "superseded": False},
        ),
        "a gate that was not asked yet does not allow": (
            PROGRESSING,
            record(said("goldenQuality", Outcome.PASS)),
            CHANGING,
            seen(coins()),
            {"allowed": False, "forbidden": False, "golden": 1},
        ),
        "a gate without a verdict does not allow": (
            PROGRESSING,
            record(said("goldenQuality", Outcome.PASS), said("budget", Outcome.UNDECIDED)),
            CHANGING,
            seen(coins()),
            {"allowed": False, "forbidden": False},
        ),
        "a gate that breaches forbids": (
            PROGRESSING,
            record(said("goldenQuality", Outcome.PASS), said("budget", Outcome.BREACH)),
            CHANGING,
            seen(coins()),
            {"allowed": False, "forbidden": True},
        ),
        "a gate that was put aside says nothing": (
            replace(PROGRESSING, skipped=("budget",)),
            record(said("goldenQuality", Outcome.PASS), said("budget", Outcome.BREACH)),
            CHANGING,
            seen(coins()),
            {"allowed": True, "forbidden": False},
        ),
        "labels that are not answered": (GOLDEN, record(), CHANGING, seen(coins()), {"golden": 0, "allowed": False}),
        "labels that fail": (
            GOLDEN,
            record(said("goldenQuality", Outcome.BREACH), said("budget", Outcome.PASS)),
            CHANGING,
            seen(coins()),
            {"golden": -1, "forbidden": True},
        ),
        "a model without labels is not asked for them": (
            GOLDEN,
            record(said("budget", Outcome.PASS)),
            CHANGING,
            seen(coins(wanted=SECOND)),
            {"golden": 1, "allowed": True},
        ),
        "a spec that cannot be read has no labels": (
            GOLDEN,
            record(said("budget", Outcome.PASS)),
            CHANGING,
            seen(coins(wanted=None)),
            {"golden": 1, "allowed": True},
        ),
        "who gives all requests at once does not wait for labels": (
            GOLDEN,
            record(policy=RolloutPolicy(strategy="immediate", gates=(GoldenQualityGate(),))),
            CHANGING,
            seen(coins()),
            {"golden": 1, "allowed": True},
        ),
        "nothing was probed yet": (QUARANTINED, record(), CHANGING, seen(coins()), {"probes": 0}),
        "probes are answered": (QUARANTINED, record(), CHANGING, seen(coins(), check_results=probed(0)), {"probes": 1}),
        "probes fail": (QUARANTINED, record(), CHANGING, seen(coins(), check_results=probed(40)), {"probes": -1}),
        "the probes of a former quarantine say nothing of this one": (
            replace(QUARANTINED, quarantines=1),
            record(),
            CHANGING,
            seen(coins(), check_results=probed(0)),
            {"probes": 0},
        ),
    },
)
def test_a_decision_hears(
    at: RolloutState, known: Record, roles: Roles, observed: Observed, heard: dict[str, Any]
) -> None:
    found = gather_signals(RolloutCase(known, at, roles, observed.models[0], observed))

    assert {name: np.asarray(getattr(found, name)).item() for name in heard} == heard


def orders(
    at: RolloutState = PROGRESSING, policy: RolloutPolicy = POLICY, roles: Roles = CHANGING, now_s: float = NOW_S
) -> dict[str, str]:
    """Return what is ordered: purpose by key."""
    observed = seen(coins(roles), now_s=now_s)
    case = RolloutCase(record(policy=policy), at, roles, observed.models[0], observed)
    return {each.key: each.purpose for each in checks(case)}


ROLLOUT = PROGRESSING.rollout
GATES_ASKED = {f"{ROLLOUT}/budget": "check"}


@cases(
    ("at", "roles", "ordered"),
    {
        "each gate that somebody has to be asked for": (PROGRESSING, CHANGING, GATES_ASKED),
        "gates before the first request too": (GOLDEN, CHANGING, GATES_ASKED),
        "gates of what is watched": (BAKING, PROMOTED, GATES_ASKED),
        "probes beside the gates of what is quarantined": (
            QUARANTINED,
            CHANGING,
            {f"{ROLLOUT}/probe/0": "probe", **GATES_ASKED},
        ),
        "new probes in each quarantine": (
            replace(QUARANTINED, quarantines=2),
            CHANGING,
            {f"{ROLLOUT}/probe/2": "probe", **GATES_ASKED},
        ),
        "no gate that was put aside": (replace(PROGRESSING, skipped=("budget",)), CHANGING, {}),
        "nothing of what is only being proved": (PENDING, CHANGING, {}),
        "nothing where nothing is stable": (PROGRESSING, Roles(None, candidate(SECOND)), {}),
        **{f"nothing of what is {phase.label}": (state(SECOND, phase), CHANGING, {}) for phase in sorted(ENDED)},
    },
)
def test_what_is_to_be_found_out(at: RolloutState, roles: Roles, ordered: dict[str, str]) -> None:
    assert orders(at, roles=roles) == ordered


@cases(
    "gate",
    {
        "a service": BUDGET,
        "a query": QUERY.model_copy(update={"interval": timedelta(seconds=5)}),
        "servers": ResourceGate(interval=timedelta(seconds=5)),
    },
)
def test_an_order_stays_the_same_however_often_it_falls_due(gate: Any) -> None:
    policy = RolloutPolicy(gates=(gate,))
    first = orders(policy=policy)

    assert len(first) == 1
    assert all(orders(policy=policy, now_s=NOW_S + seconds) == first for seconds in range(60))


def test_another_rollout_of_the_same_revision_orders_anew() -> None:
    again = replace(PROGRESSING, rollout=f"{SECOND.revision}-2")

    assert not orders().keys() & orders(again).keys()


def test_an_order_says_whom_it_is_about_and_how_often_it_is_due() -> None:
    observed = seen(coins())
    quarantined = replace(QUARANTINED, weight=0)
    probe, budget = checks(RolloutCase(record(), quarantined, CHANGING, observed.models[0], observed))

    assert (probe.seconds, probe.interval_s) == (LONGEST_S, math.inf)
    assert (budget.interval_s, budget.gate, budget.spec) == (5.0, "budget", BUDGET)
    for each in (probe, budget):
        assert each.sides == (("main", FIRST.revision), (SECOND.revision, SECOND.revision))
        assert (each.model, each.phase, each.weight) == ("coins", "Quarantined", 0)


BUDGET_KEY = f"{ROLLOUT}/budget"
KNOWN = said("budget", Outcome.PASS)


@cases(
    ("found", "verdict"),
    {
        "a verdict stays while nothing is found out": ({}, ("Pass", "Said")),
        "an answer renews it": (
            {BUDGET_KEY: ServiceStatus(404)},
            ("Breach", "Breaches"),
        ),
        "a problem takes it back": (
            {BUDGET_KEY: FailedCheck("nobody is there")},
            ("Undecided", "NoAnswer"),
        ),
        "another rollout's answer is none": (
            {"coins-x-2/budget": ServiceStatus(404)},
            ("Pass", "Said"),
        ),
    },
)
def test_the_verdict_of_a_gate(found: dict[str, CheckResult], verdict: tuple[str, str]) -> None:
    observed = seen(coins(), check_results=found)
    verdicts = verdicts_with(RolloutCase(record(KNOWN), PROGRESSING, CHANGING, observed.models[0], observed))

    assert [(each.outcome.value, each.reason) for each in verdicts if each.gate == "budget"] == [verdict]


def test_what_was_put_aside_keeps_its_last_verdict() -> None:
    found = {BUDGET_KEY: ServiceStatus(404)}
    observed = seen(coins(), check_results=found)
    at = replace(PROGRESSING, skipped=("budget",))

    assert KNOWN in verdicts_with(RolloutCase(record(KNOWN), at, CHANGING, observed.models[0], observed))


def test_gates_that_are_measured_or_scored_by_agents_are_nobodys_to_ask() -> None:
    observed = seen(model(CELLS, Roles(holder(CELLS, "main"))), coins())
    only_measured = record(policy=RolloutPolicy(gates=(ErrorRateGate(), GoldenQualityGate())))

    assert checks(RolloutCase(only_measured, PROGRESSING, CHANGING, observed.models[1], observed)) == ()
