"""Has answers compared by a process of its own, so that this one is always there for copies."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import time
from contextlib import suppress
from typing import Final, NamedTuple

from segserve_builder.comparator.copies import RequestCopy
from segserve_builder.comparator.frames import LENGTH, READY, WorkerFrame
from segserve_builder.comparator.groups import Answer
from segserve_builder.comparator.http_server import ByteBudget

TIMEOUT_S: Final = 10.0
"""A comparison that takes longer is none, and ends the worker."""
START_TIMEOUT_S: Final = 120.0
HELD_BYTES: Final = 96 * 2**20
"""Answers that wait for the worker, or are with it; further ones are not compared."""
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_BUFFER_BYTES: Final = 2**20

_log = logging.getLogger(__name__)


class AnswerComparison(NamedTuple):
    """How much two answers agree, a pair of a sheet as JSON or nothing, and the shift of confidence if there is one."""

    agreement: float
    shown: bytes = b""
    shift: float | None = None


class AnswerComparer:
    """Compares the answers of pairs, one pair after the other. The process starts with the first pair."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._budget = ByteBudget(HELD_BYTES)
        self._turn = asyncio.Lock()
        self._worker: asyncio.subprocess.Process | None = None

    async def close(self) -> None:
        """End the process."""
        worker, self._worker = self._worker, None
        if worker is not None:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()

    async def compare(
        self, copy: RequestCopy, stable: Answer, candidate: Answer, *, keep_below: float
    ) -> AnswerComparison | None:
        """Return how much two answers agree, and a pair of a sheet as JSON, empty unless it agrees less than that.

        None if they cannot be compared, if that took too long, or if too many wait.
        """
        if stable.content is None or candidate.content is None:
            return None
        size = len(stable.content) + len(candidate.content)
        if not self._budget.take(size):
            return None
        header = {
            "protocol": copy.protocol,
            "asked_at_s": time.time(),
            "header_lengths": [copy.header_length, stable.header_length, candidate.header_length],
            "keep_below": keep_below,
        }
        try:
            async with self._turn:
                return await self._exchange(WorkerFrame(header, [copy.body, stable.content, candidate.content]))
        finally:
            self._budget.give_back(size)

    async def _exchange(self, question: WorkerFrame) -> AnswerComparison | None:
        is_done = False
        try:
            worker = self._worker or await self._start()
            async with asyncio.timeout(self._timeout_s):
                answer = await _ask(worker, question)
            is_done = True
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            _log.warning("a pair was not compared: %s", type(error).__name__)
            return None
        finally:
            # Whatever it still does belongs to this pair: the next one must not get its answer.
            if not is_done:
                await self.close()
        agreement = answer.header["agreement"]
        return None if agreement is None else AnswerComparison(agreement, answer.blobs[0], answer.header["shift"])

    async def _start(self) -> asyncio.subprocess.Process:
        worker = self._worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"{__package__}.worker"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, **_ONE_THREAD},
            limit=_BUFFER_BYTES,
        )
        assert worker.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            await worker.stdout.readexactly(len(READY))
        return worker


async def _ask(worker: asyncio.subprocess.Process, question: WorkerFrame) -> WorkerFrame:
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.writelines(question.pack())
    await worker.stdin.drain()
    header = json.loads(await worker.stdout.readexactly(LENGTH.unpack(await worker.stdout.readexactly(LENGTH.size))[0]))
    return WorkerFrame(header, [await worker.stdout.readexactly(size) for size in header["sizes"]])
