"""A pool of kept connections, one for each request in flight.

httpx's own pool scans all its connections on every request; with 64 of them that takes longer than the rest of a
call. So here each connection is by itself, an httpx client as well, and the most recently used one is taken first.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Generic, Protocol, TypeVar

from segserve.transports.base import ExchangeError, check_open


class Closable(Protocol):
    """A connection for threads."""

    def close(self) -> None:
        """Close the connection."""


class AsyncClosable(Protocol):
    """A connection for tasks."""

    async def close(self) -> None:
        """Close the connection."""


ClientT = TypeVar("ClientT")
SyncT = TypeVar("SyncT", bound=Closable)
AsyncT = TypeVar("AsyncT", bound=AsyncClosable)

MAX_CONNECTIONS: Final = 256
# Shorter than any gateway keeps an idle connection.
KEEP_S: Final = 30.0


class _Idle(Generic[ClientT]):
    """Idle clients, least recently used first. Thread-safe."""

    def __init__(self, make: Callable[[], ClientT]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._clients: deque[tuple[float, ClientT]] = deque()

    def take(self) -> ClientT:
        """Return the most recently used client, or a new one."""
        with self._lock:
            if self._clients:
                return self._clients.pop()[1]
        return self._make()

    def give(self, client: ClientT) -> ClientT | None:
        """Keep a client; return one to close if it has been idle for more than `KEEP_S`."""
        now = time.monotonic()
        with self._lock:
            self._clients.append((now, client))
            since, oldest = self._clients[0]
            if now - since <= KEEP_S:
                return None
            self._clients.popleft()
            return oldest

    def all(self) -> Iterator[ClientT]:
        """Yield every client and forget them."""
        with self._lock:
            clients = [client for _, client in self._clients]
            self._clients.clear()
        yield from clients


class _Shared(Generic[ClientT]):
    """One client for all requests, which HTTP/2 multiplexes on one connection."""

    def __init__(self, make: Callable[[], ClientT]) -> None:
        self._client = make()

    def take(self) -> ClientT:
        """Return the client."""
        return self._client

    def give(self, _: ClientT) -> None:
        """Do nothing: the client stays in use."""

    def all(self) -> Iterator[ClientT]:
        """Yield the client."""
        yield self._client


class ConnectionPool(Generic[SyncT]):
    """Connections for threads, for at most `MAX_CONNECTIONS` concurrent requests; `shared`: one connection for all."""

    def __init__(self, make: Callable[[], SyncT], *, shared: bool) -> None:
        self._idle = _Shared(make) if shared else _Idle(make)
        self._free = threading.Semaphore(MAX_CONNECTIONS)
        self._closed = False

    @contextmanager
    def acquire(self, wait_s: float) -> Iterator[SyncT]:
        """Lend a client for the block; raises `ExchangeError` if none is free within `wait_s` seconds."""
        check_open(self._closed)
        if not self._free.acquire(timeout=wait_s):
            raise ExchangeError("pool", timed_out=True)
        try:
            client = self._idle.take()
            try:
                yield client
            finally:
                old = self._idle.give(client)
                if old is not None:
                    old.close()
                if self._closed:
                    self.close()  # it was closed while this client was in use
        finally:
            self._free.release()

    def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for client in self._idle.all():
            client.close()


class AsyncConnectionPool(Generic[AsyncT]):
    """Connections for the tasks of an event loop; see `ConnectionPool`."""

    def __init__(self, make: Callable[[], AsyncT], *, shared: bool) -> None:
        self._idle = _Shared(make) if shared else _Idle(make)
        self._free = asyncio.Semaphore(MAX_CONNECTIONS)
        self._closed = False

    @asynccontextmanager
    async def acquire(self, wait_s: float) -> AsyncIterator[AsyncT]:
        """Lend a client for the block; raises `ExchangeError` if none is free within `wait_s` seconds."""
        check_open(self._closed)
        try:
            async with asyncio.timeout(wait_s):
                await self._free.acquire()
        except TimeoutError:
            raise ExchangeError("pool", timed_out=True) from None
        try:
            client = self._idle.take()
            try:
                yield client
            finally:
                old = self._idle.give(client)
                if old is not None:
                    await old.close()
                if self._closed:
                    await self.close()
        finally:
            self._free.release()

    async def close(self) -> None:
        """Close the connections."""
        self._closed = True
        for client in self._idle.all():
            await client.close()
