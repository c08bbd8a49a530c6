"""A stand-in for the comparator beside a gateway: takes copies of requests, or does not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from segserve_builder.comparator.folder import ComparatorFolder


@dataclass(frozen=True)
class Copy:
    """A request as it arrived."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class StubComparator:
    """Answers a copy `delay_s` after it has arrived; a `deaf` one takes connections and reads nothing.

    At the other socket it tells `pairs`.
    """

    delay_s: float = 0.0
    deaf: bool = False
    pairs: Any = None
    copies: list[Copy] = field(default_factory=list)
    connections: int = 0

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.deaf:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.Event().wait()
        while True:
            copy = await read_request(reader)
            self.copies.append(copy)
            await asyncio.sleep(self.delay_s)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    async def tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        body = self.pairs if isinstance(self.pairs, bytes) else json.dumps(self.pairs).encode()
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))


async def read_request(reader: asyncio.StreamReader) -> Copy:
    """Read one request of HTTP/1.1, with a length or in chunks."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") != "chunked":
        return Copy(first.split()[1], headers, await reader.readexactly(int(headers.get("content-length", 0))))
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).strip(), 16):
        body += (await reader.readexactly(size + 2))[:size]
    await reader.readuntil(b"\r\n")
    return Copy(first.split()[1], headers, body)


@asynccontextmanager
async def running_comparator(folder: ComparatorFolder, **options: Any) -> AsyncIterator[StubComparator]:
    """Run one in this folder."""
    comparator, tasks = StubComparator(**options), set[asyncio.Task[None]]()

    def serving(handle: Any) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            tasks.add(task)
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await handle(reader, writer)
            tasks.discard(task)
            writer.close()

        return serve

    folder.path.mkdir(parents=True, exist_ok=True)
    handled = {folder.copies: comparator.take, folder.control: comparator.tell}
    servers = [await asyncio.start_unix_server(serving(each), path) for path, each in handled.items()]
    try:
        yield comparator
    finally:
        for server in servers:
            server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks)
        for path in handled:
            path.unlink(missing_ok=True)
