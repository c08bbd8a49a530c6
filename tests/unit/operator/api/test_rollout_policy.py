"""What is told of an SLO or a rollout policy that cannot be, and what a good one means."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from segserve_operator.api.crd import structural_schema
from segserve_operator.api.rollout_policy import DEFAULT_GATES, DEFAULT_STEPS, RolloutPolicy, Slo, gate_name
from segserve_operator.api.segmentation_model import SegmentationModel, SegmentationModelSpec
from segserve_operator.api.segmentation_rollout import RolloutPhase, SegmentationRollout
from segserve_operator.core.rollout.phases import Phase

from .conftest import loaded, problem

WEBHOOK = {"gate": "webhook", "name": "night", "url": "http://night/"}


def test_a_model_that_says_nothing_of_it_has_neither_slo_nor_policy(coins_value: dict[str, Any]) -> None:
    spec = loaded(coins_value).spec

    assert (spec.slo, spec.rollout) == (None, None)


def test_an_empty_policy_is_a_whole_one(coins_value: dict[str, Any]) -> None:
    spec = loaded(coins_value, slo={}, rollout={}).spec

    assert spec.slo == Slo(error_percent=1.0)
    assert spec.rollout == RolloutPolicy()
    assert spec.rollout.deadline == timedelta(hours=6)
    assert spec.rollout.to_dict()["deadline"] == "6h"
    assert (spec.rollout.steps, spec.rollout.gates) == (DEFAULT_STEPS, DEFAULT_GATES)


def test_what_the_cluster_fills_in_is_what_the_types_fill_in(coins_value: dict[str, Any]) -> None:
    """The defaults of the definition, put into an empty policy as an API server does."""
    schema = structural_schema(SegmentationModel)["properties"]["spec"]["properties"]["rollout"]["properties"]
    filled = {name: field["default"] for name, field in schema.items() if "default" in field}

    assert set(schema) - set(filled) == {"shadow"}  # which is off unless somebody asks for it
    assert loaded(coins_value, rollout=filled).spec.rollout == RolloutPolicy()


def test_a_policy_does_not_change_the_revision(coins_value: dict[str, Any]) -> None:
    plain, rolled = loaded(coins_value), loaded(coins_value, rollout={}, slo={"p95Milliseconds": 120})

    assert rolled.assigned == plain.assigned


@pytest.mark.parametrize(
    ("slo", "said"),
    [
        pytest.param({"p95Milliseconds": 123}, "slo.p95Milliseconds: must have at most two significant digits, such as",
                     id="a latency between bins"),
        pytest.param({"p50Milliseconds": 200, "p95Milliseconds": 100},
                     "slo.p95Milliseconds: a higher percentile needs a latency at least as long as a lower one's: "
                     "p50Milliseconds is 200, p95Milliseconds is 100", id="p95 before p50"),
        pytest.param({"p50Milliseconds": 200, "p99Milliseconds": 100}, "slo.p99Milliseconds", id="p99 before p50"),
        pytest.param({"errorPercent": 0}, "slo.errorPercent: must be more than 0, got 0", id="no budget at all"),
    ],
)  # fmt: skip
def test_an_slo_that_cannot_be_measured_is_refused(coins_value: dict[str, Any], slo: Any, said: str) -> None:
    assert said in problem(coins_value, slo=slo)


@pytest.mark.parametrize("milliseconds", [0.5, 1, 10, 12, 99, 250, 1200, 36000, 100_000])
def test_latencies_of_two_digits_are_taken(coins_value: dict[str, Any], milliseconds: float) -> None:
    slo = loaded(coins_value, slo={"p99Milliseconds": milliseconds}).spec.slo

    assert slo.p99_milliseconds == milliseconds


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        pytest.param({"steps": [{"weight": 20}, {"weight": 10}]},
                     "rollout.steps[1].weight: weights must increase from step to step, got 10 after 20", id="falling"),
        pytest.param({"steps": [{"weight": 20}, {"weight": 20}]}, "got 20 after 20", id="the same weight twice"),
        pytest.param({"steps": [{"weight": 100}]}, "steps[0].weight: must be at most 99", id="all"),
        pytest.param({"steps": [{"weight": 5, "minDuration": "10m", "maxDuration": "90s"}]},
                     "steps[0].minDuration: minDuration must not be longer than maxDuration, got 10m and 1m30s",
                     id="over first"),
        pytest.param({"steps": []}, "rollout.steps: the strategy canary needs", id="a canary without steps"),
        pytest.param({"strategy": "blueGreen", "steps": [{"weight": 10}]},
                     "rollout.steps: steps are for the strategy canary", id="steps of what has none"),
        pytest.param({"deadline": "0s"}, "rollout.deadline: must be longer than 0s, got 0s", id="no time"),
        pytest.param({"alpha": 0.5}, "rollout.alpha: must be at most 0.2", id="too many false alarms"),
        pytest.param({"gates": [{"gate": "latency"}, {"gate": "latency"}]},
                     "rollout.gates[1]: each gate and each name may be listed only once: gates[0] is 'latency'",
                     id="a gate twice"),
        pytest.param({"gates": [WEBHOOK, WEBHOOK]}, "gates[0] is 'night' already", id="a name twice"),
        pytest.param({"gates": [{**WEBHOOK, "name": "resource"}]},
                     "rollout.gates[0].name: the name 'resource' belongs to another gate", id="a gate's name"),
        pytest.param({"gates": [{"gate": "latncy"}]},
                     "rollout.gates[0].gate: unknown gate 'latncy' (did you mean 'latency'?)", id="an unknown gate"),
        pytest.param({"gates": [{}]}, "rollout.gates[0]: field 'gate' is missing", id="a gate without its name"),
        pytest.param({"gates": [{"gate": "webhook", "name": "night"}]},
                     "rollout.gates[0]: field 'url' is missing", id="a gate without what it needs"),
        pytest.param({"gates": [{"gate": "latency", "url": "http://a"}]},
                     "rollout.gates[0]: unknown field 'url'; known: alphaShare, gate", id="a field of another gate"),
        pytest.param({"gates": [{"gate": "goldenQuality", "minIou": 2}]},
                     "rollout.gates[0].minIou: must be at most 1", id="more than all"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_followed_is_refused_with_its_place(
    coins_value: dict[str, Any], rollout: Any, said: str
) -> None:
    assert said in problem(coins_value, rollout=rollout)


@pytest.mark.parametrize("strategy", ["blueGreen", "immediate"])
@pytest.mark.parametrize("steps", [{}, {"steps": []}, {"steps": [{"weight": w} for w in (5, 25, 50)]}])
def test_what_has_no_steps_may_say_so_or_nothing(
    coins_value: dict[str, Any], strategy: str, steps: dict[str, Any]
) -> None:
    """The default is among them: an API server writes it into every policy."""
    policy = loaded(coins_value, rollout={"strategy": strategy, **steps}).spec.rollout

    assert policy.strategy == strategy


def test_a_gate_is_called_what_its_user_calls_it(coins_value: dict[str, Any]) -> None:
    policy = loaded(coins_value, rollout={"gates": [WEBHOOK, {"gate": "latency"}]}).spec.rollout

    assert [gate_name(gate) for gate in policy.gates] == ["night", "latency"]


def test_statuses_name_every_phase_that_the_engine_knows() -> None:
    assert {phase.value for phase in RolloutPhase} == {phase.label for phase in Phase}


def test_what_a_rollout_is_about_cannot_be_changed() -> None:
    spec = structural_schema(SegmentationRollout)["properties"]["spec"]

    assert [rule["rule"] for rule in spec["x-kubernetes-validations"]] == ["self == oldSelf"]


def test_floors_of_quality_need_golden_images() -> None:
    spec = {
        "artifact": {"uri": "model.onnx", "sha256": "0" * 64},
        "family": "semantic-logits",
        "classes": [{"id": 0, "name": "background"}, {"id": 1, "name": "coin"}],
        "postprocess": [{"argmax": {}}],
        "rollout": {"gates": [{"gate": "goldenQuality", "minIou": 0.9}]},
    }

    with pytest.raises(ValidationError, match=r"minIou of goldenQuality needs spec\.golden, which is not set"):
        SegmentationModelSpec.model_validate(spec)
