"""Published evaluations: the condition Evaluated, who published it, and the metrics."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from fakes.observed_models import FIRST, SECOND, group, holder, model, world
from segserve_operator.api.evaluation import EVALUATION_ANNOTATION, MAX_EVALUATION_LENGTH
from segserve_operator.core.advance.advance import RolloutUpdate
from segserve_operator.core.models.conditions import status_of
from segserve_operator.core.world.observed import ObservedCondition, Roles
from segserve_operator.metrics.resource_gauges import EvaluationMetrics

SERVED = Roles(holder(FIRST, "main"))
GOOD = {"mean": 0.87, "low": 0.85, "high": 0.89}
BAD = {"mean": 0.42, "low": 0.3, "high": 0.5}


def evaluation(**changes: Any) -> str:
    plain = {
        "revision": FIRST.revision,
        "goldenSha256": "0d5c" * 16,
        "evaluatedAt": "2026-11-22T13:00:00Z",
        "evaluatedBy": "ada",
        "images": 100,
        "score": GOOD,
        "metrics": {"iou": GOOD},
        "classes": {"coin": GOOD},
        "slices": {"camera-7": {"images": 40, "score": BAD}},
    }
    return json.dumps({**plain, **changes})


def condition(annotations: dict[str, str], roles: Roles = SERVED) -> ObservedCondition | None:
    """Return the condition Evaluated of a model with these annotations."""
    seen = world(model(FIRST, roles, annotations=annotations), groups=[group("main", FIRST)])
    status = status_of(seen.models[0], roles, RolloutUpdate(None), {}, {}, seen)
    return next((each for each in status.conditions if each.type == "Evaluated"), None)


def test_a_model_that_nobody_evaluated_has_no_condition() -> None:
    assert condition({}) is None


def test_the_condition_has_the_quality_with_its_interval_and_who_measured_it_when() -> None:
    found = condition({EVALUATION_ANNOTATION: evaluation()})

    assert (found.status, found.reason) == ("True", "Measured")
    for part in ("0.870 (0.850 to 0.890)", "iou", "100 images", "0d5c0d5c0d", "2026-11-22T13:00:00Z by ada"):
        assert part in found.message


def test_an_evaluation_of_another_revision_is_stale() -> None:
    found = condition({EVALUATION_ANNOTATION: evaluation(revision=SECOND.revision)})

    assert (found.status, found.reason) == ("False", "OtherRevision")
    assert SECOND.revision in found.message
    assert "segserve samples evaluate coins --publish" in found.message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "[" * 5000,
        "{}",
        evaluation(score={"mean": 3.0, "low": 0.0, "high": 1.0}),
        evaluation().replace("0.87", "NaN"),
        evaluation(images=0),
        evaluation(revision="c" * MAX_EVALUATION_LENGTH),
    ],
    ids=["empty", "a list", "nested", "no fields", "beyond 1", "NaN", "no images", "too long"],
)
def test_what_is_no_evaluation_is_named_and_shown_nowhere(text: str) -> None:
    found = condition({EVALUATION_ANNOTATION: text})

    assert (found.status, found.reason) == ("False", "Unreadable")
    assert series({EVALUATION_ANNOTATION: text}, FIRST.revision) == {}


def series(annotations: dict[str, str], stable: str) -> dict[tuple[str, ...], float]:
    """Return the values of the metrics by name, what they are about, and bound."""
    registry = CollectorRegistry()
    EvaluationMetrics(registry).observe(("lab", "main", "coins"), annotations, stable)
    common = {"namespace", "pool", "model", "revision"}
    return {
        (each.name, *(value for name, value in each.labels.items() if name not in common)): each.value
        for family in registry.collect()
        for each in family.samples
    }


def test_metrics_are_those_of_the_serving_revision_alone() -> None:
    annotations = {EVALUATION_ANNOTATION: evaluation()}

    found = series(annotations, FIRST.revision)

    assert found["segserve_evaluation_score", "", "mean"] == 0.87
    assert found["segserve_evaluation_score", "camera-7", "low"] == 0.3
    assert found["segserve_evaluation_metric", "iou", "high"] == 0.89
    assert found["segserve_evaluation_class", "coin", "mean"] == 0.87
    assert found["segserve_evaluation_images", "camera-7"] == 40
    assert found[("segserve_evaluation_timestamp_seconds",)] == 1_795_352_400
    assert series(annotations, SECOND.revision) == {}


def test_a_metric_without_an_interval_has_no_bounds() -> None:
    annotations = {EVALUATION_ANNOTATION: evaluation(metrics={"iou": GOOD, "ece": {"mean": 0.05}})}

    found = series(annotations, FIRST.revision)
    said = condition(annotations)

    assert {key[2] for key in found if key[:2] == ("segserve_evaluation_metric", "ece")} == {"mean"}
    assert "ece 0.050" in said.message
