"""The ports for probes and counts, which every pod of a cluster may reach."""

from __future__ import annotations

import asyncio
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from fakes.guarded_gateway import guarded_gateway
from fakes.hostile_caller import connected
from fakes.waiting import HANG_S, until
from segserve_builder.cluster.probe_server import MAX_CONNECTIONS, ProbeServer, probe_response
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic


@pytest.fixture
def probes() -> Iterator[ProbeServer]:
    server = ProbeServer(0, {"/live": lambda: probe_response(True, "alive")})
    server.start()
    yield server
    server.stop()


def threads_of_connections() -> int:
    return sum("process_request_thread" in thread.name for thread in threading.enumerate())


def test_silent_connections_take_no_thread_beyond_the_limit_and_no_probe_from_the_kubelet(probes: ProbeServer) -> None:
    with ExitStack() as stack:
        held = [stack.enter_context(connected(probes.port)) for _ in range(3 * MAX_CONNECTIONS)]
        # The oldest were closed for the others.
        assert held[0].recv(1) == b""

        for _ in range(10):
            assert httpx.get(f"http://127.0.0.1:{probes.port}/live", timeout=HANG_S).text == "alive\n"
            # One that has made room for another may still be ending.
            until(lambda: threads_of_connections() <= MAX_CONNECTIONS, "no thread beyond the limit")


def test_connections_that_ended_make_room(probes: ProbeServer) -> None:
    for _ in range(2 * MAX_CONNECTIONS):
        with connected(probes.port) as connection:
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""

    until(lambda: threads_of_connections() == 0, "all threads have ended")


@pytest.mark.platform
def test_invented_names_of_models_are_not_kept(tmp_path: Path) -> None:
    async def ask(traffic: EnvoyTraffic) -> int:
        await traffic.count(["coins"])
        tracemalloc.start()
        for number in range(20):
            assert await traffic.count([f"invented-{number}-{index}" for index in range(5000)]) == {}
        return tracemalloc.get_traced_memory()[0]

    try:
        with guarded_gateway(tmp_path) as gateway:
            grown = asyncio.run(ask(gateway.running.traffic))
    finally:
        tracemalloc.stop()

    assert grown < 2 * 2**20  # a hundred thousand names are 20 MB
