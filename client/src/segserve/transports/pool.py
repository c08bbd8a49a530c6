"""Connections that are kept, one for each request in flight.

httpx's own pool looks at every connection for every request: with 64 of them that takes longer than all the rest of a
call. So each connection is an httpx client of its own here, and the one that was used last is used next.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Generic, TypeVar

import httpx

from segserve.transports.processes import check_open

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

ClientT = TypeVar("ClientT")

LANES: Final = 256
# Gateways keep idle connections for longer than this.
KEEP_S: Final = 30.0
LIMITS: Final = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=KEEP_S)


class _Idle(Generic[ClientT]):
    """Clients that wait for a request, the oldest first. Safe for threads."""

    def __init__(self, make: Callable[[], ClientT]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._clients: deque[tuple[float, ClientT]] = deque()

    def take(self) -> ClientT:
        """Return the client that was used last, or a new one."""
        with self._lock:
            if self._clients:
                return self._clients.pop()[1]
        return self._make()

    def give(self, client: ClientT) -> ClientT | None:
        """Keep a client; return one that has waited for too long, to be closed."""
        now = time.monotonic()
        with self._lock:
            self._clients.append((now, client))
            since, oldest = self._clients[0]
            if now - since <= KEEP_S:
                return None
            self._clients.popleft()
            return oldest

    def all(self) -> Iterator[ClientT]:
        """Yield every client, and keep none."""
        with self._lock:
            clients = [client for _, client in self._clients]
            self._clients.clear()
        yield from clients


class _Shared(Generic[ClientT]):
    """One client that takes all requests, as HTTP/2 can on one connection."""

    def __init__(self, make: Callable[[], ClientT]) -> None:
        self._client = make()

    def take(self) -> ClientT:
        """Return the client."""
        return self._client

    def give(self, _: ClientT) -> None:
        """Nothing has to be kept."""

    def all(self) -> Iterator[ClientT]:
        """Yield the client."""
        yield self._client


class Lanes:
    """Connections for threads, at most `LANES` requests at once; `shared` where one connection takes them all."""

    def __init__(self, make: Callable[[], httpx.Client], *, shared: bool) -> None:
        self._idle = _Shared(make) if shared else _Idle(make)
        self._free = threading.Semaphore(LANES)
        self._closed = False

    @contextmanager
    def lane(self, wait_s: float) -> Iterator[httpx.Client]:
        """Lend a client; raises `httpx.PoolTimeout` where none is free within `wait_s`."""
        check_open(self._closed)
        if not self._free.acquire(timeout=wait_s):
            raise httpx.PoolTimeout("")
        try:
            client = self._idle.take()
            try:
                yield client
            finally:
                old = self._idle.give(client)
                if old is not None:
                    old.close()
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for client in self._idle.all():
            client.close()


class AsyncLanes:
    """Connections for tasks, as `Lanes` has them for threads."""

    def __init__(self, make: Callable[[], httpx.AsyncClient], *, shared: bool) -> None:
        self._idle = _Shared(make) if shared else _Idle(make)
        self._free = asyncio.Semaphore(LANES)
        self._closed = False

    @asynccontextmanager
    async def lane(self, wait_s: float) -> AsyncIterator[httpx.AsyncClient]:
        """Lend a client; raises `httpx.PoolTimeout` where none is free within `wait_s`."""
        check_open(self._closed)
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise httpx.PoolTimeout("") from None
        try:
            client = self._idle.take()
            try:
                yield client
            finally:
                old = self._idle.give(client)
                if old is not None:
                    await old.aclose()
        finally:
            self._free.release()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for client in self._idle.all():
            await client.aclose()
