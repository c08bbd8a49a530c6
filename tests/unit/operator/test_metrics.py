"""What Prometheus sees of models beside their rollouts."""

from __future__ import annotations

from typing import Any

import pytest

from segserve_common.kube.kinds import MODELS, POOLS
from segserve_operator.adapters.kube.view import View
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import EffectFailure
from segserve_operator.metrics.registry import Metrics
from segserve_operator.metrics.resource_gauges import latency_weights

ROLES = {
    "stable": {"revision": "r1", "group": "main-7f"},
    "candidate": {"revision": "r2", "group": "r2-7f"},
    "previous": None,
}


def seen(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def looked(spec: dict[str, Any], roles: dict[str, Any] | None = None) -> Metrics:
    view, metrics = View((MODELS, POOLS)), Metrics()
    metadata = {"name": "coins", "namespace": "lab", "uid": "1", "resourceVersion": "1"}
    view.take(MODELS, {"metadata": metadata, "spec": spec, "status": {"roles": roles or {}}})
    metrics.observe(view)
    metrics.observe(view)
    return metrics


@pytest.mark.parametrize("asked", ["slo", "rollout"])
def test_groups_of_models_that_are_watched_are_told_by_role(asked: str) -> None:
    assert seen(looked({asked: {}}, ROLES), "segserve_model_group") == {
        ("lab", "default", "coins", "main-7f", "stable"): 1,
        ("lab", "default", "coins", "r2-7f", "candidate"): 1,
    }


def test_other_models_have_no_series_of_their_own() -> None:
    metrics = looked({}, ROLES)
    assert seen(metrics, "segserve_model_group") == {}
    assert seen(metrics, "segserve_slo_error_ratio") == {}
    assert seen(metrics, "segserve_models") == {("lab", "default", "Unknown"): 1}


@pytest.mark.parametrize(("slo", "ratio"), [({"errorPercent": 0.1}, 0.001), ({}, 0.01), (None, 0.01)])
def test_an_slo_is_told_as_the_share_of_requests_that_may_fail(slo: dict[str, float] | None, ratio: float) -> None:
    found = seen(looked({"slo": slo}), "segserve_slo_error_ratio")
    assert found == {("lab", "default", "coins"): pytest.approx(ratio)}


def test_each_latency_of_an_slo_is_told_with_the_share_of_requests_that_may_be_slower() -> None:
    metrics = looked({"slo": {"p95Milliseconds": 250, "p99Milliseconds": 800}})
    of_model = ("lab", "default", "coins")

    assert seen(metrics, "segserve_slo_slow_ratio") == {(*of_model, "p95"): 0.05, (*of_model, "p99"): 0.01}
    assert seen(metrics, "segserve_slo_latency_seconds") == {(*of_model, "p95"): 0.25, (*of_model, "p99"): 0.8}
    assert seen(metrics, "segserve_slo_latency_weight") == {
        (*of_model, "p95", "250"): 1,
        (*of_model, "p99", "500"): pytest.approx(0.4),
        (*of_model, "p99", "1000"): pytest.approx(0.6),
    }


@pytest.mark.parametrize("latency_ms", [0.2, 0.5, 3, 100, 101, 99_999, 100_000])
def test_the_requests_below_a_latency_are_interpolated_between_the_edges_beside_it(latency_ms: float) -> None:
    weights = dict(latency_weights(latency_ms))

    assert sum(edge * weight for edge, weight in weights.items()) == pytest.approx(latency_ms)
    assert all(0 < weight <= 1 for weight in weights.values())


def test_writes_that_fail_are_counted_by_kind_until_they_succeed() -> None:
    reason, key, metrics = FailureReason("Forbidden", "exceeded quota"), ("lab", "default"), Metrics()
    failures = [EffectFailure("StartGroup", group, reason, 1, 0.0, reported=True) for group in ("r1-7f", "r2-7f")]
    metrics.resources.observe_failures({key: failures})

    assert seen(metrics, "segserve_failing_effects") == {("lab", "default", "StartGroup"): 2}

    metrics.resources.observe_failures({key: []})

    assert seen(metrics, "segserve_failing_effects") == {}
