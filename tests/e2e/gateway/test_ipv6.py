"""A gateway in a pod whose address is of IPv6."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import by_grpc, by_http, served
from fakes.triton import StubTriton

pytestmark = [pytest.mark.platform, pytest.mark.needs("ipv6")]


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, host="::") as running:
        yield running


@pytest.mark.parametrize("host", ["[::1]", "127.0.0.1"])
@pytest.mark.parametrize("call", [by_http, by_grpc])
async def test_callers_of_both_families_are_answered_by_a_server_of_ipv6(
    gateway: RunningGateway, host: str, call: Any
) -> None:
    with StubTriton("six", host="::1") as server:
        await gateway.traffic.apply(served(server))

        assert await asyncio.to_thread(call, f"{host}:{gateway.gateway.port}") == "six"
