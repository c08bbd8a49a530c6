"""Alerts and recording rules, as values and as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from segserve_operator.adapters.traffic.envoy_counts import FAULTS

Severity: TypeAlias = Literal["critical", "warning", "info"]

RUNBOOKS: Final = "how-to/alerts.html"
"""Page of the documentation; the chart puts the site's address before it."""
MODEL: Final = "namespace, pool, model"
QUANTILES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
BUDGET_DAYS: Final = 30
INTERVAL_S: Final = 30
_INFER: Final = '{envoy_cluster_name=~".+/.+/infer/.+"}'


@dataclass(frozen=True, slots=True)
class Record:
    """A series that Prometheus computes at each evaluation."""

    name: str
    query: str

    def rendered(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        return {"record": self.name, "expr": self.query}


@dataclass(frozen=True, slots=True)
class Alert:
    """What people have to know: `query` gives a series for each thing that is wrong. Its runbook has its name."""

    name: str
    severity: Severity
    query: str
    summary: str
    description: str
    lasting: str | None = None
    window: str | None = None

    def rendered(self) -> dict[str, Any]:
        """Return it as Prometheus reads it."""
        labels = {"severity": self.severity} | ({"window": self.window} if self.window else {})
        annotations = {
            "summary": self.summary,
            "description": self.description,
            "runbook_url": f"{RUNBOOKS}#{self.name.lower()}",
        }
        lasting = {"for": self.lasting} if self.lasting else {}
        return {"alert": self.name, "expr": self.query, **lasting, "labels": labels, "annotations": annotations}


@dataclass(frozen=True, slots=True)
class Burn:
    """An SLO burns `factor` times faster than it allows: over the long window, and still over the short one.

    These are the windows of Google's SRE workbook: they use up 2 %, 5 % and 10 % of a month's budget.
    """

    factor: float
    long: str
    short: str
    severity: Severity


BURNS: Final = (
    Burn(14.4, "1h", "5m", "critical"),
    Burn(6, "6h", "30m", "critical"),
    Burn(1, "3d", "6h", "warning"),
)
LEAST_BAD: Final = 5
"""Bad requests in the long window, below which a burn is nobody's alarm: of three requests a night one may fail."""


def leading(metric: str) -> str:
    """Return a gauge as the leading operator sees it: others remember too."""
    return f"({metric} and on (pod) segserve_is_leader == 1)"


def _split(rate: str) -> str:
    """Return the series of an Envoy's cluster, called model/group/purpose/protocol, with its model and group."""
    for label, place in (("model", 1), ("group", 2)):
        rate = f'label_replace({rate}, "{label}", "${place}", "envoy_cluster_name", "([^/]+)/([^/]+)/.+")'
    return rate


def _failures() -> str:
    http = 'envoy_cluster_upstream_rq_xx{envoy_cluster_name=~".+/.+/infer/http",envoy_response_code_class="5"}'
    counted = {"http": http} | {
        str(code): f'envoy_cluster_grpc_{code}{{envoy_cluster_name=~".+/.+/infer/grpc"}}' for code in FAULTS
    }
    return " or ".join(f'label_replace(rate({each}[2m]), "code", "{code}", "", "")' for code, each in counted.items())


def _of_stable(rate: str, *more: str) -> str:
    """Return a rate of models and groups for models, of the group that is stable at the time.

    A window over it goes on when a candidate is promoted, which has a group of its own.
    """
    stable = f'max by ({MODEL}, group) (segserve_model_group{{role="stable"}})'
    return f"sum by ({', '.join((MODEL, *more))}) ({rate} * on ({MODEL}, group) group_left () {stable})"


def _objective(query: str) -> str:
    return f'label_replace({query}, "objective", "errors", "", "")'


def _model_records() -> Iterator[Record]:
    of_group = f"sum by ({MODEL}, group)"
    completed = _split(f"rate(envoy_cluster_upstream_rq_completed{_INFER}[2m])")
    yield Record("segserve:model_requests:rate2m", f"{of_group} ({completed})")
    # Zero where nothing has failed: a share is to be 0 then, and not unknown.
    failures = f"{of_group} ({_split(_failures())}) or 0 * segserve:model_requests:rate2m"
    yield Record("segserve:model_failures:rate2m", failures)
    buckets = _split(f"rate(envoy_cluster_upstream_rq_time_bucket{_INFER}[2m])")
    # Prometheus 3 writes 250.0 for 250.
    buckets = f'label_replace({buckets}, "le", "$1", "le", "(.+)\\\\.0")'
    yield Record("segserve:model_latency_bucket:rate2m", f"sum by ({MODEL}, group, le) ({buckets})")
    for name, share in QUANTILES:
        query = f"histogram_quantile({share}, segserve:model_latency_bucket:rate2m)"
        yield Record(f"segserve:model_latency_ms:{name}", query)


def _slo_records() -> Iterator[Record]:
    errors = f"max by ({MODEL}) (segserve_slo_error_ratio)"
    slow = f"max by ({MODEL}, objective) (segserve_slo_slow_ratio)"
    yield Record("segserve:slo_budget:ratio", f"{_objective(errors)} or {slow}")
    requests = _of_stable("segserve:model_requests:rate2m")
    buckets = "segserve:model_latency_bucket:rate2m"
    answered = _of_stable(f'{buckets}{{le="+Inf"}}')
    all_of_them = _objective(f"({requests} and on ({MODEL}) {errors})")
    each = f"{slow} * 0 + on ({MODEL}) group_left () {answered}"
    yield Record("segserve:slo_requests:rate2m", f"{all_of_them} or {each}")
    failures = _of_stable("segserve:model_failures:rate2m")
    weights = f"max by ({MODEL}, objective, le) (segserve_slo_latency_weight)"
    below = f"{weights} * on ({MODEL}, le) group_left () {_of_stable(buckets, 'le')}"
    late = f'segserve:slo_requests:rate2m{{objective!="errors"}} - sum by ({MODEL}, objective) ({below})'
    failed = _objective(f"({failures} and on ({MODEL}) {errors})")
    yield Record("segserve:slo_bad_requests:rate2m", f"{failed} or clamp_min({late}, 0)")
    windows = dict.fromkeys(window for burn in BURNS for window in (burn.short, burn.long))
    for window in (*windows, f"{BUDGET_DAYS}d"):
        sums = (f"sum_over_time(segserve:slo_{each}:rate2m[{window}])" for each in ("bad_requests", "requests"))
        yield Record(f"segserve:slo_burn:rate{window}", " / ".join((*sums, "segserve:slo_budget:ratio")))


def _share_of_answers(counter: str, *by: str, at: str = "") -> str:
    """Return the share of a model's answers that a counter counts, over three hours, whatever the revision."""
    counted, answers = (f"(rate({each}[3h]{at}))" for each in (counter, "segserve_answers_total"))
    return f"sum by ({', '.join((MODEL, *by))}) {counted} / on ({MODEL}) group_left () sum by ({MODEL}) {answers}"


def _answer_alerts() -> Iterator[Alert]:
    # Days differ less than hours do: images of the night are others than those of noon.
    yesterday = " offset 1d"
    # Neighbouring answers show the same scene: ten of a scene make these a hundred that tell something.
    many = (f"sum by ({MODEL}) (increase(segserve_answers_total[3h]{at})) > 1000" for at in ("", yesterday))
    asked = f"and on ({MODEL}) " + f" and on ({MODEL}) ".join(many)
    empty = "segserve_empty_answers_total"
    yield Alert(
        "SegserveAnswersEmpty",
        "warning",
        f"({_share_of_answers(empty)} - {_share_of_answers(empty, at=yesterday)}) > 0.2 {asked}",
        f"{_OF_MODEL} finds nothing more often than yesterday.",
        "The share of empty answers is larger by {{ $value | humanizePercentage }}.",
        "15m",
    )
    found = "segserve_class_answers_total"
    yield Alert(
        "SegserveClassGone",
        "warning",
        f"{_share_of_answers(found, 'class', at=yesterday)} > 0.1"
        f" and on ({MODEL}, class) sum by ({MODEL}, class) (rate({found}[3h])) == 0 {asked}",
        f"{_OF_MODEL} finds no {{{{ $labels.class }}}} any more.",
        "Yesterday {{ $value | humanizePercentage }} of its answers had one.",
        "15m",
    )


def _slo_alerts() -> Iterator[Alert]:
    for burn in BURNS:
        rates = (f"segserve:slo_burn:rate{window} > {burn.factor:g}" for window in (burn.long, burn.short))
        bad = f"sum_over_time(segserve:slo_bad_requests:rate2m[{burn.long}]) * {INTERVAL_S} >= {LEAST_BAD}"
        yield Alert(
            "SegserveSloBurn",
            burn.severity,
            " and ".join((*rates, bad)),
            "{{ $labels.namespace }}/{{ $labels.model }} misses its SLO ({{ $labels.objective }}).",
            f"Over {burn.long} it uses its error budget {{{{ $value | humanize }}}} times as fast as its SLO allows.",
            window=burn.long,
        )


_OF_POOL: Final = "{{ $labels.namespace }}/{{ $labels.pool }}"
_OF_MODEL: Final = "{{ $labels.namespace }}/{{ $labels.model }}"
_INGRESS: Final = 'envoy_http_conn_manager_prefix="ingress"'

ALERTS: Final = (
    Alert(
        "SegserveOperatorNotReconciling",
        "critical",
        # None leads, or the one that does has not seen the cluster for long: it looks once a minute.
        f"absent(segserve_is_leader == 1) or max{leading('segserve_watch_age_seconds')} > 180",
        "No segserve operator reconciles.",
        "What serves goes on, but edits, scaling and repairs wait.",
        "5m",
    ),
    Alert(
        "SegserveReconcileErrors",
        "warning",
        'sum(rate(segserve_reconcile_passes_total{outcome!="ok"}[10m]))'
        " / sum(rate(segserve_reconcile_passes_total[10m])) > 0.5",
        "Most passes of the segserve operator fail.",
        "{{ $value | humanizePercentage }} of the passes of the last 10 minutes failed. See the operator's log.",
        "15m",
    ),
    Alert(
        "SegserveModelNotReady",
        "warning",
        # A second operator that waits to lead counts the same models.
        'sum by (namespace, pool) (max by (namespace, pool, ready) (segserve_models{ready!="True"})) > 0',
        f"Models of pool {_OF_POOL} are not ready.",
        "{{ $value }} models. `kubectl get segm -n {{ $labels.namespace }}` names them, their conditions say why.",
        "15m",
    ),
    Alert(
        "SegservePoolDegraded",
        "warning",
        'sum by (namespace) (max by (namespace, ready) (segserve_pools{ready!="True"})) > 0',
        "Pools in namespace {{ $labels.namespace }} are degraded.",
        "{{ $value }} pools. `kubectl get tpool -n {{ $labels.namespace }}` names them, their conditions say why.",
        "10m",
    ),
    Alert(
        "SegserveEffectsFailing",
        "warning",
        f"max by (namespace, pool, effect) {leading('segserve_failing_effects')} > 0",
        f"Writes of pool {_OF_POOL} are refused.",
        "{{ $value }} of {{ $labels.effect }}; all else goes on. Degraded of the pool has the API's words.",
        "10m",
    ),
    Alert(
        "SegserveGatewayErrors",
        "critical",
        # gRPC has its own statuses: its errors are HTTP 200 and not in here.
        f'sum by (namespace, pool) (rate(envoy_http_downstream_rq_xx{{{_INGRESS},envoy_response_code_class="5"}}[5m]))'
        f" / sum by (namespace, pool) (rate(envoy_http_downstream_rq_xx{{{_INGRESS}}}[5m])) > 0.05",
        f"The gateway of pool {_OF_POOL} answers with 5xx.",
        "{{ $value | humanizePercentage }} of its answers of the last 5 minutes.",
        "5m",
    ),
    Alert(
        "SegserveGatewayStale",
        "warning",
        "max by (namespace, pool, pod) (segserve_gateway_pass_age_seconds) > 120"
        # The API server sends bookmarks: a sidecar that hears nothing for longer cannot know of a new plan.
        " or max by (namespace, pool, pod) (segserve_gateway_api_contact_age_seconds) > 180"
        " or max by (namespace, pool, pod) (increase(segserve_gateway_refusals_total[15m])) > 0",
        f"Gateway {{{{ $labels.pod }}}} of pool {_OF_POOL} does not follow the operator.",
        "Its Envoy refuses the plan, or its sidecar does not hear from the API server or has stopped: new weights and"
        " servers do not reach it.",
        "5m",
    ),
    Alert(
        "SegserveCertificateExpires",
        "warning",
        # 0 where there is none.
        f"min by (namespace, pool, pod) (segserve_gateway_certificate_expires_seconds > 0) - time() < {7 * 86400}",
        f"A certificate of the gateway of pool {_OF_POOL} expires.",
        "In {{ $value | humanizeDuration }}. Then callers are refused.",
        "1h",
    ),
    Alert(
        "SegserveServerNotReady",
        "warning",
        "max by (namespace, pool, pod) (segserve_agent_server_ready) == 0",
        f"Server {{{{ $labels.pod }}}} of pool {_OF_POOL} does not answer its agent.",
        "Its Triton ends again and again, or hangs; others of its group have its requests.",
        "10m",
    ),
    Alert(
        "SegserveGpuMemoryHigh",
        "warning",
        "max by (namespace, pool, pod, gpu_uuid) (nv_gpu_memory_used_bytes / (nv_gpu_memory_total_bytes > 0)) > 0.95",
        f"The GPU of server {{{{ $labels.pod }}}} of pool {_OF_POOL} is nearly full.",
        "{{ $value | humanizePercentage }} of its memory is in use: the next model may not load.",
        "10m",
    ),
    Alert(
        "SegserveRolloutHeld",
        "warning",
        f"max by ({MODEL}, reason) (segserve_rollout_held) == 1",
        f"The rollout of {_OF_MODEL} is held.",
        "{{ $labels.reason }}. `segserve rollout status {{ $labels.model }} -n {{ $labels.namespace }}` says what it"
        " waits for.",
        "30m",
    ),
    Alert(
        "SegserveRolloutRolledBack",
        "warning",
        f'sum by ({MODEL}) (increase(segserve_rollout_ends_total{{phase="RolledBack"}}[15m])) > 0',
        f"A new revision of {_OF_MODEL} was rolled back.",
        "Stable serves. `segserve rollout status {{ $labels.model }} -n {{ $labels.namespace }} -o wide` names the gate"
        " and its numbers.",
    ),
    Alert(
        "SegserveRolloutBlind",
        "critical",
        # A candidate has requests, and nobody has looked for a minute at how they go: nothing would stop it.
        f"max by ({MODEL}) {leading('segserve_rollout_look_seconds')} > 60"
        f" and on ({MODEL}) max by ({MODEL}) (segserve_rollout_weight) > 0",
        f"The rollout of {_OF_MODEL} is not watched.",
        "Its last look at the gateways' counts is {{ $value | humanizeDuration }} old. See the operator's log.",
    ),
    Alert(
        "SegserveRolloutRunning",
        "info",
        f"max by ({MODEL}) (segserve_rollout_weight) >= 0",
        f"{_OF_MODEL} has a rollout.",
        "Nothing is wrong: it inhibits warnings about the same model while both revisions serve.",
    ),
    Alert(
        "SegserveDrifting",
        "warning",
        f"max by ({MODEL}) {leading('segserve_drifting')} == 1",
        f"Images or answers of {_OF_MODEL} are not as those of its reference any more.",
        "The condition Drifting says which and since when: `segserve why {{ $labels.model }} -n"
        " {{ $labels.namespace }}`.",
    ),
    Alert(
        "SegserveStoredObjectLarge",
        "warning",
        # Kubernetes refuses a ConfigMap above 1 MiB; what it holds would stay as it is.
        "max by (namespace, pool, purpose) (segserve_stored_bytes) > 700000",
        f"An object of pool {_OF_POOL} approaches the limit of Kubernetes.",
        "{{ $labels.purpose }}: {{ $value | humanize1024 }}B of 1 MiB. Spread the models over more pools.",
        "15m",
    ),
    *_answer_alerts(),
    *_slo_alerts(),
)


def rules() -> dict[str, Any]:
    """Return all groups as Prometheus reads them."""
    interval = f"{INTERVAL_S}s"
    models, slos = ([each.rendered() for each in records()] for records in (_model_records, _slo_records))
    return {
        "groups": [
            {"name": "segserve", "rules": [alert.rendered() for alert in ALERTS]},
            {"name": "segserve-models", "interval": interval, "rules": models},
            {"name": "segserve-slos", "interval": interval, "rules": slos},
        ]
    }
