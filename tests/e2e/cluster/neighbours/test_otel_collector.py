"""OpenTelemetry's own collector takes what gateway, Triton and steps send, and hands it on as one tree."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.coins import variant, write
from bench.platform import Running, platform
from bench.ports import free_port
from fakes.cluster_models import pool
from fakes.collector import Collector, collector
from fakes.neighbours import running
from fakes.waiting import until
from segserve import Client

pytestmark = [pytest.mark.cluster, pytest.mark.neighbours]

CALLER = "00f067aa0ba902b7"


def configuration(port: int, receiver: str) -> dict[str, object]:
    """Return the collector's: spans by OTLP/HTTP, as how-to/trace.md has it, in batches to another receiver."""
    pipeline = {"receivers": ["otlp"], "processors": ["batch"], "exporters": ["otlphttp"]}
    return {
        "receivers": {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}},
        "processors": {"batch": {"timeout": "200ms"}},
        "exporters": {"otlphttp": {"endpoint": receiver}},
        "service": {"pipelines": {"traces": pipeline}, "telemetry": {"metrics": {"level": "none"}}},
    }


@pytest.fixture(scope="module")
def traced(
    built: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Collector]]:
    folder, port = tmp_path_factory.mktemp("traced"), free_port()
    with ExitStack() as stack:
        handed_on = stack.enter_context(collector())
        config = folder / "collector.json"
        config.write_text(json.dumps(configuration(port, handed_on.url)))
        said = folder / "collector.log"
        process = stack.enter_context(running([built("otelcol"), "--config", config], said))
        until(lambda: "Everything is ready" in said.read_text() or process.poll() is not None, "the collector starts")
        assert process.poll() is None, said.read_text()
        traces = pool(gateway={"tracing": {"endpoint": f"http://127.0.0.1:{port}", "samplingRatio": 0}})
        yield stack.enter_context(platform(write(folder / "models.yaml", variant(), traces))), handed_on


def test_a_callers_trace_comes_out_of_the_collector_as_one_tree(
    traced: tuple[Running, Collector], photo: bytes
) -> None:
    running, handed_on = traced
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with Client(running.url, telemetry=False, headers={"traceparent": f"00-{trace}-{CALLER}-01"}) as client:
        result = client.segment(photo, model="coins")

    children = handed_on.inference(trace, CALLER)

    (gateway,) = (span for span in children[CALLER] if span.name == "POST coins")
    (received,) = children[gateway.id]
    (model,) = children[received.id]
    (step,) = children[model.id]
    assert [span.service for span in (gateway, received, model, step)] == ["segserve-gateway", *["segserve-triton"] * 3]
    assert gateway.attributes["segserve.request_id"] == model.attributes["triton.request_id"] == result.request_id
    parts = {"compute", "pre", "network", "post"}
    until(lambda: parts <= {span.name for span in handed_on.of(trace) if span.parent == step.id}, "the step's parts")
