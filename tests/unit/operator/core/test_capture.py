"""What gateways are told to capture: the model's spec.capture, with the groups and classes that are true now."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fakes.observed_models import FIRST, SECOND, candidate, group, holder, model, world
from segserve_builder.capture.rule import CaptureReason, CaptureRule, RedactionRule
from segserve_builder.steps.pipeline import PostprocessStep, PreprocessStep
from segserve_operator.adapters.traffic.plans import dump_plan, load_plan
from segserve_operator.api.segmentation_model import Capture, Redact
from segserve_operator.core.models.capture import capture_rule
from segserve_operator.core.models.planning import desired_state
from segserve_operator.core.traffic import Share, TrafficPlan
from segserve_operator.core.world.observed import (
    ModelObserved,
    Observed,
    ObservedCondition,
    PoolGateway,
    PoolObserved,
    Roles,
)

CAPTURE = Capture(share=0.5, sink="s3://bucket/samples", when=("disagree",))
STABLE = Roles(holder(FIRST, "main"))
CLASSES = {item.name: item.id for item in FIRST.pipeline.classes}


def asked(capture: Capture | None = CAPTURE, roles: Roles = STABLE) -> ModelObserved:
    observed = model(FIRST, roles)
    assert observed.wanted is not None
    return replace(observed, wanted=replace(observed.wanted, capture=capture))


def plan(at: Observed) -> TrafficPlan:
    traffic = desired_state(at).traffic
    assert traffic is not None
    return traffic


def rule(at: Observed) -> CaptureRule | None:
    return plan(at).routes[0].capture


def degraded(at: Observed) -> str:
    """Return why the model says that it keeps no samples."""
    (status,) = desired_state(at).statuses.values()
    (found,) = (each for each in status.conditions if each.type == "Degraded")
    return found.message if found.reason == "NothingCaptured" else ""


def test_a_rule_names_stable_and_survives_the_plans_json() -> None:
    told = plan(world(asked(), groups=[group("main", FIRST)]))

    (route,) = told.routes
    assert (route.capture.group, route.capture.revision, route.capture.other) == ("main", FIRST.revision, "")
    assert route.capture.when == (CaptureReason.DISAGREE,)
    assert {item.name: item.id for item in route.capture.classes} == CLASSES
    assert load_plan(dump_plan(told)) == told


def test_another_revision_that_is_loaded_is_asked_too() -> None:
    roles = Roles(holder(FIRST, "main"), previous=holder(SECOND))
    told = rule(world(asked(roles=roles), groups=[group("main", FIRST), group(SECOND.revision, SECOND)]))

    assert told.other == SECOND.revision


def test_nothing_is_captured_unless_asked_nor_where_the_gateways_cannot() -> None:
    groups = [group("main", FIRST)]
    not_allowed = world(asked(), groups=groups, pool=PoolObserved(gateway=PoolGateway(capture=False)))
    assert rule(world(asked(None), groups=groups)) is None
    assert rule(not_allowed) is None
    assert "set its spec.gateway.capture" in degraded(not_allowed)
    assert degraded(world(asked(), groups=groups)) == ""
    assert rule(world(replace(asked(), wanted=None), groups=groups)) is None


def test_drift_is_a_reason_while_the_model_drifts_and_alone_it_captures_nothing_otherwise() -> None:
    groups = [group("main", FIRST)]
    some = CAPTURE.model_copy(update={"when": ("empty", "drift")})
    alone = CAPTURE.model_copy(update={"when": ("drift",)})

    def told(capture: Capture, status: str) -> tuple[tuple[str, ...], float, int, float]:
        model = asked(capture)
        conditions = (ObservedCondition("Drifting", status, "ImagesChanged", ""),)
        model = replace(model, status=replace(model.status, conditions=conditions))
        found = rule(world(model, groups=groups))
        return found.when, found.share, found.per_minute, found.retention_s

    captured = CAPTURE.share, CAPTURE.per_minute, CAPTURE.retention.total_seconds()
    assert told(some, "False") == (("empty",), *captured)
    assert told(some, "True") == (("empty", "drift"), *captured)
    assert told(alone, "Unknown") == ((), 0.0, 0, captured[-1])
    assert told(alone, "True") == (("drift",), *captured)


def test_a_model_without_capture_has_the_plan_that_it_had_before() -> None:
    assert "capture" not in str(dump_plan(plan(world(asked(None), groups=[group("main", FIRST)]))))


def test_nothing_is_captured_while_nobody_knows_what_to_redact() -> None:
    groups = [group("main", FIRST)]
    name = next(iter(CLASSES))
    own = CAPTURE.model_copy(update={"redact": Redact(classes=(name,))})
    other = CAPTURE.model_copy(update={"redact": Redact(classes=("face",), model="faces")})
    gone = CAPTURE.model_copy(update={"redact": Redact(classes=("gone",))})

    told = rule(world(asked(own), groups=groups))
    assert told.redact == RedactionRule(ids=(CLASSES[name],))
    assert rule(world(asked(other), groups=groups)) is None
    assert rule(world(asked(gone), groups=groups)) is None
    assert "does not have all classes to redact: gone" in degraded(world(asked(gone), groups=groups))
    assert "the model 'faces'" in degraded(world(asked(other), groups=groups))


def test_a_candidate_without_servers_is_not_asked() -> None:
    roles = Roles(holder(FIRST, "main"), candidate=candidate(SECOND))
    told = rule(world(asked(roles=roles), groups=[group("main", FIRST), group(SECOND.revision, servers=0)]))

    assert told.other == ""


@pytest.mark.parametrize(
    ("family", "stages", "threshold"),
    [
        ("yolo-seg", [], 0.25),
        ("yolo-seg", [{"scoreThreshold": {"threshold": 0.1}}, {"nms": {}}, {"cropMasks": {"threshold": 0.5}}], 0.1),
        ("yolo-seg", [{"softNms": {"scoreThreshold": 0.02}}, {"cropMasks": {}}], 0.02),
        ("mask2former", [{"instanceQueries": {"threshold": 0.7}}], 0.7),
        ("semantic-logits", [], None),
    ],
)
def test_the_threshold_of_uncertain_answers_is_that_of_scores_and_not_of_pixels(
    family: str, stages: list[dict[str, object]], threshold: float | None
) -> None:
    steps = tuple(map(PostprocessStep.model_validate, stages))
    pipeline = FIRST.pipeline.model_copy(update={"family": family, "postprocess": steps})
    stable = FIRST.model_copy(update={"pipeline": pipeline})
    told = capture_rule(asked(), stable, [Share("main", FIRST.revision, 100, ())], world(asked()))

    assert told.threshold == threshold


@pytest.mark.parametrize(("dtype", "kept"), [("UINT8", (0, 4095)), ("UINT16", None)])
def test_samples_of_8_bits_are_scaled_as_for_the_network_and_those_of_16_bits_when_they_are_segmented_again(
    dtype: str, kept: tuple[int, int] | None
) -> None:
    steps = (PreprocessStep.model_validate({"decode": {"window": [0, 4095], "orientation": "ignore"}}),)
    given = FIRST.pipeline.input.model_copy(update={"dtype": dtype})
    pipeline = FIRST.pipeline.model_copy(update={"preprocess": steps, "input": given})
    stable = FIRST.model_copy(update={"pipeline": pipeline})
    told = capture_rule(asked(), stable, [Share("main", FIRST.revision, 100, ())], world(asked()))

    assert (told.window, told.orientation) == (kept, "ignore")
