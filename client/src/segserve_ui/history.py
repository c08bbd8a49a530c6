"""The last day: each model's requests, errors and latencies by quarter of an hour, and the rollouts of the past."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Final

from segserve_operator.adapters.local.request_history import bin_edge_ms, read_history
from segserve_operator.core.rollout.phases import ENDED, Phase
from segserve_platform.platforms.errors import ControlError
from segserve_platform.platforms.local import LocalPlatform
from segserve_platform.platforms.metrics import FAULTS, MetricsSource, quantile
from segserve_platform.platforms.port import Json
from segserve_platform.platforms.rollouts.documents import stamp
from segserve_platform.platforms.rollouts.rollout_view import is_written, record_of
from segserve_platform.platforms.rollouts.words import span
from segserve_ui.backend import UiPlatform
from segserve_ui.rollouts import TONES
from segserve_ui.words import page_text

DAY_S: Final = 86400
BIN_S: Final = 900
_HIGHEST: Final = 80
"""The bin of latencies after the last one: 2^20 ms, which no request lasts."""
_OF_MODELS: Final = 'envoy_cluster_name=~".+/.+/infer/.+"'


class _Bin:
    """The requests of a model in a quarter of an hour; `buckets` are cumulative, by their upper edges in ms."""

    def __init__(self) -> None:
        self.requests = 0.0
        self.failed = 0.0
        self.buckets: defaultdict[float, float] = defaultdict(float)

    def add(self, other: _Bin) -> None:
        self.requests += other.requests
        self.failed += other.failed
        for edge, count in other.buckets.items():
            self.buckets[edge] += count

    def to_json(self) -> Json:
        p50, p95 = (quantile(self.buckets, share) for share in (0.5, 0.95))
        return {"requests": round(self.requests), "failed": round(self.failed), "p50": p50, "p95": p95}


_Bins = defaultdict[tuple[str, int], _Bin]
"""By model, and by the number of the quarter of an hour since 1970."""


def describe_history(place: UiPlatform) -> Json:
    """Return `models` with their `bins` and `total`, past `rollouts`, and a `note` if requests are not known."""
    now_s, note, example = time.time(), "", ""
    bins: _Bins = defaultdict(_Bin)
    try:
        if place.metrics is not None and place.metrics.prometheus is not None:
            bins = _of_prometheus(place.metrics, place.metrics.prometheus, now_s)
        elif isinstance(place.platform, LocalPlatform):
            bins = _of_machine(place.platform, now_s)
        else:
            note = "Requests of a cluster's last day come from its Prometheus, and this page was started without one."
            example = "segserve ui --prometheus http://localhost:9090"
    except ControlError as error:
        note = f"The requests of the last day are not known: {page_text(error, place)}"
    last = int(now_s // BIN_S)
    models = []
    for model in sorted({model for model, _ in bins}):
        total, shown = _Bin(), []
        for number in range(last - DAY_S // BIN_S + 1, last + 1):
            found = bins.get((model, number), _Bin())
            total.add(found)
            shown.append(found.to_json() | {"at": stamp(number * BIN_S)})
        models.append({"model": model, "bins": shown, "total": total.to_json()})
    return {"models": models, "rollouts": list(_rollouts(place)), "note": note, "example": example}


def _of_machine(platform: LocalPlatform, now_s: float) -> _Bins:
    bins: _Bins = defaultdict(_Bin)
    for at_s, models in read_history(platform.store.state.requests, now_s - DAY_S):
        for model, counts in models.items():
            found, below = bins[model, int(at_s // BIN_S)], 0
            found.requests += counts.requests
            found.failed += counts.failed
            # Every bin has all edges, so that the cumulative buckets of two of them can be added.
            edges = range(min(counts.latencies, default=0), max(counts.latencies, default=-1) + 1)
            found.buckets[bin_edge_ms(edges.start)] += 0
            for number in (*edges, *range(edges.stop, _HIGHEST)):
                below += counts.latencies.get(number, 0)
                found.buckets[bin_edge_ms(number + 1)] += below
    return bins


def _of_prometheus(metrics: MetricsSource, url: str, now_s: float) -> _Bins:
    """Return what a Prometheus has of the last day; raises `ControlError` if it does not answer."""
    chosen = _OF_MODELS + ("" if metrics.namespace is None else f',namespace="{metrics.namespace}"')
    bins: _Bins = defaultdict(_Bin)

    def grown(name: str, *by: str, more: str = "") -> Iterator[tuple[_Bin, dict[str, str], float]]:
        labels = ", ".join(("envoy_cluster_name", *by))
        query = f"sum by ({labels}) (increase({name}{{{chosen}{more}}}[{BIN_S}s]))"
        end_s = (now_s // BIN_S + 1) * BIN_S
        for series in metrics.query_range(url, query, end_s - DAY_S, end_s, BIN_S):
            model = series["metric"].get("envoy_cluster_name", "").split("/")[0]
            for at_s, value in series["values"]:
                yield bins[model, int(float(at_s) // BIN_S) - 1], series["metric"], float(value)

    for found, _, value in grown("envoy_cluster_upstream_rq_completed"):
        found.requests += value
    failures = [("envoy_cluster_upstream_rq_xx", ',envoy_response_code_class="5"')]
    for name, more in failures + [(f"envoy_cluster_grpc_{code}", "") for code in FAULTS]:
        for found, labels, value in grown(name, more=more):
            if name.startswith("envoy_cluster_grpc") or labels["envoy_cluster_name"].endswith("/http"):
                found.failed += value
    for found, labels, value in grown("envoy_cluster_upstream_rq_time_bucket", "le"):
        found.buckets[float(labels["le"])] += value
    return bins


def _rollouts(place: UiPlatform) -> Iterator[Json]:
    """Yield the rollouts that are recorded, the newest first, with how they ended and why."""
    records = [record_of(each) for each in place.platform.rollouts() if is_written(each)]
    for record in sorted(records, key=lambda each: -float(each.progress.started_s)):
        phase, last = Phase(int(record.progress.phase)), record.decisions[-1] if record.decisions else None
        began_s = float(record.progress.started_s)
        yield {
            "name": record.name,
            "model": record.model,
            "revision": record.candidate,
            "phase": phase.label,
            "tone": TONES.get(phase, "moving"),
            "startedAt": stamp(began_s),
            "took": span(last.at_s - began_s) if last is not None and phase in ENDED else "",
            "text": "" if last is None else last.message or last.reason or last.signal,
        }
