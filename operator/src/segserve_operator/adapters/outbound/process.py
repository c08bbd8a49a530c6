"""The worker as a child process with limits and an empty environment, started again whenever it ends."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from segserve_common.backoff import Backoff
from segserve_common.interpreter import python

BACKLOG: Final = 128
_BACKOFF: Final = Backoff(first_s=0.1, longest_s=30.0)
_STEADY_S: Final = 60.0
"""Seconds after which an end counts as the first of its kind."""

_FRUGAL: Final = {"MALLOC_ARENA_MAX": "2", "OPENBLAS_NUM_THREADS": "1"}
"""Variables that keep libraries from reserving address space for each thread and core."""

_KEPT: Final = ("SSL_CERT_FILE", "SSL_CERT_DIR")

log = logging.getLogger("segserve")


@dataclass(slots=True)
class WorkerProcess:
    """Keeps a child process at work on a listening socket.

    `arguments` are the options of `child`; of `environment` it gets only which authorities it trusts. Requests wait in
    the socket's queue while there is no child.
    """

    listener: socket.socket
    arguments: Sequence[str]
    environment: Mapping[str, str]
    pid: int | None = None
    _keeping: asyncio.Task[None] | None = field(default=None, init=False)

    def start(self) -> None:
        """Keep a child running from now on; returns at once, and does nothing the second time."""
        if self._keeping is None:
            self._keeping = asyncio.create_task(self.keep(), name="worker")

    async def close(self) -> None:
        """End the child and close the socket."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        self.listener.close()

    async def keep(self) -> None:
        """Run the child, and run it again whenever it ends, until cancelled."""
        ends = 0
        while True:
            began_s = time.monotonic()
            try:
                status = await self._run()
                log.warning("the worker ended with %s and is started again", status)
            except OSError as error:
                log.warning("the worker cannot be started: %s", error)
            ends = 1 if time.monotonic() - began_s > _STEADY_S else ends + 1
            await asyncio.sleep(_BACKOFF.delay_s(ends))

    async def _run(self) -> int:
        descriptor = self.listener.fileno()
        child = await asyncio.create_subprocess_exec(
            *python("-I", "-B", "-m", "segserve_operator.adapters.outbound.child"),
            *(f"--listener={descriptor}", *self.arguments),
            env={**_FRUGAL, **{name: self.environment[name] for name in _KEPT if name in self.environment}},
            cwd="/",
            stdin=asyncio.subprocess.PIPE,  # its end shows the child that this process has ended
            stdout=asyncio.subprocess.DEVNULL,
            pass_fds=[descriptor],
        )
        self.pid = child.pid
        try:
            return await child.wait()
        finally:
            self.pid = None
            if child.returncode is None:
                with suppress(ProcessLookupError):
                    child.kill()
                await child.wait()


def local_listener() -> socket.socket:
    """Return a listening socket that has no file: its address is unique, and vanishes with it."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    listener.bind("")
    listener.listen(BACKLOG)
    return listener
