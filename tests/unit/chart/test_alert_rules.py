"""Rules by Prometheus' own test program: each alert fires for its failure, and for nothing else."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeAlias

import httpx
import pytest
import yaml

from charts.monitoring.dashboards import cost_of_an_hour, counted
from charts.monitoring.rules import ALERTS
from fakes.prometheus import ALERTMANAGER, alertmanager, alerts
from fakes.waiting import HANG_S, until

from .conftest import CHART

Series: TypeAlias = Mapping[str, str]
"""Prometheus' notation of values every 30 s, by series."""

RULES: Final = CHART / "files/alerts.yaml"
POOL: Final = 'namespace="lab",pool="main"'
MODEL: Final = f'{POOL},model="coins"'
INGRESS: Final = f'envoy_http_downstream_rq_xx{{envoy_http_conn_manager_prefix="ingress",{POOL},'
GATEWAY: Final = f'{POOL},pod="gateway-0"'
CLUSTER: Final = f'envoy_cluster_name="coins/main-7f/infer/http",{GATEWAY}'
HTTP_5XX: Final = f'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5",{CLUSTER}}}'
GRPC: Final = 'envoy_cluster_name="coins/main-7f/infer/grpc",' + GATEWAY
FAST: Final = f'envoy_cluster_upstream_rq_time_bucket{{le="250",{CLUSTER}}}'
OPERATOR: Final = 'pod="operator-0"'
FOR_EVER: Final = "x900"
FOR_A_DAY: Final = "x3400"


def always(value: float) -> str:
    return f"{value:g}{FOR_EVER}"


def grows(by: float) -> str:
    return f"0+{by:g}{FOR_EVER}"


HEALTHY: Final[Series] = {
    f"segserve_is_leader{{{OPERATOR}}}": always(1),
    'segserve_is_leader{pod="operator-1"}': always(0),
    f"segserve_watch_age_seconds{{{OPERATOR}}}": always(30),
    'segserve_reconcile_passes_total{outcome="ok"}': grows(10),
    'segserve_reconcile_passes_total{outcome="failed"}': grows(1),
    f'segserve_models{{{POOL},ready="True"}}': always(3),
    'segserve_pools{namespace="lab",ready="True"}': always(1),
    f'segserve_stored_bytes{{{POOL},purpose="plan"}}': always(20_000),
    f'{INGRESS}envoy_response_code_class="2"}}': grows(300),
    f'{INGRESS}envoy_response_code_class="5"}}': grows(1),
    f"envoy_cluster_upstream_rq_completed{{{CLUSTER}}}": grows(300),
    HTTP_5XX: grows(1),
    FAST: grows(297),
    f'envoy_cluster_upstream_rq_time_bucket{{le="+Inf",{CLUSTER}}}': grows(300),
    f'segserve_model_group{{{MODEL},group="main-7f",role="stable"}}': always(1),
    f"segserve_slo_error_ratio{{{MODEL}}}": always(0.01),
    f'segserve_slo_slow_ratio{{{MODEL},objective="p95"}}': always(0.05),
    f'segserve_slo_latency_weight{{{MODEL},objective="p95",le="250"}}': always(1),
    f"segserve_gateway_pass_age_seconds{{{GATEWAY}}}": always(2),
    f"segserve_gateway_api_contact_age_seconds{{{GATEWAY}}}": always(60),
    f"segserve_gateway_refusals_total{{{GATEWAY}}}": always(0),
    f"segserve_gateway_certificate_expires_seconds{{{GATEWAY}}}": always(90 * 86400),
    f'segserve_agent_server_ready{{{POOL},pod="server-0"}}': always(1),
    f'segserve_answers_total{{{MODEL},revision="r1"}}': grows(30),
    f'segserve_empty_answers_total{{{MODEL},revision="r1"}}': grows(3),
    f'segserve_class_answers_total{{{MODEL},revision="r1",class="coin"}}': grows(27),
    f'nv_gpu_memory_used_bytes{{{POOL},pod="server-0",gpu_uuid="0"}}': always(6e9),
    f'nv_gpu_memory_total_bytes{{{POOL},pod="server-0",gpu_uuid="0"}}': always(16e9),
}
RUNNING: Final[Series] = {
    f"segserve_rollout_weight{{{MODEL},{OPERATOR}}}": always(10),
    f"segserve_rollout_look_seconds{{{MODEL},{OPERATOR}}}": always(1),
}
ROLLOUT: Final = "SegserveRolloutRunning info"
# Of a new model the longer windows know no more than the shorter ones.
BURN_3D: Final = {"SegserveSloBurn warning 3d"}
BURN_6H: Final = {"SegserveSloBurn critical 6h", *BURN_3D}
BURN_1H: Final = {"SegserveSloBurn critical 1h", *BURN_6H}

FAILURES: Final = [
    ("none", {}, "7h", set()),
    ("a rollout", RUNNING, "1h", {ROLLOUT}),
    ("no leader", {f"segserve_is_leader{{{OPERATOR}}}": always(0)}, "10m", {"SegserveOperatorNotReconciling critical"}),
    ("a leader that sees nothing", {f"segserve_watch_age_seconds{{{OPERATOR}}}": always(200)}, "10m",
     {"SegserveOperatorNotReconciling critical"}),
    ("passes fail", {'segserve_reconcile_passes_total{outcome="failed"}': grows(20)}, "30m",
     {"SegserveReconcileErrors warning"}),
    ("a model is not ready", {f'segserve_models{{{POOL},ready="False"}}': always(1)}, "20m",
     {"SegserveModelNotReady warning"}),
    ("a model starts", {f'segserve_models{{{POOL},ready="False"}}': "1x20 stale"}, "20m", set()),
    ("a pool is not ready", {'segserve_pools{namespace="lab",ready="False"}': always(1)}, "15m",
     {"SegservePoolDegraded warning"}),
    ("a quota", {f'segserve_failing_effects{{{POOL},effect="StartGroup",{OPERATOR}}}': always(2)}, "15m",
     {"SegserveEffectsFailing warning"}),
    ("an operator that lost its Lease remembers failures",
     {f'segserve_failing_effects{{{POOL},effect="StartGroup",pod="operator-1"}}': always(2)}, "15m", set()),
    ("the gateway answers with 5xx", {f'{INGRESS}envoy_response_code_class="5"}}': grows(30)}, "10m",
     {"SegserveGatewayErrors critical"}),
    ("a gateway that nobody compares", {f"segserve_gateway_pass_age_seconds{{{GATEWAY}}}": always(300)}, "10m",
     {"SegserveGatewayStale warning"}),
    ("a gateway that does not reach the API server",
     {f"segserve_gateway_api_contact_age_seconds{{{GATEWAY}}}": always(300)}, "10m",
     {"SegserveGatewayStale warning"}),
    ("an Envoy that refuses plans", {f"segserve_gateway_refusals_total{{{GATEWAY}}}": grows(1)}, "10m",
     {"SegserveGatewayStale warning"}),
    ("a certificate ends", {f"segserve_gateway_certificate_expires_seconds{{{GATEWAY}}}": always(6 * 86400)}, "2h",
     {"SegserveCertificateExpires warning"}),
    ("a server hangs", {f'segserve_agent_server_ready{{{POOL},pod="server-0"}}': always(0)}, "15m",
     {"SegserveServerNotReady warning"}),
    ("a full GPU", {f'nv_gpu_memory_used_bytes{{{POOL},pod="server-0",gpu_uuid="0"}}': always(15.8e9)}, "15m",
     {"SegserveGpuMemoryHigh warning"}),
    ("a rollout waits for a person",
     {**RUNNING, f'segserve_rollout_held{{{MODEL},reason="Paused",{OPERATOR}}}': always(1)}, "40m",
     {ROLLOUT, "SegserveRolloutHeld warning"}),
    ("a rollback", {f'segserve_rollout_ends_total{{{MODEL},phase="RolledBack"}}': f"0x10 1{FOR_EVER}"}, "10m",
     {"SegserveRolloutRolledBack warning"}),
    ("nobody looks at a candidate",
     {**RUNNING, f"segserve_rollout_look_seconds{{{MODEL},{OPERATOR}}}": always(90)}, "5m",
     {ROLLOUT, "SegserveRolloutBlind critical"}),
    ("nobody looks while the candidate has no requests",
     {**RUNNING, f"segserve_rollout_look_seconds{{{MODEL},{OPERATOR}}}": always(90),
      f"segserve_rollout_weight{{{MODEL},{OPERATOR}}}": always(0)}, "5m", {ROLLOUT}),
    ("images became dark", {f"segserve_drifting{{{MODEL},{OPERATOR}}}": f"0x20 1{FOR_EVER}"}, "20m",
     {"SegserveDrifting warning"}),
    ("an object grows", {f'segserve_stored_bytes{{{POOL},purpose="plan"}}': always(800_000)}, "20m",
     {"SegserveStoredObjectLarge warning"}),
    ("a third of answers is empty, unlike yesterday",
     {f'segserve_empty_answers_total{{{MODEL},revision="r1"}}': "0+3x2880 8640+10x520"}, "28h",
     {"SegserveAnswersEmpty warning"}),
    ("as empty as yesterday", {f'segserve_empty_answers_total{{{MODEL},revision="r1"}}': grows(27)}, "28h", set()),
    ("few answers, all of them empty, unlike yesterday",
     {f'segserve_empty_answers_total{{{MODEL},revision="r1"}}': "0x2880 0+1x520",
      f'segserve_answers_total{{{MODEL},revision="r1"}}': grows(1)}, "28h", set()),
    ("a class is gone since yesterday",
     {f'segserve_class_answers_total{{{MODEL},revision="r1",class="coin"}}': "0+27x2880 77760+0x520"}, "28h",
     {"SegserveClassGone warning"}),
    ("a class is gone with all callers",
     {f'segserve_class_answers_total{{{MODEL},revision="r1",class="coin"}}': "0+27x2880 77760+0x520",
      f'segserve_answers_total{{{MODEL},revision="r1"}}': "0+30x2880 86400+0x520"}, "28h", set()),
    ("a fifth fails", {HTTP_5XX: grows(60)}, "15m", BURN_1H),
    ("a fifth fails by gRPC",
     {f"envoy_cluster_grpc_14{{{GRPC}}}": grows(60), f"envoy_cluster_upstream_rq_completed{{{GRPC}}}": grows(1)}, "15m",
     BURN_1H),
    ("eight in a hundred fail", {HTTP_5XX: grows(24)}, "40m", BURN_6H),
    ("two in a hundred fail", {HTTP_5XX: grows(6)}, "7h", BURN_3D),
    ("nearly all are slow", {FAST: grows(60)}, "15m", BURN_1H),
    ("four in ten are slow", {FAST: grows(180)}, "40m", BURN_6H),
    ("one in ten is slow", {FAST: grows(270)}, "7h", BURN_3D),
    ("one of two requests in an hour fails",
     {HTTP_5XX: f"0x10 1{FOR_EVER}", f"envoy_cluster_upstream_rq_completed{{{CLUSTER}}}": f"0x10 2{FOR_EVER}"}, "20m",
     set()),
    ("a candidate fails, which gates watch",
     {f'envoy_cluster_upstream_rq_completed{{envoy_cluster_name="coins/r2-7f/infer/http",{GATEWAY}}}': grows(30),
      f'envoy_cluster_upstream_rq_xx{{envoy_response_code_class="5",envoy_cluster_name="coins/r2-7f/infer/http",'
      f"{GATEWAY}}}": grows(30),
      f'segserve_model_group{{{MODEL},group="r2-7f",role="candidate"}}': always(1)}, "1h", set()),
    ("an incident that ended half an hour ago pages nobody any more", {HTTP_5XX: f"0+150x40 6000+1{FOR_EVER}"}, "50m",
     BURN_3D),
]  # fmt: skip


def judged(series: Series, expected: Iterable[tuple[str, str, float]], at: str, folder: Path) -> None:
    """Let promtool run the rules over series, and compare (query, labels, value) at a time."""
    by_query: dict[str, list[dict[str, Any]]] = {}
    for query, labels, value in expected:
        by_query.setdefault(query, []).extend([{"labels": labels, "value": value}] if labels else [])
    tests = [{"expr": query, "eval_time": at, "exp_samples": samples} for query, samples in by_query.items()]
    lasting, interval = (FOR_A_DAY, "5m") if at == "28h" else (FOR_EVER, "30s")
    inputs = [{"series": name, "values": values.replace(FOR_EVER, lasting)} for name, values in series.items()]
    file = folder / "rules_test.json"
    test = {"interval": "30s", "input_series": inputs, "promql_expr_test": tests}
    file.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": interval, "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("promtool")
@pytest.mark.parametrize(("failure", "at", "fire"), [pytest.param(*case[1:], id=case[0]) for case in FAILURES])
def test_an_alert_fires_for_its_failure_and_for_nothing_else(
    failure: Series, at: str, fire: set[str], tmp_path: Path
) -> None:
    query = 'group by (alertname, severity, window) (ALERTS{alertstate="firing"})'
    expected = [(query, "", 0.0)]
    for alert in fire:
        name, severity, window = [*alert.split(), ""][:3]
        more = f',window="{window}"' if window else ""
        expected.append((query, f'{{alertname="{name}",severity="{severity}"{more}}}', 1.0))
    judged({**HEALTHY, **failure}, expected, at, tmp_path)


@pytest.mark.same
def test_each_alert_has_a_failure_for_which_it_fires() -> None:
    assert {alert.split()[0] for case in FAILURES for alert in case[3]} == {alert.name for alert in ALERTS}


@pytest.mark.needs("promtool")
def test_the_burn_of_an_slo_is_the_share_of_bad_requests_by_the_allowed_one(tmp_path: Path) -> None:
    """2 % of 1 % fail; of latencies, 5 % may be slow, and 40 % lie between 250 and 500 ms, evenly."""
    at_400_ms = {
        FAST: grows(180),
        f'envoy_cluster_upstream_rq_time_bucket{{le="500",{CLUSTER}}}': grows(300),
        f'segserve_slo_latency_weight{{{MODEL},objective="p95",le="250"}}': always(0.4),
        f'segserve_slo_latency_weight{{{MODEL},objective="p95",le="500"}}': always(0.6),
        HTTP_5XX: grows(6),
    }
    rounded = "round(segserve:slo_burn:rate5m, 0.001)"
    expected = [(rounded, f'{{{MODEL},objective="errors"}}', 2.0), (rounded, f'{{{MODEL},objective="p95"}}', 3.2)]
    judged({**HEALTHY, **at_400_ms}, expected, "10m", tmp_path)


@pytest.mark.needs("promtool")
def test_buckets_are_those_of_the_operator_as_prometheus_3_writes_them_too(tmp_path: Path) -> None:
    renamed = {re.sub(r'le="250"', 'le="250.0"', name) if name == FAST else name: v for name, v in HEALTHY.items()}
    query = "round(segserve:slo_burn:rate5m, 0.001)"
    expected = [(query, f'{{{MODEL},objective="errors"}}', 0.333), (query, f'{{{MODEL},objective="p95"}}', 0.2)]
    judged(renamed, expected, "10m", tmp_path)


@pytest.mark.needs("promtool")
def test_an_hour_costs_what_models_use_at_the_prices_that_are_typed_in(tmp_path: Path) -> None:
    """Both have one core, one of them 2 GiB and the other one 1 GiB and half of a GPU."""
    other = MODEL.replace("coins", "cells")
    used = {
        **{f'segserve_cost_cpu_seconds_total{{{each},part="steps"}}': grows(30) for each in (MODEL, other)},
        f"segserve_cost_memory_byte_seconds_total{{{MODEL}}}": grows(60 * 2**30),
        f"segserve_cost_memory_byte_seconds_total{{{other}}}": grows(30 * 2**30),
        f"segserve_cost_gpu_seconds_total{{{other}}}": grows(15),
    }
    typed = {"cpu_hour": "0.04", "gib_hour": "0.005", "gpu_hour": "2.5"}
    query = re.sub(r"\$(\w+)", lambda found: typed.get(found[1], ".*"), cost_of_an_hour())
    expected = [(f"round({query}, 0.001)", f"{{{each}}}", cost) for each, cost in ((other, 1.295), (MODEL, 0.05))]
    judged(used, expected, "10m", tmp_path)


@pytest.mark.needs("promtool")
def test_a_first_decision_of_its_kind_is_drawn_as_well_as_later_ones(tmp_path: Path) -> None:
    """After 10 min one kind has been counted once more in five minutes, and the other one has begun two minutes ago."""
    decided = {
        f'segserve_rollout_decisions_total{{{MODEL},signal="ADVANCE"}}': "1x15 2x20",
        f'segserve_rollout_decisions_total{{{MODEL},signal="PROVED"}}': "_x15 1x2 2x20",
    }
    query = re.sub(r"\$\w+", ".*", counted("decisions_total", "signal"))
    expected = [(query, f'{{{MODEL},signal="{signal}"}}', grown) for signal, grown in (("ADVANCE", 1), ("PROVED", 2))]
    judged(decided, expected, "10m", tmp_path)


@pytest.mark.needs("amtool")
def test_the_example_for_alertmanager_is_a_configuration_of_it() -> None:
    done = subprocess.run(["amtool", "check-config", str(ALERTMANAGER)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.needs("amtool")
def test_while_a_rollout_runs_warnings_about_its_model_wait_and_pages_do_not(tmp_path: Path) -> None:
    model = {"namespace": "lab", "pool": "main", "model": "coins"}
    firing = [
        ("SegserveRolloutRunning", "info", model),
        ("SegserveAnswersEmpty", "warning", model),
        ("SegserveRolloutHeld", "warning", model),
        ("SegserveSloBurn", "critical", model),
        ("SegserveAnswersEmpty", "warning", {**model, "model": "leaves"}),
    ]
    sent = [{"labels": {"alertname": name, "severity": how, **of}} for name, how, of in firing]
    with alertmanager(tmp_path) as url:
        httpx.post(f"{url}/api/v2/alerts", json=sent, timeout=HANG_S).raise_for_status()

        def waiting() -> list[tuple[str, str]]:
            held = [each["labels"] for each in alerts(url) if each["status"]["inhibitedBy"]]
            return [(labels["alertname"], labels["model"]) for labels in held]

        assert until(waiting, "one of them is inhibited") == [("SegserveAnswersEmpty", "coins")]


def test_what_the_example_for_alertmanager_names_are_our_alerts() -> None:
    text = ALERTMANAGER.read_text()
    config = yaml.safe_load(text)
    names = {alert.name for alert in ALERTS}
    patterns = re.findall(r'alertname(?:=~?|!~)"([^"]+)"', text)

    assert all(any(re.fullmatch(pattern, name) for name in names) for each in patterns for pattern in each.split("|"))
    receivers = {receiver["name"] for receiver in config["receivers"]}
    assert {config["route"]["receiver"], *(route["receiver"] for route in config["route"]["routes"])} == receivers
