"""Alerts and dashboards: they load, and ask for metrics that somebody has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from charts import rollout_dashboard
from segserve_common.kube.names import AGENT_PORT, GATEWAY, METRICS_PORT, SERVER, SYNC_PORT
from segserve_operator.adapters.traffic.envoy_clusters import Upstream
from segserve_operator.adapters.traffic.envoy_counts import FAULTS
from segserve_operator.adapters.traffic.envoy_listener import STAT_PREFIX
from segserve_operator.metrics import Metrics

from .conftest import CHART, Render, of_kind, the
from .test_chart import SETS

OF_OTHERS: Final = {
    "envoy_cluster_upstream_rq_completed",
    "envoy_cluster_upstream_rq_xx",
    "envoy_http_downstream_rq_xx",
    "envoy_cluster_upstream_rq_total",
    "envoy_cluster_upstream_rq_time_bucket",
    "envoy_cluster_upstream_rq_active",
    "envoy_cluster_upstream_rq_pending_overflow",
    "envoy_server_live",
    "envoy_server_memory_allocated",
    "nv_inference_queue_duration_us",
    "nv_inference_request_success",
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
        yield from (target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
        variables = dashboard["templating"]["list"]
        yield from (variable["query"]["query"] for variable in variables if variable["type"] == "query")


def metrics_of(query: str) -> set[str]:
    labels = {"envoy_cluster_name", "envoy_http_conn_manager_prefix", "envoy_response_code_class"}
    return set(re.findall(r"\b(?:segserve|envoy|nv)_[a-z_]+(?=[\s{\[,)]|$)(?!\s*=)", query)) - labels


def recorded_of(query: str) -> set[str]:
    return set(re.findall(r"\bsegserve:\w+:\w+", query))


def test_every_query_asks_for_a_metric() -> None:
    assert [*queries()]
    assert [query for query in queries() if not metrics_of(query) | recorded_of(query)] == []


def test_a_query_asks_for_metrics_that_somebody_has() -> None:
    known = of_the_operator() | OF_OTHERS

    assert {query: metrics_of(query) - known for query in queries() if not metrics_of(query) <= known} == {}


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
    for query in recorded().values():
        assert re.search(r"sum by \(namespace, pool, model, group\)", query)
        for pattern in re.findall(r'envoy_cluster_name=~"([^"]+)"', query):
            assert re.fullmatch(pattern, name) or pattern.endswith("/http")
        found = [(label, group) for label, group in re.findall(r'"(\w+)", "\$(\d)", "envoy_cluster_name"', query)]
        assert found == [("model", "1"), ("group", "2")]
        (split,) = set(re.findall(r'"envoy_cluster_name", "([^"]+)"', query))
        matched = re.fullmatch(split, name)
        assert matched is not None
        assert matched.groups() == ("coins", "canary-7f")


@pytest.mark.parametrize(("factor", "windows"), [("14.4", ["1h", "5m"]), ("6", ["6h", "30m"])])
def test_an_slo_burns_where_it_does_over_a_long_and_a_short_window(factor: str, windows: list[str]) -> None:
    (query,) = [rule["expr"] for rule in alerts() if f"{factor} * max" in rule["expr"]]
    for name in ("failures", "requests"):
        assert re.findall(rf"segserve:model_{name}:rate2m\[(\w+)\]", query) == windows
    assert query.count(f"{factor} * max") == 2


def test_the_dashboard_of_rollouts_is_what_its_code_says() -> None:
    assert json.loads(rollout_dashboard.FILE.read_text()) == rollout_dashboard.dashboard()


def test_panels_do_not_overlap() -> None:
    for each in dashboards():
        taken: set[tuple[int, int]] = set()
        for panel in each["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not cells & taken
            assert at["x"] + at["w"] <= 24
            taken |= cells


def test_gateways_are_asked_for_what_their_listener_for_callers_counts() -> None:
    asked = [found for query in queries() for found in re.findall(r'envoy_http_conn_manager_prefix="(\w+)"', query)]
    assert set(asked) == {STAT_PREFIX}


def test_there_is_an_alert_for_each_thing_that_people_have_to_know() -> None:
    assert {rule["alert"] for rule in alerts()} == {
        "SegserveOperatorNotReconciling",
        "SegserveReconcileErrors",
        "SegserveModelNotReady",
        "SegservePoolDegraded",
        "SegserveEffectsFailing",
        "SegserveGatewayErrors",
        "SegserveRolloutHeld",
        "SegserveRolloutRolledBack",
        "SegserveRolloutBlind",
        "SegserveStoredObjectLarge",
        "SegserveSloBurn",
    }
    for rule in alerts():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert {"summary", "description"} <= rule["annotations"].keys()


def test_dashboards_can_be_told_apart_and_arrive_as_they_are(render: Render) -> None:
    assert len({dashboard["uid"] for dashboard in dashboards()}) == len(dashboards()) == 3
    found = the(render(SETS["monitoring"]), "ConfigMap")
    assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert [json.loads(found["data"][name]) for name in sorted(found["data"])] == dashboards()


def test_alerts_arrive_as_they_are(render: Render) -> None:
    spec = the(render(SETS["monitoring"]), "PrometheusRule")["spec"]
    assert spec == yaml.safe_load((CHART / "files/alerts.yaml").read_text())


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
