"""Prometheus metrics of evaluations: the quality of serving revisions on labelled images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge

from segserve_operator.api.evaluation import Estimate
from segserve_operator.core.models.evaluation import current_evaluation

_MODEL: Final = ("namespace", "pool", "model", "revision")
_BOUND: Final = "bound"
_TEXT: Final = "of the serving revision on labelled images; bound is mean, low or high, of a 95 % interval."


class EvaluationMetrics:
    """Gauges of each model whose stable revision was evaluated: at most 3 for each class, slice and metric."""

    def __init__(self, registry: CollectorRegistry) -> None:
        to = registry
        text = f"Mean score of images {_TEXT} Without a slice: of all images."
        self._score = Gauge("segserve_evaluation_score", text, (*_MODEL, "slice", _BOUND), registry=to)
        self._metric = Gauge("segserve_evaluation_metric", f"Metric {_TEXT}", (*_MODEL, "metric", _BOUND), registry=to)
        self._class = Gauge("segserve_evaluation_class", f"Quality {_TEXT}", (*_MODEL, "class", _BOUND), registry=to)
        text = "Labelled images of the latest evaluation. Without a slice: of all."
        self._images = Gauge("segserve_evaluation_images", text, (*_MODEL, "slice"), registry=to)
        text = "Time of the latest evaluation of the serving revision."
        self._evaluated = Gauge("segserve_evaluation_timestamp_seconds", text, _MODEL, registry=to)

    def clear(self) -> None:
        """Forget all models; called before each scrape."""
        for gauge in (self._score, self._metric, self._class, self._images, self._evaluated):
            gauge.clear()

    def observe(self, model: tuple[str, str, str], annotations: Mapping[str, str], stable: str | None) -> None:
        """Set the gauges of a model (namespace, pool, name), if its stable revision was evaluated."""
        evaluation = current_evaluation(annotations, stable)
        if evaluation is None:
            return
        key = (*model, evaluation.revision)
        self._evaluated.labels(*key).set(evaluation.evaluated_at.timestamp())
        self._images.labels(*key, "").set(evaluation.images)
        _set(self._score, (*key, ""), evaluation.score)
        for name, own in evaluation.slices.items():
            self._images.labels(*key, name).set(own.images)
            _set(self._score, (*key, name), own.score)
        for name, estimate in evaluation.metrics.items():
            _set(self._metric, (*key, name), estimate)
        for name, estimate in evaluation.classes.items():
            _set(self._class, (*key, name), estimate)


def _set(gauge: Gauge, labels: tuple[str, ...], estimate: Estimate) -> None:
    for bound, value in (("mean", estimate.mean), ("low", estimate.low), ("high", estimate.high)):
        if value is not None:
            gauge.labels(*labels, bound).set(value)
