"""The gateway's spans, on the real Envoy: which requests have one, what it says, and what servers get."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme

from fakes.collector import Collector, collector
from fakes.comparator import running_comparator
from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import ask, by_grpc, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.api.telemetry import AccessLog, Tracing
from segserve_operator.core.traffic import Mirror

pytestmark = [pytest.mark.platform, pytest.mark.core]

INFER = "/v2/models/coins/infer"
TRACE, PARENT = "ab" * 16, "cd" * 8
SAMPLED, UNSAMPLED = f"00-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-00"
CANARY = "canary-never-in-a-span"


@pytest.fixture
def spans() -> Iterator[Collector]:
    with collector() as found:
        yield found


async def post(gateway: RunningGateway, path: str = INFER, **headers: str) -> int:
    """Return the status of an inference with these headers."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return (await ask(gateway, path, content=b"{}", headers=named)).status_code


def received(triton: StubTriton) -> list[str | None]:
    """Return the trace context of each inference that a server got."""
    return [asked.headers.get("traceparent") for asked in triton.asked if INFER in asked.path]


async def arrived(spans: Collector, number: int) -> None:
    async def enough() -> bool:
        return len(spans.spans) >= number

    await eventually(enough, f"{number} spans")


async def test_a_sampled_request_has_a_span_between_its_callers_and_the_servers(
    tmp_path: Path, old: StubTriton, spans: Collector
) -> None:
    tracing = Tracing(endpoint=spans.url, sampling_ratio=0)
    async with running_gateway(tmp_path, tracing=tracing) as gateway:
        await gateway.traffic.apply(served(old))
        await post(
            gateway, f"{INFER}?token={CANARY}", traceparent=SAMPLED, x_request_id="order-1", x_segserve_slice="a"
        )
        await arrived(spans, 1)

    (span,) = spans.spans
    assert (span.service, span.trace, span.parent) == ("segserve-gateway", TRACE, PARENT)
    assert received(old) == [f"00-{TRACE}-{span.id}-01"]
    told: dict[str, Any] = {
        "segserve.model": "coins",
        "segserve.revision": "coins-old",
        "segserve.group": "main",
        "segserve.slice": "a",
        "segserve.request_id": "order-1",
        "segserve.attempts": "1",
        "segserve.server": f"{old.endpoint.host}:{old.endpoint.http_port}",
        "http.status_code": "200",
    }
    assert span.attributes.items() >= told.items()
    assert CANARY not in str(span)
    assert span.name == "POST coins"


async def test_spans_go_to_a_collector_whose_certificate_an_authority_of_the_bundle_has_signed(
    tmp_path: Path, old: StubTriton
) -> None:
    authority, other = trustme.CA(), trustme.CA()
    bundle, other_bundle = (each.cert_pem.bytes().decode() for each in (authority, other))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    with collector(tls=server) as spans:
        for name, trusted in (("refused", other_bundle), ("trusted", bundle)):
            tracing = Tracing(endpoint=spans.url, ca_bundle=trusted, sampling_ratio=0)
            (tmp_path / name).mkdir()
            async with running_gateway(tmp_path / name, tracing=tracing) as gateway:
                await gateway.traffic.apply(served(old))
                assert await post(gateway, traceparent=SAMPLED, x_request_id=name) == 200
                if name == "trusted":
                    await arrived(spans, 1)

    assert [span.attributes["segserve.request_id"] for span in spans.spans] == ["trusted"]


async def test_a_request_that_is_not_sampled_has_no_span_and_servers_get_no_trace_context(
    tmp_path: Path, old: StubTriton, spans: Collector
) -> None:
    tracing = Tracing(endpoint=spans.url, sampling_ratio=0)
    async with running_gateway(tmp_path, tracing=tracing) as gateway:
        await gateway.traffic.apply(served(old))
        await post(gateway, traceparent=UNSAMPLED)
        await post(gateway)
        await post(gateway, traceparent="nonsense")
        assert by_grpc(gateway.authority) == "old"
        # Envoy sends its spans in order.
        await post(gateway, traceparent=SAMPLED)
        await arrived(spans, 1)

    assert received(old)[:3] == [None, None, None]
    assert len(spans.spans) == 1


async def test_the_ratio_decides_about_requests_without_a_trace_context(
    tmp_path: Path, old: StubTriton, spans: Collector
) -> None:
    async with running_gateway(tmp_path, tracing=Tracing(endpoint=spans.url, sampling_ratio=1)) as gateway:
        await gateway.traffic.apply(served(old))
        for _ in range(20):
            await post(gateway, x_request_id="the-same-id")
        await post(gateway, traceparent=UNSAMPLED)
        await arrived(spans, 20)

    assert len({span.trace for span in spans.spans}) == 20
    assert {span.parent for span in spans.spans} == {""}


async def test_a_copy_for_the_comparator_has_no_span(
    tmp_path: Path, old: StubTriton, new: StubTriton, spans: Collector
) -> None:
    plan = served(old, new)
    mirror = Mirror("main", "coins-new", percent=100, requests_per_s=1000.0)
    async with running_gateway(tmp_path, tracing=Tracing(endpoint=spans.url, sampling_ratio=1)) as gateway:
        async with running_comparator(EnvoyFiles(tmp_path).comparator) as comparator:
            await gateway.traffic.apply(replace(plan, routes=(replace(plan.routes[0], mirror=mirror),)))
            await post(gateway, x_request_id="copied")

            async def is_copied() -> bool:
                return len(comparator.copies) == 1

            await eventually(is_copied, "a copy")
        await gateway.traffic.apply(plan)
        await post(gateway, x_request_id="last")
        await arrived(spans, 2)

    assert [span.attributes["segserve.request_id"] for span in spans.spans] == ["copied", "last"]


async def test_a_gateway_without_tracing_passes_trace_contexts_on_as_they_are(tmp_path: Path, old: StubTriton) -> None:
    async with running_gateway(tmp_path) as gateway:
        await gateway.traffic.apply(served(old))
        for context in (SAMPLED, UNSAMPLED):
            await post(gateway, traceparent=context)
        await post(gateway)

    assert received(old) == [SAMPLED, UNSAMPLED, None]


async def test_callers_are_answered_while_the_collector_is_gone(tmp_path: Path, old: StubTriton) -> None:
    with collector() as gone:
        tracing = Tracing(endpoint=gone.url, sampling_ratio=1)
    async with running_gateway(tmp_path, tracing=tracing, access_log=AccessLog()) as gateway:
        await gateway.traffic.apply(served(old))
        statuses = {await post(gateway) for _ in range(50)}

    assert statuses == {200}
