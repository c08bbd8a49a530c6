"""The client at a gateway that speaks TLS and demands a certificate: HTTP/1.1, HTTP/2 and gRPC on one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import trustme

from fakes.gateway import running_gateway
from fakes.gateway_clients import finding_nothing
from fakes.kserve import Gateway
from fakes.mounted_secret import MountedSecret, tls_secret
from fakes.waiting import HANG_S, eventually
from segserve import AsyncClient, Client, ConnectionLostError, GatewayUnreachableError, SegserveError, Tls, TlsError
from segserve_operator.adapters.traffic.envoy_tls import TlsSettings
from segserve_operator.core.traffic import TrafficPlan

pytestmark = [pytest.mark.platform, pytest.mark.asyncio(loop_scope="module")]

WAYS = {"HTTP/1.1": {}, "HTTP/2": {"http2": True}, "gRPC": {"transport": "grpc"}}
PIXELS = np.zeros((900, 900, 3), np.uint8)


@dataclass
class Entrance:
    """A gateway with TLS before a server in memory, and who may come in."""

    url: str
    gateway: Gateway
    member: Tls
    stranger: Tls


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def entrance(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Entrance]:
    folder, ca = tmp_path_factory.mktemp("tls"), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    client = ca.issue_cert("client.example")
    client.private_key_and_cert_chain_pem.write_to_path(folder / "client.pem")
    secret = MountedSecret(folder / "secret", tls_secret(ca.issue_cert("127.0.0.1")))
    tls = TlsSettings(secret.folder, client_ca=folder / "ca.pem", client_certificates="required")
    member = Tls(folder / "ca.pem", folder / "client.pem", folder / "client.pem")
    with finding_nothing(len(PIXELS)) as (server, route):
        async with running_gateway(folder / "gateway", tls=tls, max_request_bytes=2**23) as running:
            await running.traffic.apply(TrafficPlan((route,), route.shares[0].endpoints))

            async def answers() -> bool:
                with suppress(SegserveError):
                    async with AsyncClient(running.traffic.url, tls=member, retries=0) as caller:
                        return bool(await caller.model_info("boxes"))
                return False

            await eventually(answers, "the gateway answers")
            yield Entrance(running.traffic.url, server, member, Tls(folder / "ca.pem"))


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_with_a_certificate_is_answered(entrance: Entrance, way: str) -> None:
    options: Any = {"tls": entrance.member, "api_key": "s3cret", **WAYS[way]}
    with Client(entrance.url, **options) as client:
        results = await asyncio.to_thread(lambda: [client.segment(PIXELS, model="boxes") for _ in range(3)])
    async with AsyncClient(entrance.url, **options) as client_of_tasks:
        results.append(await client_of_tasks.segment(PIXELS, model="boxes"))

    assert {result.revision for result in results} == {"boxes-aaaaaaaaaa"}
    asked = entrance.gateway.asked[-4:]
    assert [each.headers["x-request-id"] for each in asked] == [result.request_id for result in results]
    assert not any("x-api-key" in each.headers for each in asked)  # of no use to a server


@pytest.mark.parametrize("way", WAYS)
async def test_a_client_without_one_is_not(entrance: Entrance, way: str) -> None:
    asked = entrance.gateway.config_requests
    options: Any = {"tls": entrance.stranger, "timeout_s": HANG_S, **WAYS[way]}
    with Client(entrance.url, **options) as client, pytest.raises(GatewayUnreachableError) as caught:
        await asyncio.to_thread(client.segment, PIXELS, model="boxes")

    assert way == "gRPC" or type(caught.value) in (TlsError, ConnectionLostError), repr(caught.value)
    assert entrance.gateway.config_requests == asked
