"""The worker's process: `python -m segserve_operator.adapters.outbound.child --listener=DESCRIPTOR`."""

from __future__ import annotations

import argparse
import asyncio
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import httpx
from pydantic import ValidationError

from segserve_common.http.urls import RefusedError, UrlError, own_service, service_check
from segserve_operator.adapters.checks.context import Services
from segserve_operator.adapters.checks.services import DirectServices
from segserve_operator.adapters.notify.messages import Post, direct_post
from segserve_operator.adapters.outbound.messages import (
    MAX_REQUEST,
    REQUESTS,
    RESPONSES,
    Answered,
    Ask,
    Failed,
    Request,
    Response,
    Sent,
    shortened,
    user_at,
)
from segserve_operator.core.gates.checks import CheckError

MEMORY_BYTES: Final = 384 * 2**20
"""Address space; what is in use is a fifth of it."""

STUCK_S: Final = 60.0
"""Seconds after which a worker whose event loop stands still ends itself."""

_STACK_BYTES: Final = 512 * 1024

MAX_CONNECTIONS: Final = 256
LOOKUPS: Final = 16
"""Names that are looked up at the same time, each in a thread."""
REQUEST_S: Final = 10.0
log = logging.getLogger("segserve")


def hosts(text: str) -> tuple[str, ...]:
    """Return the hosts in a list with commas."""
    return tuple(part for part in map(str.strip, text.split(",")) if part)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a worker."""
    parser = argparse.ArgumentParser(description="Calls tenants' services for the operator.")
    parser.add_argument("--listener", type=int, required=True, help="descriptor of the listening socket")
    parser.add_argument("--user", type=int, default=os.getuid(), help="user of the operator; default: the own one")
    parser.add_argument("--gate-hosts", type=hosts, default=(), help="hosts that gates may ask")
    parser.add_argument("--notification-hosts", type=hosts, default=(), help="hosts that notifications may call")
    parser.add_argument("--own-services", action="store_true", help="allow this machine and private networks instead")
    return parser.parse_args(arguments)


def limit_resources() -> None:
    """Bound this process's memory and files, if the system can; it leaves no core."""
    for limit, most in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 1024),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


async def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM, or until the process at the other end of stdin has ended."""
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopping.set)
    loop.add_reader(sys.stdin.fileno(), stopping.set)
    gates = own_service if options.own_services else service_check(options.gate_hosts, "gates.hosts")
    receivers = (
        own_service if options.own_services else service_check(options.notification_hosts, "notifications.hosts")
    )
    listener = socket.socket(fileno=options.listener)
    listener.setblocking(False)
    watchdog = asyncio.create_task(end_once_stuck())
    await WorkerServer(DirectServices(gates), direct_post(receivers), options.user).run(listener, stopping)
    watchdog.cancel()


async def end_once_stuck() -> None:
    """Have the process end, with a trace, once its event loop stands still; only for a process of its own."""
    while True:
        faulthandler.dump_traceback_later(STUCK_S, exit=True)
        await asyncio.sleep(STUCK_S / 10)


def main() -> None:
    """Run the worker."""
    options = parse(sys.argv[1:])
    limit_resources()
    threading.stack_size(_STACK_BYTES)
    asyncio.run(serve(options))


@dataclass(slots=True)
class WorkerServer:
    """Answers requests of processes of the user `user`."""

    services: Services
    post: Post
    user: int
    _connections: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, listener: socket.socket, stopping: asyncio.Event) -> None:
        """Serve a listening socket until stopped; requests under way are then given up."""
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
        """Return the response to the request, None if its sender has gone."""
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
                answer = await self.services.ask(request.question)
                return Answered(answer.status, answer.values)
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


if __name__ == "__main__":
    main()
