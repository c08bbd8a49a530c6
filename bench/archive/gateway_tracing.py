"""What the gateway's spans cost callers.

    python -m bench.archive.gateway_tracing

Writes bench/out/gateway_tracing.json. As `bench.archive.gateway_access_log`: real Envoys, one for each setting, asked in turns.
Their collector is a process that reads what comes and keeps nothing; it shares the machine's processors.
"""

from __future__ import annotations

import multiprocessing
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.queues import SimpleQueue
from typing import Any, Final

from aiohttp import web

from bench.archive.gateway_access_log import measure
from bench.archive.gateway_mirror import publish
from bench.platform import ROOT
from bench.ports import free_port
from segserve_operator.api.telemetry import Tracing

OUT: Final = ROOT / "bench/out/gateway_tracing.json"
NAME: Final = re.compile(rb'"name": *"(InferRequest|batch)"')
_PROCESSES: Final = multiprocessing.get_context("spawn")


def _collect(port: int, ready: SimpleQueue[bool]) -> None:
    spans: Counter[str] = Counter()

    async def take(request: web.Request) -> web.Response:
        spans.update(name.decode() for name in NAME.findall(await request.read()))
        return web.Response()

    async def tell(_: web.Request) -> web.Response:
        return web.json_response(spans)

    async def application() -> web.Application:
        app = web.Application()
        app.router.add_post("/v1/traces", take)
        app.router.add_get("/", tell)
        app.on_startup.append(started)
        return app

    async def started(_: web.Application) -> None:
        ready.put(True)

    web.run_app(application(), host="127.0.0.1", port=port, print=None, access_log=None)


@contextmanager
def collecting() -> Iterator[str]:
    """Run a collector that drops all spans; yield its URL, which tells how many spans written as JSON had each name."""
    port, ready = free_port(), _PROCESSES.SimpleQueue()
    process = _PROCESSES.Process(target=_collect, args=(port, ready))
    process.start()
    try:
        ready.get()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.join()


async def compare() -> dict[str, dict[str, float]]:
    """Return the figures of `measure` by the share of requests that are traced."""
    with collecting() as url:
        shares = {"none of them": 0.0, "1 %": 0.01, "all": 1.0}
        traced: dict[str, dict[str, Any]] = {
            name: {"tracing": Tracing(endpoint=url, sampling_ratio=share)} for name, share in shares.items()
        }
        # Nothing listens there.
        gone = Tracing(endpoint=f"http://127.0.0.1:{free_port()}", sampling_ratio=1.0)
        return await measure({"off": {}, **traced, "all, collector gone": {"tracing": gone}})


if __name__ == "__main__":
    publish(compare, OUT)
