"""What a gateway pod's sidecar says of counts: when asked, and to a Prometheus."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from bench.ports import free_ports
from fakes.gateway_clients import Load, ask, by_grpc, by_http, served
from fakes.waiting import HANG_S
from segserve_operator.adapters.samples import wire
from segserve_operator.adapters.samples.prometheus import PrometheusError, PrometheusSamples
from segserve_operator.core.rollout.counters import Series
from segserve_operator.gateway_sync.settings import GatewaySettings, Settings
from segserve_operator.gateway_sync.sidecar import Sidecar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from fakes.gateway import RunningGateway
    from fakes.triton import StubTriton

pytestmark = pytest.mark.platform

MODELS = {"coins": ("main", "coins-new")}
SCRAPED = """
global: {scrape_interval: 2s, scrape_timeout: 2s}
scrape_configs:
  - job_name: gateways
    static_configs:
      - targets: ["127.0.0.1:%d"]
        labels: {namespace: vision, pool: main, pod: gateway-0}
"""


@pytest.fixture
async def sidecar(gateway: RunningGateway) -> AsyncIterator[str]:
    """The address of a sidecar without an API: its questions are answered."""
    told = GatewaySettings.model_validate(
        {
            "port": gateway.gateway.port,
            "maxRequestBytes": 2**21,
            "requestTimeoutSeconds": 60,
            "syncPort": free_ports(1)[0],
        }
    )
    api: Any = None
    found = Sidecar(Settings("gateway-0", "uid-7", "vision", "main", told, gateway.folder), api)
    found.probes.start()
    yield f"http://127.0.0.1:{found.probes.port}"
    await asyncio.to_thread(found.probes.stop)


@pytest.fixture
def prometheus(sidecar: str, tmp_path: Path) -> Iterator[str]:
    """The address of a Prometheus that scrapes the sidecar."""
    config, (port,) = tmp_path / "prometheus.yml", free_ports(1)
    config.write_text(SCRAPED % int(sidecar.rpartition(":")[2]))
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(HANG_S)


async def test_a_sidecar_says_what_its_envoy_has_counted(
    gateway: RunningGateway, sidecar: str, old: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    await asyncio.to_thread(by_http, gateway.authority)
    await asyncio.to_thread(by_grpc, gateway.authority)

    async with wire.pod_client() as client:
        answer = await client.get(f"{sidecar}/counts", params={"model": ["cells", "coins"]})
    found = wire.decode(answer.content, 5000.0)

    assert set(found) == {"coins"}
    assert {series: tally.attempts for series, tally in found["coins"].by_series.items()} == {
        Series("main", "http"): 1,
        Series("main", "grpc"): 1,
    }
    assert found["coins"].epoch == f"uid-7/{gateway.traffic.epoch()}"
    assert 5000 - HANG_S < found["coins"].began_s < 5000


async def test_a_sidecar_that_is_asked_of_no_model_says_what_it_needs(sidecar: str) -> None:
    async with wire.pod_client() as client:
        answer = await client.get(f"{sidecar}/counts")

    assert (answer.status_code, answer.text) == (400, "/counts needs model=, once or more\n")


async def test_a_sidecar_without_its_envoy_says_so(gateway: RunningGateway, sidecar: str) -> None:
    gateway.kill()

    async with wire.pod_client() as client:
        answer = await client.get(f"{sidecar}/counts", params={"model": "coins"})

    assert answer.status_code == 503


@pytest.mark.needs("prometheus")
async def test_a_prometheus_says_the_same_but_for_the_edges_of_latencies(
    gateway: RunningGateway, prometheus: str, old: StubTriton
) -> None:
    await gateway.traffic.apply(served(old))
    old.status = 503
    assert (await ask(gateway, "/v2/models/coins/infer")).status_code == 503
    old.status, old.delay_s = 200, 0.12
    load = Load(gateway, clients=4)
    async with load:
        await load.goes_on()
    source = PrometheusSamples(prometheus, {"namespace": "vision", "pool": "main"})

    said = (await gateway.traffic.count(["coins"]))["coins"]
    async with asyncio.timeout(HANG_S):
        while not (found := (await _sample(source)).get("gateway-0")) or (
            _counts(found.by_series) != _counts(said.by_series)
        ):
            await asyncio.sleep(0.2)
            said = (await gateway.traffic.count(["coins"]))["coins"]

    assert found.began_s == pytest.approx(said.began_s, abs=0.01)
    for series, tally in found.by_series.items():
        assert sum(count for _, count in tally.latencies) == sum(c for _, c in said.by_series[series].latencies)
        slow = sum(count for lower_ms, count in tally.latencies if lower_ms >= 100.0)
        assert slow >= tally.attempts - tally.failed


async def test_a_prometheus_that_is_away_is_an_error() -> None:
    with pytest.raises(PrometheusError, match="does not answer"):
        await PrometheusSamples("http://127.0.0.1:1").samples(MODELS, time.time())


async def _sample(source: PrometheusSamples) -> Any:
    try:
        return (await source.samples(MODELS, time.time()))["coins"]
    except PrometheusError:
        return {}  # it starts


def _counts(by_series: Any) -> Any:
    return {series: replace(tally, latencies=()) for series, tally in by_series.items()}
