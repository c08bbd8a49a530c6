"""What tenants' services answer to the worker, and a worker that was taken over, against the operator of all tenants.

The worker is a real process, and the operator's part runs within 512 MiB where what is claimed is memory.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web

from fakes.answering_service import says, service
from fakes.cluster_world import KEY, NAMESPACE, ClusterWorld, model_manifest
from fakes.golden_pictures import check_of
from fakes.limited_process import MIB, run_within
from fakes.waiting import HANG_S, connections_are_closed
from segserve_common.kube.kinds import POOLS
from segserve_operator.adapters.checks.context import CheckContext, Question, ServiceAnswer, Services
from segserve_operator.adapters.checks.runner import BackgroundCheckRunner
from segserve_operator.adapters.kube.view import PoolKey
from segserve_operator.adapters.outbound import child, messages
from segserve_operator.adapters.outbound.__main__ import listen
from segserve_operator.adapters.outbound.child import WorkerServer
from segserve_operator.adapters.outbound.client import OutboundClient, WorkerError, own_worker
from segserve_operator.adapters.outbound.process import WorkerProcess, local_listener
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import Check, CheckError

MEMORY: Final = 512 * MIB
OTHER: Final = PoolKey(NAMESPACE, "other")
OWN: Final = ("--own-services",)


def question(url: str, **changes: Any) -> Question:
    fields: dict[str, Any] = {"kind": "webhook", "pool": "lab/default", "url": url, "fields": {}, "timeout_s": HANG_S}
    return Question(**{**fields, **changes})


# A worker is nobody


@pytest.mark.core
async def test_a_taken_over_worker_has_no_token_no_environment_no_home_and_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGSERVE_SECRET", "of the operator")
    worker, client = own_worker(
        OWN, {"SEGSERVE_SECRET": "of the operator", "HOME": "/", "SSL_CERT_FILE": "/etc/ssl/own.pem"}
    )
    async with service(says("ok")) as url:
        await client.ask(question(url))
    assert worker.pid is not None
    process = Path(f"/proc/{worker.pid}")
    environment = dict(item.split("=", 1) for item in process.joinpath("environ").read_text().split("\0") if item)
    opened = set()
    for entry in process.joinpath("fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            opened.add(str(entry.readlink()))
    limits = resource.prlimit(worker.pid, resource.RLIMIT_AS), resource.prlimit(worker.pid, resource.RLIMIT_CORE)
    folder = process.joinpath("cwd").readlink()
    await worker.close()

    assert environment == {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1", "SSL_CERT_FILE": "/etc/ssl/own.pem"}
    assert limits == ((child.MEMORY_BYTES, child.MEMORY_BYTES), (0, 0))
    assert folder == Path("/")
    # Standard streams, its event loop, and one listening socket: nothing that the operator has open.
    files = {name for name in opened if name.startswith("/") and name != "/dev/null"}
    assert files <= {str(Path("/proc/self/fd/2").readlink())}


def test_a_worker_does_not_outlive_whoever_started_it() -> None:
    listener = local_listener()
    command = [sys.executable, "-I", "-m", child.__name__, f"--listener={listener.fileno()}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], env={}) as worker:
        worker.stdin.close()  # as the end of that process does
        assert worker.wait(60) == 0
    listener.close()


@asynccontextmanager
async def serving(services: Services, user: int) -> AsyncIterator[bytes]:
    """Run a worker in this process that answers the user `user`; yield its address."""
    listener, stopping = local_listener(), asyncio.Event()
    address: bytes = listener.getsockname()
    running = asyncio.create_task(WorkerServer(services, never_post, user).run(listener, stopping))
    yield address
    stopping.set()
    await running


@pytest.mark.parametrize("stranger", ["worker", "operator"])
async def test_a_process_of_another_user_is_neither_the_worker_nor_the_operator(stranger: str) -> None:
    own, other = os.getuid(), os.getuid() + 1
    async with serving(Never(), other if stranger == "operator" else own) as address:
        client = OutboundClient(address, user=other if stranger == "worker" else own)
        with pytest.raises(CheckError, match=r"belongs to the user|worker ended|cannot be reached"):
            await client.ask(question("http://127.0.0.1:1/"))


class Never:
    """Services that nobody may reach."""

    async def ask(self, question: Question) -> ServiceAnswer:
        raise AssertionError("a stranger's question was asked")


async def never_post(url: str, payload: Any, timeout_s: float) -> int:
    raise AssertionError("a stranger's notification was sent")


# A worker that says what it likes


LIES: Final[dict[str, bytes]] = {
    "more than a line may have": b'"' + b"x" * MIB + b'"\n',
    "lists in lists": b"[" * 8000 + b"\n",
    "another answer": b'{"kind":"sent","status":200}\n',
    "a status that is none": b'{"kind":"answered","status":7}\n',
    "a number that is none": b'{"kind":"answered","status":200,"values":[NaN,1]}\n',
    "more fields": b'{"kind":"answered","status":200,"key":"other/verdict"}\n',
    "a long text": json.dumps({"kind": "failed", "reason": "check", "text": "x" * 5000}).encode() + b"\n",
    "half of it": b'{"kind":"answered","status":2',
    "nothing": b"",
}


@asynccontextmanager
async def says_bytes(answer: bytes) -> AsyncIterator[OutboundClient]:
    """Run a worker that answers everything with some bytes."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(answer)
        writer.close()

    listener = local_listener()
    address = listener.getsockname()
    async with await asyncio.start_unix_server(handle, sock=listener):
        yield OutboundClient(address)
    await connections_are_closed()


@pytest.mark.parametrize("answer", LIES.values(), ids=LIES)
async def test_what_a_taken_over_worker_says_is_an_answer_or_none_and_nothing_else(answer: bytes) -> None:
    async with says_bytes(answer) as client:
        with pytest.raises(CheckError):
            await client.ask(question("http://service.example/"))
        if b'"sent"' not in answer:
            with pytest.raises(WorkerError):
                await client.post("http://service.example/", {}, 1.0)


async def test_what_a_taken_over_worker_has_operators_read_is_one_printable_line() -> None:
    text = "all is well\n2026-01-01 ERROR forged\x1b[2J\u202e"
    line = json.dumps({"kind": "failed", "reason": "check", "text": text}).encode() + b"\n"
    async with says_bytes(line) as client:
        with pytest.raises(CheckError) as caught:
            await client.ask(question("http://service.example/"))

    assert str(caught.value) == "all is well 2026-01-01 ERROR forged?[2J?"


async def test_a_worker_that_never_answers_costs_its_callers_a_bounded_time() -> None:
    listener = local_listener()
    client = OutboundClient(listener.getsockname(), grace_s=0.05)
    with pytest.raises(CheckError, match="did not answer within"):
        await client.ask(question("http://service.example/", timeout_s=0.05))
    listener.close()


async def test_a_stuffed_request_is_not_sent() -> None:
    with pytest.raises(WorkerError, match=f"at most {messages.MAX_REQUEST}"):
        await OutboundClient(b"nowhere").post("http://service.example/", {"text": "x" * messages.MAX_REQUEST}, 1.0)


async def test_a_worker_that_ends_is_started_again_and_only_what_was_under_way_fails() -> None:
    held = asyncio.Event()

    async def drip(_: web.Request) -> web.StreamResponse:
        held.set()
        await asyncio.sleep(30)
        raise AssertionError

    worker, client = own_worker(OWN, {})
    async with service(drip) as slow, service(says("ok")) as url:
        under_way = asyncio.create_task(client.ask(question(slow)))
        await held.wait()
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(CheckError, match="worker"):
            await under_way

        assert (await client.ask(question(url))).status == 200
    await worker.close()


async def test_a_question_that_nobody_waits_for_any_more_frees_its_place() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    class Slow:
        async def ask(self, question: Question) -> ServiceAnswer:
            began.set()
            try:
                await asyncio.sleep(30)
            finally:
                ended.set()
            raise AssertionError

    async with serving(Slow(), os.getuid()) as address, asyncio.timeout(HANG_S):
        asked = asyncio.create_task(OutboundClient(address).ask(question("http://service.example/")))
        await began.wait()
        asked.cancel()
        await ended.wait()


# Answers that are meant to end the operator

INFLATED = b""
"""A GiB of JSON in some 5 MiB; made in the process that has 512 MiB."""


async def _inflated(_: web.Request) -> web.StreamResponse:
    return web.Response(body=INFLATED, headers={"Content-Encoding": "gzip", "Content-Type": "application/json"})


async def _endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(OSError):
        while True:
            await response.write(b"0" * MIB)
    return response


async def _dripping(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    with suppress(OSError):
        while True:
            await response.write(b" ")
            await asyncio.sleep(0.05)
    return response


async def _deep(_: web.Request) -> web.StreamResponse:
    return web.Response(body=b"[" * 60_000)


ATTACKS: Final[dict[str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = {
    "inflates": _inflated,
    "never-ends": _endless,
    "drips": _dripping,
    "nests": _deep,
}


def serve_beside_attacks() -> None:
    """A world of two pools; the gates of one ask services that answer with what should end the operator."""
    global INFLATED
    INFLATED = gzip.compress(b"0" * (32 * MIB), 1) * 32
    asyncio.run(_serve_beside_attacks())


async def _serve_beside_attacks() -> None:
    worker, client = own_worker(OWN, {})
    world = ClusterWorld(keys=(KEY, OTHER), services=client)
    for key in world.keys:
        metadata = {"name": key.pool, "namespace": NAMESPACE}
        world.apply({"apiVersion": POOLS.api_version, "kind": POOLS.name, "metadata": metadata, "spec": {}})
        world.apply(model_manifest(f"model-of-{key.pool}", pool=key.pool))
    runner = BackgroundCheckRunner(CheckContext(_NoGateway(), _NoGateway(), client, str(KEY)))  # type: ignore[arg-type]
    async with _attackers() as urls:
        checks = [_gate(name, urls[name]) for name in ATTACKS]
        runner.schedule(checks)
        await world.turns(6)
        problems = await _concluded(runner, checks)
        pid = worker.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        world.apply(model_manifest("model-of-other", network="2", pool=OTHER.pool))
        await world.turns(6)

        assert world.condition("model-of-other", "Ready")[0] == "True"
        assert world.condition("model-of-default", "Ready")[0] == "True"
    await runner.close()
    await worker.close()
    expected = {"inflates": "compressed", "never-ends": "more than 65536", "drips": "did not answer"}
    for name, text in expected.items():
        assert text in problems[name], problems
    assert not problems["nests"], problems


def _gate(name: str, url: str) -> Check:
    timeout = "1s" if name == "drips" else "30s"
    gate = WebhookGate.model_validate({"name": name, "url": url, "timeout": timeout})
    return check_of("check", name, gate=name, spec=gate)


class _NoGateway:
    """A gateway and servers that no check of this test asks."""

    async def close(self) -> None:
        """Close nothing."""


@asynccontextmanager
async def _attackers() -> AsyncIterator[dict[str, str]]:
    async with AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(service(handler)) for name, handler in ATTACKS.items()}


async def _concluded(runner: BackgroundCheckRunner, checks: list[Check]) -> dict[str, str]:
    async with asyncio.timeout(HANG_S):
        while runner.check_results().keys() != {check.key for check in checks}:
            await asyncio.sleep(0.02)
    return {key: getattr(result, "problem", "") for key, result in runner.check_results().items()}


@pytest.mark.core
def test_services_that_answer_a_gate_with_what_should_end_the_operator_end_no_pass_of_another_pool() -> None:
    run_within(MEMORY, serve_beside_attacks)


async def test_the_workers_own_socket_is_for_the_pods_group_and_replaces_what_was_left(tmp_path: Path) -> None:
    path = tmp_path / "worker.socket"
    listen(path).close()
    worker = WorkerProcess(listen(path), OWN, {})
    worker.start()
    async with service(says("ok")) as url:
        answer = await OutboundClient(str(path)).ask(question(url))
    await worker.close()

    assert answer.status == 200
    assert path.stat().st_mode & 0o777 == 0o660
