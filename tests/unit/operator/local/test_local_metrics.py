"""The local platform's metrics: texts of several processes as one, and who may read it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from fakes.observed_models import FIRST, holder, model
from segserve_builder.agent.cost import COSTS_FILE, CostLedger, Owner, ServedRevision, ServerLook
from segserve_builder.agent.processes import ProcessUse
from segserve_builder.agent.server import StepCounts
from segserve_builder.sources.access import LOCAL
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import LocalFleet
from segserve_operator.adapters.local.gateway import LocalGateway
from segserve_operator.adapters.local.runtime import RuntimeEnvironment
from segserve_operator.adapters.traffic.envoy_messages import ROUTE_CONFIGURATION, parse, to_json
from segserve_operator.adapters.traffic.envoy_routes import encode_routes
from segserve_operator.adapters.traffic.envoy_telemetry import METRICS_CLUSTER, metrics_clusters
from segserve_operator.api.rollout_policy import Slo
from segserve_operator.api.triton_pool import TritonPool
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.world.observed import EffectFailure, ObservedCondition, Roles
from segserve_operator.local_platform.metrics import LocalMetrics, MetricsText

RUNTIME = RuntimeEnvironment(*map(Path, ("/runtime", "/runtime/code", "/lib", "/triton", "/backends")))
TRITON = """\
# HELP nv_inference_count Number of inferences
# TYPE nv_inference_count counter
nv_inference_count{model="coins",version="1"} 3
# HELP nv_cpu_utilization CPU
# TYPE nv_cpu_utilization gauge
nv_cpu_utilization 0.5
"""
ENVOY = """\
# TYPE envoy_cluster_upstream_rq_time histogram
envoy_cluster_upstream_rq_time_bucket{envoy_cluster_name="coins/main/infer/http",le="1"} 0
envoy_cluster_upstream_rq_time_sum{envoy_cluster_name="coins/main/infer/http"} 5
"""


def merged() -> str:
    text = MetricsText()
    for group in ("main", "own"):
        text.add(TRITON, {"group": group})
    text.add(ENVOY, {"pool": "default"})
    return str(text)


def test_a_metric_of_two_servers_is_described_once_and_its_series_say_whose_they_are() -> None:
    lines = merged().splitlines()

    assert lines.count("# TYPE nv_inference_count counter") == 1
    assert lines.count('nv_inference_count{group="main",model="coins",version="1"} 3') == 1
    assert lines.count('nv_cpu_utilization{group="own"} 0.5') == 1


def test_envoys_series_have_the_model_and_group_of_their_cluster() -> None:
    labels = 'pool="default",model="coins",group="main",envoy_cluster_name="coins/main/infer/http"'

    assert f'envoy_cluster_upstream_rq_time_bucket{{{labels},le="1"}} 0' in merged().splitlines()


def test_the_text_is_one_that_prometheus_reads_without_duplicates() -> None:
    families = list(text_string_to_metric_families(merged()))
    series = Counter((each.name, *sorted(each.labels.items())) for family in families for each in family.samples)

    assert set(series.values()) == {1}
    assert len({family.name for family in families}) == len(families)


@pytest.mark.parametrize(
    ("restricted", "metrics", "served"), [(False, True, True), (True, True, False), (False, False, False)]
)
def test_metrics_are_served_where_no_model_names_its_callers(restricted: bool, metrics: bool, served: bool) -> None:
    encoded = encode_routes([], timeout_s=60, restricted=restricted, metrics=metrics)
    text = json.dumps(to_json(parse(ROUTE_CONFIGURATION, encoded)))

    assert (METRICS_CLUSTER in text) is served


def test_a_gateway_without_the_socket_has_no_cluster_for_it() -> None:
    assert metrics_clusters(None) == []
    assert metrics_clusters("/run/metrics.sock")[0]["name"] == METRICS_CLUSTER


def local_metrics(root: Path) -> LocalMetrics:
    """The metrics of a state folder with one group, whose server does not run."""
    state = StateFolder(root)
    folder = state.groups / "main"
    folder.mkdir(parents=True)
    (folder / "ports.json").write_text(json.dumps({"http": 1, "grpc": 2, "metrics": 3}))
    pool = TritonPool.model_validate({"metadata": {"name": "default"}, "spec": {}})
    gateway, fleet = LocalGateway(state, pool.spec.gateway), LocalFleet(state, RUNTIME, root, LOCAL)
    return LocalMetrics(state, gateway, fleet, lambda: pool)


async def test_what_alerts_ask_of_an_operator_and_its_servers_is_told_of_this_machine(tmp_path: Path) -> None:
    metrics = local_metrics(tmp_path)
    broken = ObservedCondition("Ready", "False", "NoServer")
    failure = EffectFailure("StartGroup", "main", FailureReason("PortTaken", "it is taken"), 1, 0.0, reported=True)
    coins = model(FIRST, Roles(stable=holder(FIRST, "main")), slo=Slo(), said=[broken])
    metrics.observe((coins,), {}, {}, [failure])

    families = text_string_to_metric_families(await metrics.text())
    told = {each.name: (each.labels, each.value) for family in families for each in family.samples}

    of_pool, of_server = {"namespace": "", "pool": "default"}, {"pool": "default", "group": "main", "pod": "main"}
    assert told["segserve_is_leader"] == ({}, 1)
    assert "segserve_watch_age_seconds" in told
    assert told["segserve_models"] == ({**of_pool, "ready": "False"}, 1)
    assert told["segserve_model_group"] == ({**of_pool, "model": "coins", "group": "main", "role": "stable"}, 1)
    assert told["segserve_failing_effects"] == ({**of_pool, "effect": "StartGroup"}, 1)
    assert told["segserve_agent_server_ready"] == (of_server, 0)


async def test_what_a_revision_has_used_is_read_from_the_agents_ledger(tmp_path: Path) -> None:
    metrics = local_metrics(tmp_path)
    ledger = CostLedger(StateFolder(tmp_path).groups / "main" / COSTS_FILE)
    served = ServedRevision(Owner("coins", "coins-1"), ("net",))
    for at_s, cpu_s in ((0.0, 1.0), (10.0, 4.0)):
        use, counts = {"1@1": ProcessUse("net", cpu_s, 10.0)}, {"net": StepCounts(10 * cpu_s, cpu_s)}
        ledger.add(ServerLook(at_s, use, counts), [served])

    lines = (await metrics.text()).splitlines()

    owner = 'pool="default",group="main",pod="main",model="coins"'
    assert f'segserve_cost_cpu_seconds_total{{{owner},part="steps",revision="coins-1"}} 3.0' in lines
    assert f'segserve_cost_memory_byte_seconds_total{{{owner},revision="coins-1"}} 100.0' in lines
    assert f'segserve_cost_requests_total{{{owner},revision="coins-1"}} 30.0' in lines
