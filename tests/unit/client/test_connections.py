"""Connections: how long each part may take, which are kept, shared, lost, found again."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bench.ports import free_port
from fakes.kserve import Fault, Gateway
from fakes.tcp_relay import TcpRelay
from fakes.waiting import HANG_S, eventually, until
from segserve import (
    AsyncClient,
    BadRequestError,
    Client,
    Cluster,
    ConnectionLostError,
    ConnectTimeoutError,
    DeadlineExceededError,
    EventLoopError,
    ForkedClientError,
    GatewayUnreachableError,
    MissingExtraError,
    PoolTimeoutError,
    ReadTimeoutError,
    RetryEvent,
    SegserveError,
    Timeouts,
    TlsError,
    WriteTimeoutError,
)
from segserve.calls.hooks import Hooks
from segserve.transports import pool
from segserve.transports.base import PROXY_VARIABLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .conftest import Served


def segment_in_tasks(url: str, image: Any, **options: Any) -> Any:
    async def main() -> Any:
        async with AsyncClient(url, **options) as client:
            return await client.segment(image, model="coins")

    return asyncio.run(main())


def segment_in_threads(url: str, image: Any, **options: Any) -> Any:
    with Client(url, **options) as client:
        return client.segment(image, model="coins")


BOTH = pytest.mark.parametrize("segment", [segment_in_threads, segment_in_tasks], ids=["sync", "async"])


@contextmanager
def a_port_that_takes_no_connection() -> Iterator[int]:
    """Fill a listener's queue, so that the next connection waits for its first answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(8):
            waiting.append(socket.socket())
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(listener.getsockname())
        try:
            yield listener.getsockname()[1]
        finally:
            for one in waiting:
                one.close()


@BOTH
def test_a_gateway_that_takes_no_connection_is_told_from_one_that_does_not_answer(segment: Any, photo: bytes) -> None:
    with a_port_that_takes_no_connection() as port:
        url = f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectTimeoutError, match=r"connect_s=0\.2"):
            segment(url, photo, timeout_s=Timeouts(total_s=20, connect_s=0.2), retries=1)
        with pytest.raises(DeadlineExceededError):
            segment(url, photo, timeout_s=Timeouts(total_s=0.3, connect_s=10.0))


@BOTH
def test_each_phase_has_its_time_and_its_error(gateway: Gateway, photo: bytes, segment: Any) -> None:
    gateway.faults.extend([Fault(hold=(answers := threading.Event()))] * 2)
    with gateway.http() as url:
        with pytest.raises(ReadTimeoutError, match=r"read_s=0\.2"):
            segment(url, photo, timeout_s=Timeouts(total_s=HANG_S, read_s=0.2))
        with pytest.raises(DeadlineExceededError):
            segment(url, photo, timeout_s=Timeouts(total_s=0.3, read_s=HANG_S))
        answers.set()


@BOTH
def test_a_gateway_that_takes_no_more_of_a_request_is_a_write_timeout(
    gateway: Gateway, segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gateway.http() as url:
        relay = TcpRelay(("127.0.0.1", int(url.rpartition(":")[2])))
        try:
            pause = Hooks(on_request=lambda event: relay.pause() if event.kind == "infer" else None)
            image = np.zeros((4000, 4000, 3), np.uint8)
            with pytest.raises(WriteTimeoutError, match=r"write_s=0\.3"):
                segment(f"http://127.0.0.1:{relay.port}", image, timeout_s=Timeouts(write_s=0.3), hooks=pause)
        finally:
            relay.close()


def test_requests_beyond_all_connections_wait_for_one(
    gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    gateway.faults.append(Fault(hold=(answers := threading.Event())))
    with gateway.http() as url, Client(url) as client, ThreadPoolExecutor(1) as threads:
        client.model_info("coins")
        first = threads.submit(client.segment, photo, model="coins")
        until(lambda: gateway.inferences, "the first request has the connection")
        with pytest.raises(PoolTimeoutError):
            client.segment(photo, model="coins", timeout_s=Timeouts(pool_s=0.1))
        answers.set()
        assert client.segment(photo, model="coins").model == first.result().model


async def test_tasks_beyond_all_connections_wait_for_one(
    gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    gateway.faults.append(Fault(hold=(answers := threading.Event())))

    async def is_asked() -> bool:
        return bool(gateway.inferences)

    with gateway.http() as url:
        async with AsyncClient(url) as client:
            await client.model_info("coins")
            first = asyncio.create_task(client.segment(photo, model="coins", request_id="first"))
            await eventually(is_asked, "the first request has the connection")
            with pytest.raises(PoolTimeoutError):
                await client.segment(photo, model="coins", timeout_s=Timeouts(pool_s=0.1))
            answers.set()
            assert (await client.segment(photo, model="coins")).model == (await first).model


async def test_a_task_that_is_cancelled_gives_its_connection_back(
    gateway: Gateway, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "MAX_CONNECTIONS", 1)
    gateway.faults.extend([Fault(hold=(answers := threading.Event()))] * 3)
    with gateway.http() as url:
        async with AsyncClient(url) as client:
            for _ in range(3):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.segment(photo, model="coins"), 0.2)
            answers.set()
            assert (await client.segment(photo, model="coins")).model == "coins"


def test_thirty_two_threads_share_a_client_and_keep_what_is_theirs(served: Served, photo: bytes) -> None:
    with Client(served.url, transport=served.transport) as client, ThreadPoolExecutor(32) as threads:

        def ask(number: int) -> tuple[str, str | None]:
            own = client.with_options(headers={"x-number": str(number)})
            result = own.segment(photo, model=("coins", "discs")[number % 2], request_id=str(number))
            return result.model, result.request_id

        answers = list(threads.map(ask, range(256)))

    assert answers == [(("coins", "discs")[number % 2], str(number)) for number in range(256)]
    assert {asked.headers["x-number"] for asked in served.gateway.asked} == {str(number) for number in range(256)}
    assert all(asked.headers["x-number"] == asked.headers["x-request-id"] for asked in served.gateway.asked)


@BOTH
def test_a_connection_that_the_gateway_closed_while_it_was_idle_is_no_error(
    gateway: Gateway, photo: bytes, segment: Any
) -> None:
    async def in_tasks(url: str) -> None:
        async with AsyncClient(url, retries=0) as client:
            for _ in range(4):
                await client.segment(photo, model="coins")
                until(lambda: not sockets_to(url), "the connection is closed")

    gateway.faults.extend([Fault(hang_up=True)] * 4)
    with gateway.http() as url:
        if segment is segment_in_tasks:
            asyncio.run(in_tasks(url))
            return
        with Client(url, retries=0) as client:
            for _ in range(4):
                client.segment(photo, model="coins")
                until(lambda: not sockets_to(url), "the connection is closed")


def test_connections_are_kept_and_close_with_the_client(gateway: Gateway, photo: bytes) -> None:
    with gateway.http() as url:
        with Client(url) as client, ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda _: client.segment(photo, model="coins"), range(64)))
            kept = len(sockets_to(url))
        left = sockets_to(url)

    assert 1 <= kept <= 8
    assert not left


def sockets_to(url: str) -> list[Any]:
    import psutil

    port = int(url.rpartition(":")[2])
    connections = psutil.Process().net_connections("tcp")
    return [one for one in connections if one.raddr and one.raddr.port == port and one.status == "ESTABLISHED"]


def test_a_client_that_is_closed_says_so(served: Served, photo: bytes) -> None:
    client = Client(served.url, transport=served.transport)
    client.close()
    with pytest.raises(BadRequestError, match="client is closed"):
        client.segment(photo, model="coins")


async def test_a_client_for_tasks_that_is_closed_says_so(served: Served, photo: bytes) -> None:
    async with AsyncClient(served.url, transport=served.transport) as client:
        await client.segment(photo, model="coins")
    with pytest.raises(BadRequestError, match="client is closed"):
        await client.segment(photo, model="coins")


def test_an_answer_that_breaks_off_says_that_the_connection_was_lost(gateway: Gateway, photo: bytes) -> None:
    gateway.faults.append(Fault(truncate_to=40))
    with gateway.http() as url, Client(url, retries=0) as client, pytest.raises(ConnectionLostError, match="lost the"):
        client.segment(photo, model="coins")


async def test_a_connection_lost_over_a_large_request_names_the_limit_that_may_have_ended_it(
    gateway: Gateway, photo: bytes
) -> None:
    gateway.faults.append(Fault(truncate_to=40))
    with gateway.http() as url:
        async with AsyncClient(url, retries=0) as client:
            with pytest.raises(
                ConnectionLostError, match=r"maxRequestBytes ends in the same way: this one has 2\d{6} bytes"
            ):
                await client.segment(photo + bytes(2**21), model="coins")


def child(work: Any) -> str:
    """Run it in a fork and return what it returned, or the name of its error."""

    def run(pipe: Any) -> None:
        try:
            pipe.send(work())
        except SegserveError as error:
            pipe.send(type(error).__name__)
        finally:
            pipe.close()
            os._exit(0)

    fork = get_context("fork")
    ours, theirs = fork.Pipe()
    process = fork.Process(target=run, args=(theirs,))
    process.start()
    try:
        assert ours.poll(20)
        said: str = ours.recv()
        return said
    finally:
        process.kill()
        process.join()


def test_a_forked_child_has_connections_of_its_own(gateway: Gateway, photo: bytes) -> None:
    with gateway.http() as url, Client(url) as client:
        client.segment(photo, model="coins")
        said = child(lambda: client.segment(photo, model="discs").model)
        assert client.segment(photo, model="coins").model == "coins"

    assert said == "discs"


def test_a_client_that_cannot_cross_a_fork_says_so(photo: bytes) -> None:
    """Without a channel in use: grpcio's own threads do not survive a fork."""
    clients = [Client("127.0.0.1:1", transport="grpc"), AsyncClient("127.0.0.1:1"), AsyncClient(transport="grpc")]

    def use(client: Any) -> Any:
        answer = client.segment(photo, model="coins")
        return asyncio.run(answer) if asyncio.iscoroutine(answer) else answer

    for client in clients:
        assert child(lambda client=client: use(client)) == ForkedClientError.__name__


@pytest.mark.parametrize("make", [Client, AsyncClient])
def test_a_pickled_client_has_the_same_settings_and_connections_of_its_own(
    gateway: Gateway, photo: bytes, make: Any
) -> None:
    with gateway.http() as url, Client(url) as used:
        used.segment(photo, model="coins")
        for client in (
            used,
            make(url, api_key="k", retries=7, platform=Cluster(context="c")).with_options(timeout_s=3),
        ):
            other = pickle.loads(pickle.dumps(client))
            assert other._arguments() == client._arguments()
            assert other._lazy_platform.given == client._lazy_platform.given
            assert other._transport is not client._transport
        with pickle.loads(pickle.dumps(used)) as other:
            answers = [each.segment(photo, model="coins") for each in (other, used)]
    assert [pickle.loads(pickle.dumps(answer)).areas for answer in answers] == [answer.areas for answer in answers]


@pytest.mark.parametrize("transport", ["http", "grpc"])
def test_an_async_client_in_a_second_event_loop_says_so(gateway: Gateway, photo: bytes, transport: Any) -> None:
    async def use() -> None:
        await client.segment(photo, model="coins")

    async def use_and_close() -> None:
        with pytest.raises(EventLoopError, match="in another event loop"):
            await use()
        with pytest.raises(EventLoopError):
            await client.close()

    with getattr(gateway, transport)() as url, asyncio.Runner() as first, asyncio.Runner() as second:
        client = AsyncClient(url, transport=transport)
        first.run(use())
        second.run(use_and_close())
        first.run(use())
        first.run(client.close())


@BOTH
def test_a_gateway_that_comes_back_is_found_again(photo: bytes, gateway: Gateway, segment: Any) -> None:
    address = f"127.0.0.1:{free_port()}"

    async def in_tasks() -> None:
        async with AsyncClient(address, transport="grpc", retries=8) as client:
            for _ in range(3):
                with gateway.grpc(address=address):
                    assert (await client.segment(photo, model="coins")).model == "coins"

    if segment is segment_in_tasks:
        asyncio.run(in_tasks())
        return
    with Client(address, transport="grpc", retries=8) as client:
        for _ in range(3):
            with gateway.grpc(address=address):
                assert client.segment(photo, model="coins").model == "coins"


def test_all_addresses_of_a_name_take_turns_over_grpc_and_a_dead_one_is_left_out(photo: bytes) -> None:
    """The name localhost has two addresses, of IPv4 and IPv6."""
    port, options = free_port(), {"transport": "grpc", "retries": 0}
    first, second = (Gateway(models=dict(_coins().models)) for _ in range(2))
    with first.grpc(address=f"127.0.0.1:{port}"), Client(f"localhost:{port}", **options) as client:  # type: ignore[arg-type]
        with second.grpc(address=f"[::1]:{port}"):
            client.segment(photo, model="coins")
            for _ in range(200):
                client.segment(photo, model="coins")
                if first.inferences > 5 and second.inferences > 5:
                    break
            assert min(first.inferences, second.inferences) > 5
        patient = client.with_options(retries=2)
        assert [patient.segment(photo, model="coins").model for _ in range(10)] == ["coins"] * 10


def _coins() -> Gateway:
    from .conftest import SEMANTIC, Model, parameters, semantic_answer

    return Gateway(models={"coins": Model(SEMANTIC, parameters("coins-aaaaaaaaaa"), semantic_answer)})


@BOTH
def test_a_proxy_of_the_environment_gets_what_is_for_another_machine(
    gateway: Gateway, segment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    image = np.zeros((800, 800, 3), np.uint8)
    with gateway.http() as proxy:
        monkeypatch.setenv("http_proxy", proxy)
        assert segment("http://gateway.invalid", image).model == "coins"
        monkeypatch.setenv("no_proxy", "gateway.invalid")
        with pytest.raises(GatewayUnreachableError):
            segment("http://gateway.invalid", image, retries=0)


ENVIRONMENTS = {
    "a SOCKS proxy without its package": ({"ALL_PROXY": "socks5://127.0.0.1:1"}, "ALL_PROXY: Using SOCKS proxy"),
    "a proxy of an unknown scheme": ({"http_proxy": "ftp://127.0.0.1:1"}, "http_proxy: "),
    "a proxy of a bad port": ({"HTTPS_PROXY": "http://127.0.0.1:port"}, "HTTPS_PROXY: "),
    "brackets in NO_PROXY": ({"http_proxy": "http://127.0.0.1:1", "NO_PROXY": "a,[::1]"}, "NO_PROXY"),
    "a range of IPv6 in NO_PROXY": ({"http_proxy": "http://127.0.0.1:1", "NO_PROXY": "fe80::/10"}, "NO_PROXY"),
    "authorities that are gone": ({"SSL_CERT_FILE": "/nowhere/ca.pem"}, "SSL_CERT_FILE: "),
    "a file without authorities": ({"SSL_CERT_FILE": __file__}, "SSL_CERT_FILE: "),
}


@BOTH
@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_settings_of_the_environment_that_cannot_be_used_are_named(
    segment: Any, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    for name in list(os.environ):
        if name.upper() in (*PROXY_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
            monkeypatch.delenv(name)
    settings, said = ENVIRONMENTS[case]
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    scheme = "https" if {"HTTPS_PROXY", "SSL_CERT_FILE"} & settings.keys() else "http"

    with pytest.raises(SegserveError) as refused:
        segment(f"{scheme}://gateway.invalid", np.zeros((8, 8, 3), np.uint8), retries=0)

    assert said in str(refused.value)


def test_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    with Client("http://gateway.invalid", retries=0) as client, pytest.raises(GatewayUnreachableError) as refused:
        client.model_info("coins")

    assert "cannot reach http://gateway.invalid:80 by the proxy of http_proxy" in str(refused.value)


@BOTH
def test_https_to_a_plain_gateway_says_which_url_it_has(gateway: Gateway, segment: Any) -> None:
    with gateway.http() as url, pytest.raises(TlsError) as refused:
        segment(url.replace("http://", "https://"), np.zeros((8, 8, 3), np.uint8), retries=0)

    assert f"the gateway seems to speak plain HTTP: use {url}" in str(refused.value)


def test_a_timeout_is_told_in_full_after_retries(gateway: Gateway) -> None:
    gateway.faults.append(Fault(http=503))
    gateway.faults.append(Fault(hold=(held := threading.Event())))
    with gateway.http() as url, Client(url, retries=3) as client, pytest.raises(DeadlineExceededError) as late:
        client.segment(np.zeros((8, 8, 3), np.uint8), model="coins", timeout_s=2)
    held.set()

    assert "timed out after 2 s" in str(late.value)


def test_an_async_client_outside_of_asyncio_says_what_it_needs() -> None:
    """As under trio, which drives coroutines by itself."""
    client = AsyncClient("http://127.0.0.1:1")

    for call in (client.close(), client.model_info("coins")):
        with pytest.raises(EventLoopError, match="needs asyncio"):
            call.send(None)
        call.close()


def test_http2_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve.transports.http.find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'segserve\[http2\]'"):
        Client(http2=True)


@pytest.mark.parametrize("option", ["http2", "gzip"])
def test_options_of_http_are_refused_by_grpc(option: str) -> None:
    with pytest.raises(BadRequestError, match="options of transport http"):
        Client(transport="grpc", **{option: True})  # type: ignore[arg-type]


def test_copies_share_connections_and_what_is_known_of_models(gateway: Gateway, photo: bytes) -> None:
    seen: list[RetryEvent] = []
    gateway.faults.append(Fault(http=503))
    with gateway.http() as url, Client(url, retries=0) as client:
        other = client.with_options(retries=1, timeout_s=10, hooks=Hooks(on_retry=seen.append))
        other.segment(photo, model="coins")
        client.segment(photo, model="coins")
        assert len(sockets_to(url)) == 1

    assert type(other) is Client
    assert len(seen) == 1
    assert gateway.config_requests == 1
    assert sys.getsizeof(other) < 200
