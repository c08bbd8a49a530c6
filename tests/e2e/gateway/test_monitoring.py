"""Every query of dashboards and rules, answered by a Prometheus that scraped a real Envoy and our own metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from bench.ports import free_port
from fakes.gateway import RunningGateway
from fakes.gateway_clients import by_grpc, by_http, served
from fakes.prometheus import answers, ask, prometheus, queries, unexpectedly_empty
from fakes.triton import StubTriton
from fakes.waiting import HANG_S, until
from segserve_builder.steps.answer_metrics import METRIC_FAMILIES
from segserve_common.kube.kinds import MODELS, POOLS
from segserve_operator.adapters.kube.view import View
from segserve_operator.gateway_sync.settings import GatewaySettings, Settings
from segserve_operator.gateway_sync.sidecar import Sidecar
from segserve_operator.metrics.registry import Metrics, health_server

pytestmark = [pytest.mark.platform, pytest.mark.needs("prometheus"), pytest.mark.timeout(600)]

MODEL: Final = "coins"
NAMESPACE: Final = "lab"
POOL: Final = "default"
EMPTY: Final = {
    "segserve_rollout_": "no rollout runs",
    "nv_": "the server is a stand-in for Triton; see test_server_queries.py",
    **{family.name.removesuffix("_total"): "which counts no answers" for family in METRIC_FAMILIES},
    "segserve_agent_": "no agent runs",
    "segserve_drift": "no model is watched for drift",
    "segserve_cost_": "nor counts what models use",
    "segserve_reconcile_": "no operator passes over a cluster",
    "segserve_api_requests": "nor an API server",
    "segserve_notifications": "nor anybody to notify",
    "segserve_stored_bytes": "nor stored objects",
    "segserve_is_leader": "nor a leader",
    "expires_seconds": "the gateway has no certificate",
    "ALERTS": "nothing is wrong",
    "pending_overflow": "Envoy tells a counter once it has counted",
    'envoy_response_code_class="5"': "nothing failed, and Envoy tells a counter once it has counted",
}
"""Parts of queries that may be empty here, and why."""


@asynccontextmanager
async def scraped(running: RunningGateway) -> AsyncIterator[dict[str, dict[str, str]]]:
    """Serve the gateway's metrics and the operator's as pods do; yields the addresses with their labels."""
    gateway = {"maxRequestBytes": 2**21, "requestTimeoutSeconds": 60, "syncPort": free_port()}
    told = GatewaySettings.model_validate({**gateway, "port": running.gateway.port})
    api: Any = None
    sidecar = Sidecar(Settings("gateway-0", "1", NAMESPACE, POOL, told, running.folder), api)
    sidecar.probes.start()
    view, metrics, port = View((MODELS, POOLS)), Metrics(), free_port()
    metadata = {"namespace": NAMESPACE, "uid": "1", "resourceVersion": "1"}
    spec = {"slo": {"errorPercent": 1, "p95Milliseconds": 30_000}}
    status = {"roles": {"stable": {"group": "main", "revision": "r1"}}}
    model = {"metadata": {**metadata, "name": MODEL}, "spec": spec, "status": status}
    view.take(MODELS, model)
    view.take(POOLS, {"metadata": {**metadata, "name": POOL}})
    async with health_server(port, lambda: None, metrics.registry, lambda: metrics.observe(view)):
        yield {
            f"127.0.0.1:{port}": {},
            f"127.0.0.1:{sidecar.probes.port}": {"namespace": NAMESPACE, "pool": POOL, "pod": "gateway-0"},
        }
    await asyncio.to_thread(sidecar.probes.stop)


def measured(url: str, authority: str) -> dict[str, list[dict[str, Any]] | str]:
    """Ask the model until its SLO is known and every query has an answer; return what each gives."""
    found: dict[str, list[dict[str, Any]] | str] = {}

    def known() -> bool:
        by_http(authority)
        by_grpc(authority)
        burn = ask(url, f'segserve:slo_burn:rate5m{{objective="p95",model="{MODEL}"}} < 1')
        return bool(burn) and isinstance(burn, list)

    def all_have_an_answer() -> bool:
        # A scrape that takes longer than its interval, on a busy machine, makes gauges stale until the next one.
        found.update(answers(url, queries()))
        return not unexpectedly_empty(found, EMPTY)

    until(known, "the burn rate of the SLO is known", within_s=3 * HANG_S)
    with suppress(AssertionError):  # the test says which queries have none
        until(all_have_an_answer, "every query has an answer")
    return found


async def test_every_query_of_dashboards_and_rules_has_an_answer(
    gateway: RunningGateway, old: StubTriton, tmp_path: Path
) -> None:
    await gateway.traffic.apply(served(old))
    async with scraped(gateway) as targets:
        with prometheus(tmp_path, targets) as url:
            found = await asyncio.to_thread(measured, url, gateway.authority)
            firing = await asyncio.to_thread(ask, url, 'ALERTS{alertstate="firing",alertname="SegserveSloBurn"}')

    assert {query: answer for query, answer in found.items() if isinstance(answer, str)} == {}
    assert unexpectedly_empty(found, EMPTY) == []
    assert sum(map(bool, found.values())) > 30
    assert firing == []
