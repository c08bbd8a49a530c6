"""A proxy before a real API server: counts writes, kills writers, answers errors, hangs, and meddles with watches."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from fakes.api_proxy_rules import Answer, Call, Hang, Kill, Rule
from fakes.kube_connection import context_of_file, ssl_context_of
from fakes.waiting import HANG_S, connections_are_closed

_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding", "upgrade", "authorization"}
_REASONS = {
    403: "Forbidden",
    409: "Conflict",
    410: "Expired",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
}


@dataclass(eq=False)
class _Watcher:
    """A watch under way. One that has lost an event says nothing more, as behind a network that swallows packets."""

    transport: asyncio.WriteTransport
    tell: asyncio.Queue[tuple[float, bytes]] = field(default_factory=asyncio.Queue)
    lost: bool = False


class ApiProxy:
    """Speaks plain HTTP without credentials to its clients, and to the server what the kubeconfig says.

    Rules and watch settings may be changed at any time, also from other threads.
    """

    def __init__(self, kubeconfig: Path, *rules: Rule, host: str = "127.0.0.1", port: int = 0) -> None:
        context = context_of_file(kubeconfig)
        self._upstream = context.server.rstrip("/")
        self._ssl = ssl_context_of(context.configuration())
        self._host, self._port = host, port
        self.calls: list[Call] = []
        self.latency_s = 0.0  # of each answer, and of the start of each watch
        self.watch_delay_s = 0.0
        self.watch_silent = False
        self._watchers: set[_Watcher] = set()
        self._rules: list[list[Any]] = [[rule, 0] for rule in rules]

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://{self._host}:{self._port}"

    @property
    def writes(self) -> list[Call]:
        """The writes that came, whatever became of them."""
        return [call for call in self.calls if call.writes]

    @property
    def lost_watches(self) -> int:
        """How many of the watches under way have lost an event."""
        return sum(watcher.lost for watcher in list(self._watchers))

    def add(self, *rules: Rule) -> None:
        """Have more go wrong; calls are counted for each from now on."""
        self._rules.extend([rule, 0] for rule in rules)

    def heal(self) -> None:
        """Pass everything on from now on."""
        self._rules.clear()
        self.latency_s, self.watch_delay_s, self.watch_silent = 0.0, 0.0, False

    def reset_watches(self) -> None:
        """Break the connections of all watches."""
        for watcher in list(self._watchers):
            self._loop.call_soon_threadsafe(watcher.transport.abort)

    def expire_watches(self) -> None:
        """Tell all watches that what they go on from is too old (410)."""
        line = json.dumps({"type": "ERROR", "object": _status(410)}).encode() + b"\n"
        for watcher in list(self._watchers):
            for told in (line, b""):
                self._loop.call_soon_threadsafe(watcher.tell.put_nowait, (0.0, told))

    def write_kubeconfig(self, path: Path, namespace: str = "default") -> Path:
        """Write a kubeconfig whose server is this proxy."""
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "proxy", "cluster": {"server": self.url}}],
            "users": [{"name": "proxy", "user": {"token": "not-looked-at"}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy", "namespace": namespace}}],
            "current-context": "proxy",
        }
        path.write_text(yaml.safe_dump(config))
        return path

    @asynccontextmanager
    async def running(self) -> AsyncIterator[ApiProxy]:
        """Serve in this event loop."""
        self._loop = asyncio.get_running_loop()
        connector = aiohttp.TCPConnector(ssl=self._ssl, limit=0)
        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False, timeout=timeout) as self._session:
            app = web.Application(client_max_size=16 * 1024 * 1024)
            app.router.add_route("*", "/{path:.*}", self._serve)
            runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, self._host, self._port)
            await site.start()
            self._port = int(runner.addresses[0][1])
            try:
                yield self
            finally:
                await runner.cleanup()
        await connections_are_closed()

    @contextmanager
    def in_thread(self) -> Iterator[ApiProxy]:
        """Serve in a thread, for tests that block."""
        started, loop, stop = threading.Event(), asyncio.new_event_loop(), asyncio.Event()

        async def serve() -> None:
            async with self.running():
                started.set()
                await stop.wait()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), name="api-proxy", daemon=True)
        thread.start()
        assert started.wait(HANG_S), "the proxy does not start"
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(HANG_S)
            loop.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        agent = request.headers.get("User-Agent", "")
        call = Call(len(self.calls) + 1, request.method, request.path, request.query_string, agent)
        self.calls.append(call)
        body = await request.read()
        due = self._due(call)
        await asyncio.sleep(self.latency_s)
        match due:
            case Kill(strike, after):
                if after:
                    await self._pass_on(request, body)
                await asyncio.to_thread(strike)
                return _broken(request)
            case Answer(code, retry_after_s, landed):
                if landed:
                    await self._pass_on(request, body)
                headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
                return web.json_response(_status(code), status=code, headers=headers)
            case Hang(seconds, landed):
                if landed:
                    await self._pass_on(request, body)
                await asyncio.sleep(seconds)
                return _broken(request)
        return await (self._watch(request) if call.watches else self._pass_on(request, body))

    def _due(self, call: Call) -> Kill | Answer | Hang | None:
        due = None
        for entry in list(self._rules):
            rule: Rule = entry[0]
            if not rule.fits(call):
                continue
            entry[1] += 1
            past = entry[1] - rule.nth
            if due is None and past >= 0 and (rule.times is None or past < rule.times):
                due = rule.action
        return due

    def _send(self, request: web.Request, body: bytes | None = None) -> Any:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        return self._session.request(
            request.method, self._upstream + request.path_qs, headers=headers, data=body or None
        )

    async def _pass_on(self, request: web.Request, body: bytes) -> web.Response:
        async with self._send(request, body) as answer:
            headers = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            return web.Response(status=answer.status, headers=headers, body=await answer.read())

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        while self.watch_silent:  # a connection that was opened into the void stays there
            await asyncio.sleep(3600)
        async with self._send(request) as answer:
            response = web.StreamResponse(
                status=answer.status, headers={"Content-Type": answer.headers.get("Content-Type", "application/json")}
            )
            await response.prepare(request)
            assert request.transport is not None
            watcher = _Watcher(request.transport)
            self._watchers.add(watcher)
            reading = asyncio.create_task(self._read(answer, watcher))
            try:
                await self._tell(watcher, response)
            finally:
                reading.cancel()
                self._watchers.discard(watcher)
            return response

    async def _read(self, answer: aiohttp.ClientResponse, watcher: _Watcher) -> None:
        rest = b""
        async for chunk in answer.content.iter_any():
            lines, end, rest = (rest + chunk).rpartition(b"\n")
            watcher.lost = watcher.lost or self.watch_silent
            if end and not watcher.lost:
                watcher.tell.put_nowait((self._loop.time(), lines + end))
        if not watcher.lost:
            watcher.tell.put_nowait((self._loop.time(), b""))

    async def _tell(self, watcher: _Watcher, response: web.StreamResponse) -> None:
        while True:
            since, line = await watcher.tell.get()
            await asyncio.sleep(since + self.watch_delay_s - self._loop.time())
            if not line:
                return
            await response.write(line)


def _status(code: int) -> dict[str, Any]:
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": f"injected: {code}",
        "reason": _REASONS.get(code, "Unknown"),
        "code": code,
    }


def _broken(request: web.Request) -> web.Response:
    """Break the connection, and return what nobody gets any more."""
    if request.transport is not None:
        request.transport.abort()
    return web.Response()
