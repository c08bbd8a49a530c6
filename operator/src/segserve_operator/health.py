"""HTTP endpoints of the operator: health and metrics."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest


@asynccontextmanager
async def health_server(
    port: int, trouble: Callable[[], str | None], registry: CollectorRegistry, refresh: Callable[[], None]
) -> AsyncIterator[None]:
    """Serve /healthz (503 with the problem, if there is one) and /metrics while the block runs."""

    async def healthz(_: web.Request) -> web.Response:
        why = trouble()
        return web.Response(status=503 if why else 200, text=why or "ok")

    async def metrics(_: web.Request) -> web.Response:
        refresh()
        return web.Response(body=generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "0.0.0.0", port).start()  # kubelet and Prometheus come from outside the pod
        yield
    finally:
        await runner.cleanup()
