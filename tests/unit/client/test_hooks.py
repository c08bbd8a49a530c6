"""What a client tells of its work: events, log lines, spans."""

from __future__ import annotations

import logging
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fakes.kserve import Fault
from segserve import (
    AsyncClient,
    BadRequestError,
    Client,
    ErrorEvent,
    Hooks,
    MissingExtraError,
    ModelNotFoundError,
    OverloadedError,
    RequestEvent,
    ResponseEvent,
    RetryEvent,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fakes.kserve import Gateway

    from .conftest import Served

SECRET = "hunter2-hunter2"


@pytest.fixture
def events() -> list[Any]:
    return []


@pytest.fixture
def hooks(events: list[Any]) -> Hooks:
    return Hooks(events.append, events.append, events.append, events.append)


def test_hooks_are_told_of_each_request_answer_and_retry_in_order(
    served: Served, photo: bytes, hooks: Hooks, events: list[Any]
) -> None:
    served.gateway.faults.append(Fault(http=503, grpc="UNAVAILABLE", message="full"))

    with Client(served.url, transport=served.transport, hooks=hooks) as client:
        result = client.segment(photo, model="coins", request_id="mine")

    kinds = [(type(event), getattr(event, "kind", None), getattr(event, "attempt", None)) for event in events]
    assert kinds == [
        (RequestEvent, "config", 1),
        (ResponseEvent, "config", 1),
        (RequestEvent, "infer", 1),
        (RetryEvent, "infer", 1),
        (RequestEvent, "infer", 2),
        (ResponseEvent, "infer", 2),
    ]
    assert {event.request_id for event in events} == {"mine"} == {result.request_id}
    assert {event.model for event in events} == {"coins"}
    assert events[2].sent_bytes == len(photo) + 4
    assert isinstance(events[3].error, OverloadedError)
    assert events[5].revision == result.revision


async def test_hooks_are_told_of_the_error_that_the_caller_gets(
    served: Served, photo: bytes, hooks: Hooks, events: list[Any]
) -> None:
    async with AsyncClient(served.url, transport=served.transport) as client:
        with pytest.raises(ModelNotFoundError) as caught:
            await client.with_options(hooks=hooks).segment(photo, model="dogs")

    assert isinstance(events[-1], ErrorEvent)
    assert events[-1].error is caught.value
    assert events[-1].request_id == caught.value.request_id


def test_the_log_names_requests_and_shows_neither_payloads_nor_secrets(
    gateway: Gateway, photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.faults.append(Fault(http=503))
    with (
        caplog.at_level(logging.DEBUG, "segserve"),
        gateway.http() as url,
        Client(url, api_key=SECRET, headers={"cookie": SECRET}) as client,
    ):
        request_id = client.segment(photo, model="coins").request_id

    lines = [record.getMessage() for record in caplog.records if record.name == "segserve"]
    assert len(lines) == 6
    assert all(f"request {request_id}: " in line for line in lines)
    assert [record.levelname for record in caplog.records if "next in" in record.getMessage()] == ["INFO"]
    assert SECRET not in "".join(lines)


@pytest.mark.parametrize(("level", "seen"), [("debug", True), ("INFO", False), ("", False)])
def test_the_environment_sets_up_the_log(gateway: Gateway, level: str, seen: bool) -> None:
    code = "import sys; from segserve import Client; Client(sys.argv[1]).model_info('coins')"
    with gateway.http() as url:
        done = subprocess.run(
            [sys.executable, "-c", code, url],
            env={"SEGSERVE_LOG": level},
            capture_output=True,
            check=True,
            text=True,
        )

    assert ("answered by coins-aaaaaaaaaa" in done.stderr) is seen


def test_a_level_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSERVE_LOG", "loud")
    with pytest.raises(BadRequestError, match="debug or info, got 'loud'"):
        Client()


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """What the process's provider of spans exports; OpenTelemetry lets a process have one."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def test_a_call_is_one_client_span_below_the_callers_whose_trace_is_sent(
    served: Served, photo: bytes, spans: InMemorySpanExporter
) -> None:
    served.gateway.faults.append(Fault(http=503, grpc="UNAVAILABLE"))
    with Client(served.url, transport=served.transport) as client:
        client.model_info("coins")
        with trace.get_tracer("the caller's").start_as_current_span("theirs"):
            result = client.segment(photo, model="coins")

    _, ours, theirs = spans.get_finished_spans()
    context = ours.get_span_context()
    assert (ours.name, ours.kind, ours.parent) == ("segment coins", trace.SpanKind.CLIENT, theirs.get_span_context())
    (asked,) = served.gateway.asked
    assert asked.headers["traceparent"].startswith(f"00-{context.trace_id:032x}-{context.span_id:016x}-")
    assert asked.headers["x-request-id"] == result.request_id
    attributes = ours.attributes or {}
    assert attributes["server.address"] == "127.0.0.1"
    assert attributes["segserve.revision"] == result.revision
    assert attributes["segserve.request_id"] == result.request_id
    assert attributes["http.request.resend_count"] == 1
    assert [event.name for event in ours.events] == ["retry"]
    method = {"http": ("http.request.method", "POST"), "grpc": ("rpc.system.name", "grpc")}[served.transport]
    assert method in attributes.items()


async def test_a_call_that_fails_is_a_span_with_its_error(
    served: Served, photo: bytes, spans: InMemorySpanExporter
) -> None:
    served.gateway.faults.append(Fault(http=500, grpc="INTERNAL", message="broken"))
    async with AsyncClient(served.url, transport=served.transport, telemetry=True) as client:
        with pytest.raises(Exception, match="broken"):
            await client.segment(photo, model="coins")

    (span,) = spans.get_finished_spans()
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, "broken")
    attributes = span.attributes or {}
    assert attributes["error.type"] == "ServerError"
    status = {"http": ("http.response.status_code", 500), "grpc": ("rpc.response.status_code", "INTERNAL")}
    assert status[served.transport] in attributes.items()


def test_without_telemetry_no_span_is_made_and_no_trace_sent(
    gateway: Gateway, photo: bytes, spans: InMemorySpanExporter
) -> None:
    with gateway.http() as url, Client(url, telemetry=False) as client:
        client.segment(photo, model="coins")

    assert not spans.get_finished_spans()
    assert "traceparent" not in gateway.asked[0].headers


def test_a_program_that_has_not_loaded_opentelemetry_does_not_load_it() -> None:
    code = "from segserve import Client; Client(); import sys; print('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"False\n"


def test_telemetry_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'segserve\[telemetry\]'"):
        Client(telemetry=True)
