"""Alerts and dashboards: they load, and ask for metrics that somebody has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from charts.monitoring.__main__ import written
from charts.monitoring.rules import BURNS, RUNBOOKS
from segserve_builder.steps.answer_metrics import METRIC_FAMILIES
from segserve_common.kube.names import AGENT_PORT, GATEWAY, METRICS_PORT, SERVER, SYNC_PORT
from segserve_operator.adapters.traffic.envoy_clusters import Upstream
from segserve_operator.adapters.traffic.envoy_counts import FAULTS
from segserve_operator.adapters.traffic.envoy_listener import STAT_PREFIX
from segserve_operator.metrics.registry import Metrics

from .conftest import CHART, Render, of_kind, the
from .test_chart import SETS

DOCS: Final = CHART.parents[1] / "docs"
OF_OTHERS: Final = {
    "envoy_cluster_upstream_rq_completed",
    "envoy_cluster_upstream_rq_xx",
    "envoy_http_downstream_cx_active",
    "envoy_http_downstream_rq_xx",
    "envoy_cluster_upstream_rq_total",
    "envoy_cluster_upstream_rq_time_bucket",
    "envoy_cluster_upstream_rq_active",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_server_live",
    "envoy_server_memory_allocated",
    "nv_cpu_memory_total_bytes",
    "nv_cpu_memory_used_bytes",
    "nv_cpu_utilization",
    "nv_gpu_memory_total_bytes",
    "nv_gpu_memory_used_bytes",
    "nv_gpu_power_usage",
    "nv_gpu_utilization",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_request_failure",
    "nv_inference_request_success",
    "segserve_agent_models",
    "segserve_agent_probe_seconds",
    "segserve_agent_server_memory_bytes",
    "segserve_agent_server_ready",
    "segserve_cost_cpu_seconds_total",
    "segserve_cost_gpu_seconds_total",
    "segserve_cost_memory_byte_seconds_total",
    "segserve_cost_requests_total",
    "segserve_gateway_api_contact_age_seconds",
    "segserve_gateway_certificate_expires_seconds",
    "segserve_gateway_pass_age_seconds",
    "segserve_gateway_refusals_total",
    "segserve_gateway_shifts_total",
}


def of_the_operator() -> set[str]:
    return {
        family.name + suffix
        for family in Metrics().registry.collect()
        for suffix in ({"counter": ["_total"], "histogram": ["_bucket"]}.get(family.type, [""]))
    }


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def alerts() -> list[dict[str, Any]]:
    return [rule for rule in rules() if "alert" in rule]


def recorded() -> dict[str, str]:
    return {rule["record"]: rule["expr"] for rule in rules() if "record" in rule}


def dashboards() -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((CHART / "files/dashboards").glob("*.json"))]


def queries() -> Iterator[str]:
    yield from (rule["expr"] for rule in rules())
    for dashboard in dashboards():
        yield from (target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))
        variables = dashboard["templating"]["list"]
        yield from (variable["query"]["query"] for variable in variables if variable["type"] == "query")


def metrics_of(query: str) -> set[str]:
    labels = {"envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_response_code_class"}
    return set(re.findall(r"\b(?:segserve|envoy|nv)_[a-z_]+(?=[\s{\[,)]|$)(?!\s*=)", query)) - labels


def recorded_of(query: str) -> set[str]:
    return set(re.findall(r"\bsegserve:\w+:\w+", query))


@pytest.mark.same
def test_every_query_asks_for_a_metric() -> None:
    assert [*queries()]
    asked = (query for query in queries() if not query.startswith(("ALERTS{", "count(ALERTS{")))
    assert [query for query in asked if not metrics_of(query) | recorded_of(query)] == []


@pytest.mark.same
def test_a_query_asks_for_metrics_that_somebody_has() -> None:
    known = of_the_operator() | OF_OTHERS | {name for family in METRIC_FAMILIES for name in family.counters}

    assert {query: metrics_of(query) - known for query in queries() if not metrics_of(query) <= known} == {}


@pytest.mark.same
def test_a_query_asks_for_recorded_series_that_a_rule_records() -> None:
    known = recorded().keys()

    assert {query: recorded_of(query) - known for query in queries() if not recorded_of(query) <= known} == {}


def test_every_bracket_of_a_query_is_closed() -> None:
    assert [q for q in queries() if any(q.count(left) != q.count(right) for left, right in ("()", "[]", "{}"))] == []


def test_failures_of_grpc_are_those_that_a_rollout_counts() -> None:
    asked = re.findall(r"envoy_cluster_grpc_(\d+)", recorded()["segserve:model_failures:rate2m"])
    assert tuple(map(int, asked)) == FAULTS


def test_recorded_series_are_of_models_and_groups_as_clusters_are_named() -> None:
    name = Upstream("infer", "grpc", "coins", "canary-7f").name
    split = [query for query in recorded().values() if "envoy_cluster_name" in query]
    assert len(split) == 3
    for query in split:
        assert re.search(r"sum by \(namespace, pool, model, group(, le)?\)", query)
        for pattern in re.findall(r'envoy_cluster_name=~"([^"]+)"', query):
            assert re.fullmatch(pattern, name) or pattern.endswith("/http")
        found = [(label, group) for label, group in re.findall(r'"(\w+)", "\$(\d)", "envoy_cluster_name"', query)]
        assert found == [("model", "1"), ("group", "2")]
        (pattern,) = set(re.findall(r'"envoy_cluster_name", "([^"]+)"', query))
        matched = re.fullmatch(pattern, name)
        assert matched.groups() == ("coins", "canary-7f")


@pytest.mark.same
def test_the_files_are_what_their_code_says() -> None:
    files = dict(written())
    assert {path: path.read_text() for path in files} == files
    assert {path for path in files if path.suffix == ".json"} == {*(CHART / "files/dashboards").iterdir()}


def test_every_window_of_a_burn_is_recorded() -> None:
    windows = {window for burn in BURNS for window in (burn.long, burn.short)}
    assert {f"segserve:slo_burn:rate{window}" for window in windows} <= recorded().keys()


def test_panels_do_not_overlap() -> None:
    for each in dashboards():
        taken: set[tuple[int, int]] = set()
        for panel in each["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24, panel["title"]
            taken |= cells


def test_gateways_are_asked_for_what_their_listener_for_callers_counts() -> None:
    asked = [found for query in queries() for found in re.findall(r'envoy_http_conn_manager_prefix="(\w+)"', query)]
    assert set(asked) == {STAT_PREFIX}


@pytest.mark.same
def test_there_is_an_alert_for_each_thing_that_people_have_to_know() -> None:
    assert {rule["alert"] for rule in alerts()} == {
        "SegserveOperatorNotReconciling",
        "SegserveReconcileErrors",
        "SegserveModelNotReady",
        "SegservePoolDegraded",
        "SegserveEffectsFailing",
        "SegserveGatewayErrors",
        "SegserveDrifting",
        "SegserveRolloutHeld",
        "SegserveRolloutRolledBack",
        "SegserveRolloutBlind",
        "SegserveStoredObjectLarge",
        "SegserveSloBurn",
        "SegserveGatewayStale",
        "SegserveCertificateExpires",
        "SegserveServerNotReady",
        "SegserveGpuMemoryHigh",
        "SegserveRolloutRunning",
        "SegserveClassGone",
        "SegserveAnswersEmpty",
    }
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert {"summary", "description"} <= rule["annotations"].keys()


@pytest.mark.same
def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    page = (DOCS / RUNBOOKS).with_suffix(".md").read_text()
    headings = set(re.findall(r"^### (Segserve\w+)$", page, re.MULTILINE))

    assert {rule["annotations"]["runbook_url"] for rule in alerts()} == {
        f"{RUNBOOKS}#{name.lower()}" for name in headings
    }
    for text in re.split(r"^### Segserve", page, flags=re.MULTILINE)[1:]:
        assert all(f"**{part}.**" in text for part in ("Means", "See", "Do")), text


def test_dashboards_can_be_told_apart_and_arrive_as_they_are(render: Render) -> None:
    assert len({dashboard["uid"] for dashboard in dashboards()}) == len(dashboards()) == 8
    found = the(render(SETS["monitoring"]), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert [json.loads(found["data"][name]) for name in sorted(found["data"])] == dashboards()


def test_alerts_arrive_as_they_are(render: Render) -> None:
    spec = the(render(SETS["monitoring"]), "PrometheusRule")["spec"]
    assert spec == yaml.safe_load((CHART / "files/alerts.yaml").read_text())


def test_runbooks_are_linked_to_where_the_documentation_is(render: Render) -> None:
    rule = {"enabled": True, "docsUrl": "https://docs.example.com/segserve/"}
    spec = the(render({"monitoring": {"prometheusRule": rule}}), "PrometheusRule")["spec"]
    links = {
        rule["annotations"]["runbook_url"] for group in spec["groups"] for rule in group["rules"] if "alert" in rule
    }

    assert "https://docs.example.com/segserve/how-to/alerts.html#segservesloburn" in links
    assert all(link.startswith("https://docs.example.com/segserve/how-to/") for link in links)


def test_pods_are_asked_at_the_ports_that_they_have(render: Render) -> None:
    ports = {
        monitor["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]: [
            endpoint["targetPort"] for endpoint in monitor["spec"]["podMetricsEndpoints"]
        ]
        for monitor in of_kind(render(SETS["monitoring"]), "PodMonitor")
    }
    assert ports == {GATEWAY: [SYNC_PORT], SERVER: [AGENT_PORT, METRICS_PORT]}


@pytest.mark.parametrize(
    ("scope", "selector"),
    [
        ({}, {"matchNames": ["vision"]}),
        ({"watchNamespaces": ["lab", "prod"]}, {"matchNames": ["lab", "prod"]}),
        ({"clusterWide": True, "watchNamespaces": ["lab"]}, {"any": True}),
    ],
    ids=["own", "named", "cluster"],
)
def test_pods_are_looked_for_where_the_operator_works(
    scope: dict[str, Any], selector: dict[str, Any], render: Render
) -> None:
    for monitor in of_kind(render({**SETS["monitoring"], **scope}), "PodMonitor"):
        assert monitor["spec"]["namespaceSelector"] == selector


def test_the_service_monitor_finds_the_service_of_the_operator(render: Render) -> None:
    objects = render(SETS["monitoring"])
    wanted = the(objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"]
    service = the(objects, "Service")
    assert wanted.items() <= service["metadata"]["labels"].items()
    pod = the(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= pod.items()


def test_nothing_of_it_is_there_unless_asked_for(render: Render) -> None:
    kinds = {found["kind"] for found in render()}
    assert not kinds & {"ServiceMonitor", "PodMonitor", "PrometheusRule", "ConfigMap"}
