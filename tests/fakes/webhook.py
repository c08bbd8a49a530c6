"""A receiver of notifications for tests: a real HTTP server that can be slow, fail, redirect, or never end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[int], web.Response]


def accepted(number: int) -> web.Response:
    """Return the answer of a receiver that works."""
    return web.Response(status=204)


@dataclass
class Webhook:
    """What came in, in order. `answer` is asked with the number of the request, from 1; `delay_s` goes before it."""

    url: str = ""
    answer: Answer = accepted
    delay_s: float = 0.0
    received: list[dict[str, Any]] = field(default_factory=list)
    hosts: list[str] = field(default_factory=list)

    async def _take(self, request: web.Request) -> web.Response:
        self.received.append(json.loads(await request.text()))
        self.hosts.append(request.host)
        number = len(self.received)
        await asyncio.sleep(self.delay_s)
        return self.answer(number)


@asynccontextmanager
async def webhook(*, host: str = "127.0.0.1", **options: Any) -> AsyncIterator[Webhook]:
    """Receive on a free port of loopback while the block runs; a delay ends when its caller has gone."""
    found = Webhook(**options)
    app = web.Application()
    app.router.add_post("/{path:.*}", found._take)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0)
        await site.start()
        place = f"[{host}]" if ":" in host else host
        found.url = f"http://{place}:{runner.addresses[0][1]}/hook/secret"
        yield found
    finally:
        await runner.cleanup()
