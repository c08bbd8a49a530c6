"""One trace from a request's caller through the real Envoy to the steps of the real Triton."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Literal

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from bench.coins import variant, write
from bench.platform import Running, platform
from fakes.collector import Collector, collector
from fakes.waiting import until
from segserve import Client

pytestmark = pytest.mark.platform

POOL = """\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {{name: default}}
spec:
  gateway:
    accessLog: {{samplingRatio: 1}}
    tracing: {{endpoint: "{url}", samplingRatio: 0}}
"""
MAXIMUM_CALLS = {"http": 1, "grpc": 20}
"""Triton overlooks the trace context of a gRPC request whose header is not followed by a zero byte in its memory."""
PARTS = ("pre", "network", "post")


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, Collector]]:
    """The coins behind a gateway that traces what its callers sample."""
    folder = tmp_path_factory.mktemp("traced")
    with ExitStack() as stack:
        spans = stack.enter_context(collector())
        pool = folder / "pool.yaml"
        pool.write_text(POOL.format(url=spans.url))
        models = write(folder / "models.yaml", variant())
        yield stack.enter_context(platform(models, pool)), spans


@pytest.fixture(scope="module")
def callers() -> InMemorySpanExporter:
    """What this process's provider of spans exports; OpenTelemetry lets a process have one."""
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        trace.set_tracer_provider(TracerProvider())
    provider, exporter = trace.get_tracer_provider(), InMemorySpanExporter()
    assert isinstance(provider, TracerProvider)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return exporter


def reached_server(trace_id: str, running: Running, spans: Collector, photo: bytes) -> bool:
    """Return whether the server has sent spans of a trace, once it has sent those of a later request."""
    later, parent = trace_id[::-1], "56" * 8
    with Client(running.url, telemetry=False, headers={"traceparent": f"00-{later}-{parent}-01"}) as client:
        client.segment(photo, model="coins")
    spans.inference(later, parent)
    return any(span.service == "segserve-triton" for span in spans.of(trace_id))


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_a_callers_trace_goes_on_through_gateway_and_server_to_each_step(
    traced: tuple[Running, Collector], callers: InMemorySpanExporter, photo: bytes, transport: Literal["http", "grpc"]
) -> None:
    running, spans = traced
    for _ in range(MAXIMUM_CALLS[transport]):
        callers.clear()
        with Client(running.url, transport=transport) as client:
            client.model_info("coins")
            with trace.get_tracer("a caller's").start_as_current_span("theirs"):
                result = client.segment(photo, model="coins")
        ours, theirs = (span for span in callers.get_finished_spans() if span.name in ("theirs", "segment coins"))
        assert ours.parent == theirs.get_span_context()
        context = ours.get_span_context()
        assert context is not None
        trace_id, client_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        if transport == "http" or reached_server(trace_id, running, spans, photo):
            break

    children = spans.inference(trace_id, client_id)

    (gateway,) = children[client_id]
    assert (gateway.service, gateway.name) == ("segserve-gateway", "POST coins")
    assert gateway.attributes["segserve.request_id"] == result.request_id
    assert gateway.attributes["segserve.revision"] == result.revision
    (received,) = children[gateway.id]
    assert (received.service, received.name) == ("segserve-triton", "InferRequest")
    (model,) = children[received.id]
    assert model.attributes["triton.model_name"] == "coins"
    assert model.attributes["triton.request_id"] == result.request_id
    steps = children[model.id]
    assert [step.name.rsplit("--", 1)[0] for step in steps] == ["segserve--pipeline"]
    (computed,) = (span for span in children[steps[0].id] if span.name == "compute")
    assert (
        steps[0].start_ns <= steps[0].events["QUEUE_START"] <= computed.start_ns <= computed.end_ns <= steps[0].end_ns
    )
    parts = until(
        lambda: found if len(found := [span for span in spans.of(trace_id) if span.name in PARTS]) == 3 else None,
        "the spans of the model's parts",
    )
    assert [(span.name, span.parent, span.service) for span in parts] == [
        (part, steps[0].id, "segserve-triton") for part in PARTS
    ]
    logged = map(json.loads, running.segserve("logs", "--tail", "1000000", "-o", "json").splitlines())
    assert [line["trace_id"] for line in logged if line.get("request_id") == result.request_id] == [trace_id]
