"""The real Envoy in front of stand-ins for Triton."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from fakes.gateway import RunningGateway, running_gateway
from fakes.gateway_clients import LIMIT, served
from fakes.triton import StubTriton


@pytest.fixture
def old() -> Iterator[StubTriton]:
    with StubTriton("old") as triton:
        yield triton


@pytest.fixture
def new() -> Iterator[StubTriton]:
    with StubTriton("new") as triton:
        yield triton


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[RunningGateway]:
    async with running_gateway(tmp_path, max_request_bytes=LIMIT) as running:
        yield running


@pytest.fixture
async def impatient(tmp_path: Path, old: StubTriton) -> AsyncIterator[RunningGateway]:
    """A gateway that waits a second for an answer, with the server `old`."""
    async with running_gateway(tmp_path, timeout_s=1.0) as running:
        await running.traffic.apply(served(old))
        yield running


@pytest.fixture
async def serving(gateway: RunningGateway, old: StubTriton) -> RunningGateway:
    """A gateway whose one model, `coins`, the server `old` answers."""
    await gateway.traffic.apply(served(old))
    return gateway
