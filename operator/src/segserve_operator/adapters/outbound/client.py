"""The operator's side of the worker: what it answers is read as a stranger's."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from weakref import WeakValueDictionary

from pydantic import ValidationError

from segserve_common.http.urls import RefusedError, UrlError
from segserve_operator.adapters.checks.context import Question, ServiceAnswer
from segserve_operator.adapters.outbound.messages import (
    MAX_REQUEST,
    MAX_RESPONSE,
    REQUESTS,
    RESPONSES,
    Answered,
    Ask,
    Failed,
    Request,
    Response,
    SendMessage,
    Sent,
    shortened,
    user_at,
)
from segserve_operator.adapters.outbound.process import WorkerProcess, local_listener
from segserve_operator.core.gates.checks import CheckError

GRACE_S: Final = 30.0
"""Seconds beyond a request's own timeout: for a worker that starts anew."""

QUESTIONS_OF_A_POOL: Final = 16
"""Questions of one pool at the same time; the others wait in the operator."""


class WorkerError(OSError):
    """The worker does not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class OutboundClient:
    """Asks services and sends notifications by the worker that listens at `address`, a Unix socket of the user `user`.

    `start` is called before each request; it may start a worker that does not run.
    """

    address: str | bytes
    user: int = field(default_factory=os.getuid)
    start: Callable[[], None] = lambda: None
    grace_s: float = GRACE_S
    _turns: WeakValueDictionary[str, asyncio.Semaphore] = field(default_factory=WeakValueDictionary)

    async def ask(self, question: Question) -> ServiceAnswer:
        """Send a question and return the answer; raises `CheckError` if no answer comes."""
        turns = self._turns.setdefault(question.pool, asyncio.Semaphore(QUESTIONS_OF_A_POOL))
        async with turns:
            try:
                response = await self._call(Ask(question), question.timeout_s)
            except WorkerError as error:
                raise CheckError(str(error)) from error
        match response:
            case Answered(status, values):
                return ServiceAnswer(status, values)
            case Failed(_, text):
                raise CheckError(shortened(text))
        raise CheckError("the worker answers something else than an answer to the question")

    async def post(self, url: str, payload: Mapping[str, Any], timeout_s: float) -> int:
        """Post JSON and return the status of the response; raises as `Post` says."""
        response = await self._call(SendMessage(url, payload, timeout_s), timeout_s)
        match response:
            case Sent(status):
                return status
            case Failed("refused", text):
                raise RefusedError(shortened(text))
            case Failed("url", text):
                raise UrlError(shortened(text))
            case Failed(_, text):
                raise WorkerError(shortened(text))
        raise WorkerError("the worker answers something else than a status")

    async def _call(self, request: Request, timeout_s: float) -> Response:
        """Return the worker's response; raises `WorkerError`."""
        line = REQUESTS.dump_json(request) + b"\n"
        if len(line) > MAX_REQUEST:
            raise WorkerError(f"the request has {len(line)} bytes; at most {MAX_REQUEST}")
        self.start()
        try:
            async with asyncio.timeout(timeout_s + self.grace_s):
                return RESPONSES.validate_json(await self._exchange(line))
        except TimeoutError:
            raise WorkerError(f"the worker did not answer within {timeout_s + self.grace_s:.3g} s") from None
        except ValidationError:
            raise WorkerError("the worker ended, or answered what is no response") from None
        except OSError as error:
            raise WorkerError(f"the worker cannot be reached: {error.strerror or type(error).__name__}") from error

    async def _exchange(self, line: bytes) -> bytes:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(connection, self.address)
            if (user := user_at(connection)) != self.user:
                raise PermissionError(0, f"its socket belongs to the user {user}; expected {self.user}")
            reader, writer = await asyncio.open_unix_connection(sock=connection, limit=MAX_RESPONSE)
        except BaseException:
            connection.close()
            raise
        try:
            writer.write(line)
            await writer.drain()
            return await reader.readline()
        except ValueError:  # longer than the limit
            return b""
        finally:
            writer.close()


def own_worker(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[WorkerProcess, OutboundClient]:
    """Return a worker that is a child of this process, started by its first request."""
    worker = WorkerProcess(local_listener(), arguments, environment)
    return worker, OutboundClient(worker.listener.getsockname(), start=worker.start)
