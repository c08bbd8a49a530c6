"""Servers of two groups behind an internal listener, over HTTP/1.1 and gRPC, that answer as a test says."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from aiohttp import web

from segserve_builder.copies.copies import MODEL_INFER

GROUP = "x-segserve-group"


@dataclass
class GroupServers:
    """What each group answers: bytes, a status (HTTP code or gRPC status), or nothing before `release`.

    `words` are those of every error.
    `reply_headers` are those of answers over HTTP; `bodies` and `headers` are of what each group was asked, in their
    order.
    """

    answers: dict[str, bytes | int | grpc.StatusCode | None] = field(default_factory=dict)
    reply_headers: dict[str, dict[str, str]] = field(default_factory=dict)
    bodies: defaultdict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    headers: defaultdict[str, list[dict[str, str]]] = field(default_factory=lambda: defaultdict(list))
    paths: list[str] = field(default_factory=list)
    words: str = "as the test says"
    release: asyncio.Event = field(default_factory=asyncio.Event)

    async def answer_http(self, request: web.Request) -> web.StreamResponse:
        group = request.headers[GROUP]
        self.paths.append(request.raw_path)
        self.headers[group].append({name.lower(): value for name, value in request.headers.items()})
        self.bodies[group].append(await request.read())
        answer = self.answers[group]
        if answer is None:
            await self.release.wait()
            answer = b""
        if isinstance(answer, bytes):
            return web.Response(body=answer, headers=self.reply_headers.get(group))
        assert isinstance(answer, int)
        return web.Response(status=answer, text=self.words)

    async def answer_grpc(self, message: bytes, context: Any) -> bytes:
        metadata = {name: str(value) for name, value in context.invocation_metadata()}
        group = metadata[GROUP]
        self.headers[group].append(metadata)
        self.bodies[group].append(message)
        answer = self.answers[group]
        if answer is None:
            await self.release.wait()
            answer = b""
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, self.words)
        assert isinstance(answer, bytes)
        return answer


@asynccontextmanager
async def serve_http(servers: GroupServers, socket: Path) -> AsyncIterator[str]:
    """Serve over HTTP at a socket during the block; yield the gateway's address."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", servers.answer_http)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.UnixSite(runner, str(socket)).start()
        yield f"unix:{socket}"
    finally:
        servers.release.set()
        await runner.cleanup()


@asynccontextmanager
async def serve_grpc(servers: GroupServers, socket: Path) -> AsyncIterator[str]:
    """Serve over gRPC at a socket during the block; yield the gateway's address."""
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.aio.server(options=unlimited)
    service, method = MODEL_INFER.removeprefix("/").split("/")
    handlers = {method: grpc.unary_unary_rpc_method_handler(servers.answer_grpc)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    try:
        yield f"unix:{socket}"
    finally:
        servers.release.set()
        await server.stop(None)
