"""The worker's side: it calls services at addresses that the chart allows, and evaluates expressions."""

from __future__ import annotations

import asyncio
import logging
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import httpx
from pydantic import ValidationError

from segserve_common.http.urls import RefusedError, UrlError
from segserve_operator.adapters.checks.context import Services
from segserve_operator.adapters.notify.post import Post
from segserve_operator.adapters.outbound.messages import (
    MAX_REQUEST,
    REQUESTS,
    RESPONSES,
    Ask,
    Failed,
    Judged,
    Request,
    Response,
    Sent,
    shortened,
    user_at,
)
from segserve_operator.core.gates.checks import CheckError

MAX_CONNECTIONS: Final = 256
LOOKUPS: Final = 16
"""Names that are looked up at the same time, each in a thread."""

REQUEST_S: Final = 10.0

log = logging.getLogger("segserve")


@dataclass(slots=True)
class WorkerServer:
    """Answers requests of processes of the user `user`."""

    services: Services
    post: Post
    user: int
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """Serve a listening socket until told to stop; requests under way are then given up."""
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(LOOKUPS))
        server = await asyncio.start_unix_server(self._accept, sock=listener, limit=MAX_REQUEST)
        await stopping.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        try:
            user = user_at(writer.get_extra_info("socket"))
            if user != self.user:
                log.warning("a connection of the user %s is refused", user)
            elif len(self._connections) > MAX_CONNECTIONS:
                writer.write(_line(Failed("transient", "the worker has too many requests")))
            elif (response := await self._answer(reader)) is not None:
                writer.write(_line(response))
                await writer.drain()
        except OSError:
            log.debug("a connection broke off", exc_info=True)
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> Response | None:
        """Return the response to the request, None if whoever sent it has gone."""
        try:
            async with asyncio.timeout(REQUEST_S):
                request = REQUESTS.validate_json(await reader.readline())
        except (TimeoutError, ValueError) as error:
            kind = "no request" if isinstance(error, ValidationError) else "late or too long"
            return Failed("transient", f"what the operator sends is {kind}")
        work = asyncio.create_task(self._work(request))
        gone = asyncio.create_task(reader.read(1))
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            return await work if work.done() else None
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _work(self, request: Request) -> Response:
        try:
            if isinstance(request, Ask):
                verdict = await self.services.ask(request.question)
                return Judged(verdict.passes, verdict.breaches, shortened(verdict.shown), verdict.numbers)
            return Sent(await self.post(request.url, request.payload, request.timeout_s))
        except CheckError as error:
            return Failed("check", shortened(str(error)))
        except RefusedError as error:
            return Failed("refused", shortened(str(error)))
        except UrlError as error:
            return Failed("url", shortened(str(error)))
        except MemoryError:
            return Failed("transient", "the worker's memory does not suffice")
        except (httpx.HTTPError, OSError) as error:
            return Failed("transient", shortened(str(error) or type(error).__name__))


def _line(response: Response) -> bytes:
    return RESPONSES.dump_json(response) + b"\n"
