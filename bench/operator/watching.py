"""Watches that continue after every interruption, and requests that are repeated until the server answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from segserve_common.api_errors import ThrottledError, UnavailableError
from segserve_common.kube.client import client_of
from segserve_common.kube.config import KubeContext, read_context
from segserve_common.kube.kinds import Json, Kind
from segserve_common.kube.requests import Selector, WatchEvent
from segserve_common.kube.watch import Reflector

T = TypeVar("T")

RETRY_S: Final = 0.5


async def until_answered(request: Callable[[], Awaitable[T]]) -> T:
    """Repeat a request for as long as the server is too busy for it."""
    while True:
        try:
            return await request()
        except (UnavailableError, ThrottledError):
            await asyncio.sleep(RETRY_S)


async def watched(
    kubeconfig: Path, kind: Kind, namespace: str | None, labels: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[str, Json]]:
    """Yield (event, object) of a kind for ever, of all namespaces if that is None; first, and after an interruption,
    all objects come as ADDED.
    """
    context = read_context(kubeconfig)
    assert isinstance(context, KubeContext), f"{kubeconfig} names no current context"
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[tuple[str, Json]] = asyncio.Queue()

    def put(event: str, item: Json) -> None:
        loop.call_soon_threadsafe(events.put_nowait, (event, item))

    def on_list(items: list[Json]) -> None:
        for item in items:
            put("ADDED", item)

    def on_event(event: WatchEvent) -> None:
        put(event.type, event.object)

    with client_of(context, namespace) as client:
        selector = Selector(kind, labels or {}, everywhere=namespace is None)
        reflector = Reflector(client, selector, on_list=on_list, on_event=on_event, on_error=lambda _: None)
        reflector.start()
        try:
            while True:
                yield await events.get()
        finally:
            reflector.stop()
