"""What Prometheus is told of drift."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from segserve_operator.api.drift import Drift, DriftReference, DriftWindow
from segserve_operator.core.drift.watch import DriftWatch
from segserve_operator.metrics.resource_gauges import DriftMetrics

DRIFT = Drift(window=timedelta(minutes=1), reference=DriftReference(window=DriftWindow(duration=timedelta(minutes=15))))


def filmed(dark_minutes: int) -> DriftWatch:
    """Return the watch of a model whose images became dark after half an hour."""
    watch, bright, dark = DriftWatch.start("coins-1", 0.0, DRIFT), 0, 0
    for minute in range(30 + dark_minutes):
        bright, dark = (bright + 60, dark) if minute < 30 else (bright, dark + 60)
        counts = {"brightness": (float(dark), float(bright)), "emptyAnswers": (float(bright + dark), 0.0)}
        watch = watch.measured({"server": counts}, DRIFT, 60.0 * minute)
    return watch


def value(metrics: DriftMetrics, name: str, **labels: str) -> float | None:
    metrics.show()
    own = {"namespace": "lab", "pool": "main", "model": "coins", **labels}
    return metrics.registry.get_sample_value(name, own)


@pytest.mark.parametrize(("dark_minutes", "drifting"), [(0, 0.0), (20, 1.0)])
def test_whether_a_model_drifts_and_how_far_is_a_gauge(dark_minutes: int, drifting: float) -> None:
    metrics = DriftMetrics(CollectorRegistry())

    metrics.observe("lab", "main", {"coins": filmed(dark_minutes)})

    assert value(metrics, "segserve_drifting") == drifting
    psi, kl = (
        value(metrics, name, histogram="brightness") for name in ("segserve_drift_psi", "segserve_drift_kl_nats")
    )
    assert psi is not None
    assert kl is not None
    assert (psi > 1.0) == (kl > 1.0) == bool(drifting)


def test_a_model_that_is_not_watched_any_more_has_no_series() -> None:
    metrics = DriftMetrics(CollectorRegistry())
    metrics.observe("lab", "main", {"coins": filmed(20)})
    metrics.observe("lab", "other", {})
    assert value(metrics, "segserve_drifting") == 1.0

    metrics.observe("lab", "main", {})

    assert value(metrics, "segserve_drifting") is None
    assert value(metrics, "segserve_drift_psi", histogram="brightness") is None


def test_before_the_reference_is_complete_nothing_is_said() -> None:
    metrics = DriftMetrics(CollectorRegistry())

    metrics.observe("lab", "main", {"coins": DriftWatch.start("coins-1", 0.0, DRIFT)})

    assert value(metrics, "segserve_drifting") is None
