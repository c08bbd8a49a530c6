"""The registry of gates: what every registered gate keeps, and that a new one is a file, a spec and two lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from pydantic import Field

from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, state, world
from segserve_builder.spec.model_spec import Golden
from segserve_operator.api.crd import structural_schema
from segserve_operator.api.loading import parse
from segserve_operator.api.rollout_policy import (
    GATE_SPECS,
    AlphaGateSpec,
    CheckedGateSpec,
    GateSpec,
    RolloutPolicy,
    Slo,
)
from segserve_operator.api.segmentation_model import SegmentationModel, SegmentationModelSpec
from segserve_operator.api.segmentation_rollout import SegmentationRollout, SegmentationRolloutSpec
from segserve_operator.core import gates
from segserve_operator.core.advance import verdicts
from segserve_operator.core.advance.case import RolloutCase
from segserve_operator.core.advance.inputs import SOURCES, checks, gather_signals, verdicts_with
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates import GATES, error_rate, measured_gates
from segserve_operator.core.gates.base import (
    CheckedGateType,
    MeasuredGateType,
    Outcome,
    Verdict,
    judge_query,
    judge_webhook,
    no_answer,
)
from segserve_operator.core.gates.checks import CheckResult, FailedCheck, ResourceSamples, Scores, ServiceStatus
from segserve_operator.core.rollout.decisions import Rules
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.policy import alpha_shares, engine_policy
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.world.observed import PoolGateway, PoolObserved, Roles
from segserve_operator.mapping.rollouts import manifest_of, record_of, status_of

OWN: dict[str, dict[str, Any]] = {
    "webhook": {"name": "own", "url": "http://own.example/"},
    "promql": {"name": "own", "address": "http://prometheus.example", "query": "up", "max": 1.0},
}
CHECKED = [name for name, gate in GATES.items() if isinstance(gate, CheckedGateType)]
MEASURED = [name for name, gate in GATES.items() if isinstance(gate, MeasuredGateType)]
POOL = PoolObserved("default", gateway=PoolGateway(shadow=True))
ROLES = Roles(holder(FIRST, "main"), candidate(SECOND))
PROGRESSING = state(SECOND, Phase.PROGRESSING, weight=5)


def spec_of(name: str) -> Any:
    return GATES[name].spec(**OWN.get(name, {}))


def with_gates(*specs: GateSpec) -> RolloutPolicy:
    return RolloutPolicy(alpha=0.03).model_copy(update={"gates": specs})


def test_every_spec_belongs_to_the_gate_of_its_name_and_every_gate_to_its_spec() -> None:
    assert {name: gate.spec for name, gate in GATES.items()} == dict(GATE_SPECS)
    assert {name: spec.model_fields["gate"].default for name, spec in GATE_SPECS.items()} == {n: n for n in GATES}


def test_every_file_that_defines_a_gate_is_registered() -> None:
    folder = Path(str(gates.__file__)).parent
    defining = {path.stem for path in folder.glob("*.py") if "\nGATE: Final = " in path.read_text()}
    registered = {
        name for name, module in vars(gates).items() if any(getattr(module, "GATE", None) is g for g in GATES.values())
    }

    assert defining == registered
    of_services = [gate for gate in GATES.values() if getattr(gate, "judge", None) in (judge_query, judge_webhook)]
    assert len(registered) + len(of_services) == len(GATES)


def test_every_file_that_defines_a_source_of_verdicts_is_registered() -> None:
    folder = Path(str(verdicts.__file__)).parent
    defining = {path.stem for path in folder.glob("*.py") if "\nSOURCE: Final = " in path.read_text()}

    assert defining == {name for name, module in vars(verdicts).items() if getattr(module, "SOURCE", None) in SOURCES}
    assert len(defining) == len(SOURCES)


@pytest.mark.parametrize("name", MEASURED)
def test_a_measured_gate_is_undecided_without_data(name: str) -> None:
    gate = measured_gates(with_gates(spec_of(name)), Slo(p95_milliseconds=200))[name]

    assert gate.explain(gate.start(), 0.01).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("name", MEASURED)
def test_an_empty_window_proves_nothing(name: str) -> None:
    gate = measured_gates(with_gates(spec_of(name)), Slo(p95_milliseconds=200))[name]
    seen = gate.update(gate.start(), replace(EvidenceWindow.nothing(), seconds=np.array(5.0)))

    assert gate.explain(seen, 0.01).outcome is Outcome.UNDECIDED


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("result", [Scores(), ResourceSamples(()), FailedCheck("nobody answers")])
def test_a_checked_gate_is_undecided_without_a_result_and_says_why(name: str, result: CheckResult) -> None:
    gate = GATES[name]

    verdict = gate.judge(spec_of(name), result, RolloutPolicy(), 0.0025)

    assert verdict.outcome is Outcome.UNDECIDED
    assert getattr(result, "problem", "nothing to judge") in verdict.message


@pytest.mark.parametrize("name", CHECKED)
def test_a_checked_gate_without_a_verdict_holds_the_rollout(name: str) -> None:
    policy = with_gates(spec_of(name))
    labelled = SECOND.model_copy(update={"golden": Golden(uri="file:///golden", sha256="a" * 64)})
    observed = model(labelled, ROLES, policy=policy)

    assert not gather_signals(RolloutCase(record_with(policy), PROGRESSING, ROLES, observed, world(observed))).allowed


@pytest.mark.parametrize("name", GATES)
def test_a_gate_that_tests_declares_a_share_of_alpha_and_gets_it(name: str) -> None:
    spec = spec_of(name)

    assert isinstance(spec, AlphaGateSpec) is not GATES[name].is_rule
    assert alpha_shares(with_gates(spec)) == ({} if GATES[name].is_rule else {name: pytest.approx(0.03)})


class SharpnessGate(AlphaGateSpec):
    """A measured gate that somebody adds."""

    gate: Literal["sharpness"] = Field("sharpness", description="Name of the gate.")


class AuditGate(CheckedGateSpec):
    """A checked gate that somebody adds."""

    gate: Literal["audit"] = Field("audit", description="Name of the gate.")
    auditor: str = Field(description="Name of the auditor.")


def judge_audit(spec: AuditGate, result: CheckResult, _policy: RolloutPolicy, _level: float) -> Verdict:
    if not isinstance(result, ServiceStatus):
        return no_answer("audit", result)
    return Verdict("audit", Outcome.PASS, "Audited", f"{spec.auditor}: {result.status}")


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two gates more: a spec and a registry entry each, and nothing else."""
    sharpness = MeasuredGateType(SharpnessGate, error_rate.GATE.build, lambda _: 0.07)
    for name, gate in {"sharpness": sharpness, "audit": CheckedGateType(AuditGate, judge_audit)}.items():
        monkeypatch.setitem(GATES, name, gate)  # type: ignore[arg-type]
        monkeypatch.setitem(GATE_SPECS, name, gate.spec)  # type: ignore[arg-type]
    rebuild()
    yield
    monkeypatch.undo()
    rebuild()


def rebuild() -> None:
    """Build the types anew that hold the union of gates; a process does so once, when it starts."""
    for each in (RolloutPolicy, SegmentationModelSpec, SegmentationModel, SegmentationRolloutSpec, SegmentationRollout):
        each.model_rebuild(force=True)
    structural_schema.cache_clear()


@pytest.fixture
def policy(added: None) -> RolloutPolicy:
    return RolloutPolicy.model_validate(
        {"alpha": 0.03, "gates": [{"gate": "errorRate"}, {"gate": "sharpness", "alphaShare": 2.0},
                                  {"gate": "audit", "auditor": "Ada", "interval": "30s"}]}
    )  # fmt: skip


def test_an_added_gate_is_parsed_and_written_like_any_other(policy: RolloutPolicy) -> None:
    assert [type(gate).__name__ for gate in policy.gates] == ["ErrorRateGate", "SharpnessGate", "AuditGate"]
    assert policy.to_dict()["gates"][1:] == [
        {"gate": "sharpness", "alphaShare": 2.0},
        {"gate": "audit", "auditor": "Ada", "interval": "30s"},
    ]


@pytest.mark.usefixtures("added")
def test_an_added_gate_is_in_the_definition_with_its_own_fields() -> None:
    schema = structural_schema(SegmentationModel)["properties"]["spec"]["properties"]["rollout"]["properties"]
    item = schema["gates"]["items"]

    assert {"sharpness", "audit"} <= set(item["properties"]["gate"]["enum"])
    assert "audit needs auditor" in [rule["message"] for rule in item["x-kubernetes-validations"]]


def test_an_added_gate_has_its_share_of_alpha_and_its_tolerance(policy: RolloutPolicy) -> None:
    engine = engine_policy(policy)

    assert engine.levels == (pytest.approx(0.01), pytest.approx(0.02))
    assert engine.tolerances[1] == 0.07


def test_an_added_gate_is_undecided_without_data_and_judges_what_is_counted(policy: RolloutPolicy) -> None:
    rules = Rules.of(policy, Slo())
    states = {name: gate.start() for name, gate in rules.gates.items()}

    assert {verdict.outcome for verdict in rules.explain(states)} == {Outcome.UNDECIDED}
    window = EvidenceWindow(np.array(5.0), np.full(2, 200.0), np.zeros(2), np.zeros((2, len(EDGES_MS) + 1)))
    for _ in range(20):
        states = {name: gate.update(states[name], window) for name, gate in rules.gates.items()}
    assert {verdict.outcome for verdict in rules.explain(states)} == {Outcome.PASS}


def test_an_added_checked_gate_has_its_check_and_holds_the_rollout_until_it_passes(policy: RolloutPolicy) -> None:
    observed = model(SECOND, ROLES, policy=policy)
    record = record_with(policy)
    before = world(observed, groups=[group("main", FIRST), group(SECOND.revision, SECOND)])

    [check] = checks(RolloutCase(record, PROGRESSING, ROLES, observed, before))
    assert (check.purpose, check.gate, check.interval_s) == ("check", "audit", 30.0)
    assert not gather_signals(RolloutCase(record, PROGRESSING, ROLES, observed, before)).allowed

    after = replace(before, check_results={check.key: ServiceStatus(200)})
    judged = replace(record, verdicts=verdicts_with(RolloutCase(record, PROGRESSING, ROLES, observed, after)))
    assert [(verdict.gate, verdict.message) for verdict in judged.verdicts] == [("audit", "Ada: 200")]
    assert gather_signals(RolloutCase(judged, PROGRESSING, ROLES, observed, after)).allowed


def test_the_verdict_of_an_added_gate_is_shown_in_the_status_and_read_back(policy: RolloutPolicy) -> None:
    verdict = Verdict("audit", Outcome.PASS, "Audited", "Ada: in order")
    record = replace(record_with(policy), verdicts=(verdict,))

    manifest = {**manifest_of(record), "status": status_of(record, datetime.now(UTC))}
    written = parse(manifest, "store")

    assert isinstance(written, SegmentationRollout)
    assert [(each.gate, each.outcome, each.message) for each in written.status.verdicts] == [
        ("audit", "Pass", "Ada: in order")
    ]
    assert record_of(manifest, ()).verdicts == (verdict,)


def record_with(policy: RolloutPolicy) -> Record:
    return Record(
        name=PROGRESSING.rollout,
        model="coins",
        stable=FIRST.revision,
        candidate=SECOND.revision,
        policy=policy,
        slo=Slo(),
        progress=Progress.begun(1000.0),
    )


def test_a_gate_of_a_user_is_asked_and_judged_by_its_own_name() -> None:
    own = {"gate": "webhook", "name": "carbon", "url": "http://own.example/"}
    policy = RolloutPolicy.model_validate({"shadow": {}, "gates": [{"gate": "errorRate"}, own]})
    observed, record = model(SECOND, ROLES, policy=policy), record_with(policy)
    quiet = replace(state(SECOND, Phase.SHADOW), since_s=-1000.0, step_since_s=-1000.0)
    groups = [group("main", FIRST), group(SECOND.revision, SECOND)]
    now = replace(world(observed, groups=groups), pool=POOL)
    asked = checks(RolloutCase(record, quiet, ROLES, observed, now))
    after = replace(
        world(observed, groups=groups),
        check_results={check.key: ServiceStatus(404) for check in asked},
    )
    judged = replace(record, verdicts=verdicts_with(RolloutCase(record, PROGRESSING, ROLES, observed, after)))
    read = record_of({**manifest_of(judged), "status": status_of(judged, datetime.now(UTC))}, ())

    assert len({check.key for check in asked}) == len(asked)
    assert [check.gate for check in asked if check.purpose == "check"] == ["carbon"]
    assert {each.gate: each.reason for each in read.verdicts}["carbon"] == "Breaches"
    assert gather_signals(RolloutCase(judged, PROGRESSING, ROLES, observed, after)).forbidden
    assert list(Rules.of(read.policy, Slo()).gates) == ["errorRate"]
