"""A stand-in for a Triton server: says by HTTP and gRPC who answered, and fails as it is told to."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from fakes.waiting import HANG_S, until
from segserve_operator.adapters.samples.wire import bracketed
from segserve_operator.core.traffic import Endpoint

_SO_ATTACH_FILTER: Final = 26
"""Of Linux's `asm-generic/socket.h`."""


@dataclass
class Asked:
    """One HTTP request as it arrived."""

    path: str
    headers: dict[str, str]
    body_bytes: int


@dataclass
class StubTriton:
    """Runs in a thread of its own while it is entered, and listens on `host`.

    `delay_s` is the least time that an inference takes, one after the other if it is `serial`, and between `hold` and
    `release` none ends. The next `resets` HTTP requests are cut off without an answer; `status` is what HTTP answers
    have, `grpc_status` what inferences by gRPC end with, with `grpc_message`: `late`, once an answer has begun. `said`
    are headers and body of the next HTTP answers, `body` is that of the last HTTP request. `in_flight`
    inferences have arrived and have not ended.
    """

    name: str
    host: str = "127.0.0.1"
    delay_s: float = 0.0
    serial: bool = False
    resets: int = 0
    status: int = 200
    grpc_status: grpc.StatusCode = grpc.StatusCode.OK
    grpc_message: str = "as it was told to"
    late: bool = False
    said: tuple[dict[str, str], bytes] | None = None
    body: bytes = b""
    asked: list[Asked] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    in_flight: int = field(default=0, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=self.name)
        self._thread.start()
        self.endpoint = Endpoint(self.host, 0, 0)  # any ports that are free
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(HANG_S)
        self._loop.close()

    def close(self) -> None:
        """Close all connections and refuse new ones, as the machine of a server that has died does."""
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(HANG_S)

    def open(self) -> None:
        """Accept connections, after `close` at the same ports."""
        self.endpoint = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(HANG_S)

    def hold(self) -> None:
        """Answer no inference that arrives from now on until `release`."""
        self._loop.call_soon_threadsafe(self._may_answer.clear)

    def release(self) -> None:
        """Answer all that are held, and those that come."""
        self._loop.call_soon_threadsafe(self._may_answer.set)

    def lose(self) -> None:
        """Lose all packets of callers from now on, as a node without power does: nothing is acknowledged or closed."""
        # The first pass reaches those who listen. A connection that was made before it, and is accepted after it, has
        # no filter yet.
        self._drop_all()
        until(lambda: not sum(map(_not_accepted, self._sockets())), f"{self.name} has accepted all connections")
        self._drop_all()

    def _drop_all(self) -> None:
        code = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))  # BPF_RET: keep no byte
        drop = struct.pack("HP", 1, ctypes.addressof(code))
        for each in self._sockets():
            each.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, drop)

    def _sockets(self) -> Iterator[socket.socket]:
        """Yield this server's sockets of this process, each open until the next."""
        for entry in Path("/proc/self/fd").iterdir():
            with suppress(OSError):
                if str(entry.readlink()).startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(entry.name))) as each:
                        if each.getsockname()[1:2] in ((self.endpoint.http_port,), (self.endpoint.grpc_port,)):
                            yield each

    async def work(self) -> None:
        """Take the time of one inference."""
        self.in_flight += 1
        try:
            async with self._turn if self.serial else nullcontext():
                await asyncio.sleep(self.delay_s)
            await self._may_answer.wait()
        finally:
            self.in_flight -= 1

    async def _start(self) -> Endpoint:
        self._grpc = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self._grpc)
        grpc_port = self._grpc.add_insecure_port(f"{bracketed(self.host)}:{self.endpoint.grpc_port}")
        await self._grpc.start()
        self._connections: set[asyncio.Task[None]] = set()
        self._http = await asyncio.start_server(self._serve, self.host, self.endpoint.http_port)
        return Endpoint(self.host, self._http.sockets[0].getsockname()[1], grpc_port)

    async def _stop(self) -> None:
        self._http.close()
        for connection in tuple(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        await self._grpc.stop(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            while True:
                await self._answer(reader, writer)
        self._connections.discard(task)
        writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked, self.body = await _read(reader)
        self.asked.append(asked)
        if self.resets:
            self.resets -= 1
            writer.transport.abort()
            raise ConnectionResetError
        if asked.path.partition("?")[0].endswith("/infer"):
            await self.work()
        answer = {"model_name": "any", "model_version": self.name, "outputs": []}
        headers, body = self.said or ({}, json.dumps(answer).encode())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **headers}
        lines = [f"HTTP/1.1 {self.status} Said", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()


def _not_accepted(listening: socket.socket) -> int:
    """Return how many connections have been made to a socket and not been accepted; 0 for one that does not listen."""
    if not listening.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return 0
    # `tcpi_unacked` of `struct tcp_info` in Linux's `tcp.h`, which of a listening socket is its queue.
    queue: int = struct.unpack_from("I", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28), 24)[0]
    return queue


async def _read(reader: asyncio.StreamReader) -> tuple[Asked, bytes]:
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    named = (line.lower().partition(":") for line in lines)
    headers = {name: value.strip() for name, colon, value in named if colon}
    size = int(headers.get("content-length", 0))
    return Asked(first.split(" ")[1], headers, size), await reader.readexactly(size)


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    def __init__(self, triton: StubTriton) -> None:
        self._triton = triton

    async def ModelInfer(self, request: pb.ModelInferRequest, context: Any) -> pb.ModelInferResponse:  # noqa: N802
        self._triton.methods.append("ModelInfer")
        await self._triton.work()
        if self._triton.grpc_status is not grpc.StatusCode.OK:
            if self._triton.late:
                await context.send_initial_metadata(())
            await context.abort(self._triton.grpc_status, self._triton.grpc_message)
        return self._answer(request)

    async def ServerLive(self, *_: object) -> pb.ServerLiveResponse:  # noqa: N802
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, *_: object) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=True)

    async def ServerMetadata(self, *_: object) -> pb.ServerMetadataResponse:  # noqa: N802
        return pb.ServerMetadataResponse(name=self._triton.name)

    async def ModelReady(self, *_: object) -> pb.ModelReadyResponse:  # noqa: N802
        return pb.ModelReadyResponse(ready=True)

    async def ModelMetadata(self, request: pb.ModelMetadataRequest, _: object) -> pb.ModelMetadataResponse:  # noqa: N802
        return pb.ModelMetadataResponse(name=request.name, platform=self._triton.name)

    async def ModelConfig(self, request: pb.ModelConfigRequest, _: object) -> pb.ModelConfigResponse:  # noqa: N802
        return pb.ModelConfigResponse(config={"name": request.name, "platform": self._triton.name})

    async def ModelStatistics(self, *_: object) -> pb.ModelStatisticsResponse:  # noqa: N802
        return pb.ModelStatisticsResponse()

    def _answer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
        return pb.ModelInferResponse(model_name=request.model_name, model_version=self._triton.name, id=request.id)
