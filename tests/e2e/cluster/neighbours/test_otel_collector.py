"""OpenTelemetry's own collector takes what gateway, Triton and steps send, and hands it on as one tree.

They run on this machine, and on a cluster whose pods reach only what how-to/trace.md lists.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from bench.coins import variant, write
from bench.platform import platform
from bench.ports import free_port
from fakes.cluster import Cluster, Json
from fakes.cluster_models import model, pool
from fakes.collector import Collector, collector
from fakes.docs import ROOT, blocks
from fakes.installed_operator import installed
from fakes.kube_router import policies_enforced
from fakes.neighbours import running
from fakes.served_namespace import ServedNamespace
from fakes.waiting import until
from segserve import Client

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours, pytest.mark.timeout(600)]

CALLER: Final = "00f067aa0ba902b7"
PAGE: Final[Json] = yaml.safe_load(blocks(ROOT / "docs/how-to/trace.md", "yaml")[0].text)


def configuration(port: int, receiver: str) -> dict[str, object]:
    """Return the collector's: spans by OTLP/HTTP, as the page has it, in batches to another receiver."""
    pipeline = {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["otlphttp"]}
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"0.0.0.0:{port}"}}}},
        "processors": {"batch": {"timeout": "200ms"}},
        "exporters": {"otlphttp": {"endpoint": receiver}},
        "service": {"pipelines": {"traces": pipeline}, "telemetry": {"metrics": {"level": "none"}}},
    }


@pytest.fixture(scope="module")
def handed_on(
    built: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[int, Collector]]:
    """The port of a collector on this machine, and what it hands on."""
    folder, port = tmp_path_factory.mktemp("collector"), free_port()
    config, said = folder / "collector.json", folder / "collector.log"
    with collector() as receiver:
        config.write_text(json.dumps(configuration(port, receiver.url)))
        with running([built("otelcol"), "--config", config], said) as process:
            until(lambda: "Everything is ready" in said.read_text() or process.poll() is not None, "it starts")
            assert process.poll() is None, said.read_text()
            yield port, receiver


def traced(host: str, port: int) -> Json:
    """Return the page's pool for a collector at an address."""
    tracing = {**PAGE["spec"]["gateway"]["tracing"], "endpoint": f"http://{host}:{port}"}
    return pool(gateway={"tracing": tracing})


@pytest.fixture
def this_machine(handed_on: tuple[int, Collector], tmp_path: Path) -> Iterator[str]:
    with platform(write(tmp_path / "models.yaml", variant(), traced("127.0.0.1", handed_on[0]))) as running:
        yield running.url


@pytest.fixture
def a_cluster(cluster: Cluster, namespace: str, handed_on: tuple[int, Collector]) -> Iterator[str]:
    port, listed = handed_on[0], ["networkPolicy.egress.enabled=true"]
    for pods in ("gateways", "servers"):
        rule = f"networkPolicy.egress.{pods}[0]"
        listed += [f"{rule}.to[0].ipBlock.cidr={cluster.host}/32", f"{rule}.ports[0].port={port}"]
    with policies_enforced(cluster), installed(cluster, [namespace], more=listed) as operator:
        served = ServedNamespace(cluster, operator, namespace)
        served.apply(traced(cluster.host, port), model())
        served.wait_ready("coins")
        yield served.url()


@pytest.mark.parametrize("place", ["this_machine", "a_cluster"])
def test_a_callers_trace_comes_out_of_the_collector_as_one_tree(
    handed_on: tuple[int, Collector], place: str, photo: bytes, request: pytest.FixtureRequest
) -> None:
    received, trace, url = handed_on[1], uuid.uuid4().hex, request.getfixturevalue(place)
    with Client(url, telemetry=False, headers={"traceparent": f"00-{trace}-{CALLER}-01"}) as client:
        result = client.segment(photo, model="coins")

    children = received.inference(trace, CALLER)

    (gateway,) = (span for span in children[CALLER] if span.name == "POST coins")
    (arrived,) = children[gateway.id]
    (inference,) = children[arrived.id]
    (step,) = children[inference.id]
    spans = (gateway, arrived, inference, step)
    assert [span.service for span in spans] == ["segserve-gateway", *["segserve-triton"] * 3]
    assert gateway.attributes["segserve.request_id"] == inference.attributes["triton.request_id"] == result.request_id
    parts = {"compute", "pre", "network", "post"}
    until(lambda: parts <= {span.name for span in received.of(trace) if span.parent == step.id}, "the step's parts")
