"""A child process that is asked one thing after the other, by frames, and is ended when it takes too long."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

from segserve_builder.copies.frames import LENGTH, READY, WorkerFrame
from segserve_common.interpreter import python

TIMEOUT_S: Final = 10.0
"""A question that takes longer has no answer, and ends the worker."""
START_TIMEOUT_S: Final = 120.0
_ONE_THREAD: Final = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_BUFFER_BYTES: Final = 2**20

_log = logging.getLogger(__name__)


class FrameWorker:
    """Asks a module's process. It starts with the first question, and gets `environment`, by default this one's."""

    def __init__(
        self, module: str, *, timeout_s: float = TIMEOUT_S, environment: Mapping[str, str] | None = None
    ) -> None:
        self._module = module
        self._timeout_s = timeout_s
        self._environment = environment
        self._turn = asyncio.Lock()
        self.process: asyncio.subprocess.Process | None = None

    async def close(self) -> None:
        """End the process."""
        worker, self.process = self.process, None
        if worker is not None:
            with suppress(ProcessLookupError):
                worker.kill()
            await worker.wait()

    async def ask(self, question: WorkerFrame) -> WorkerFrame | None:
        """Return the answer, None if it failed or took too long."""
        async with self._turn:
            is_done = False
            try:
                worker = self.process or await self._start()
                async with asyncio.timeout(self._timeout_s):
                    assert worker.stdin is not None
                    assert worker.stdout is not None
                    worker.stdin.writelines(question.pack())
                    await worker.stdin.drain()
                    header = json.loads(
                        await worker.stdout.readexactly(LENGTH.unpack(await worker.stdout.readexactly(LENGTH.size))[0])
                    )
                    answer = WorkerFrame(header, [await worker.stdout.readexactly(size) for size in header["sizes"]])
                is_done = True
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                _log.warning("%s has not answered: %s", self._module, type(error).__name__)
                return None
            finally:
                # Whatever it still does belongs to this question: the next one must not get its answer.
                if not is_done:
                    await self.close()
            return answer

    async def _start(self) -> asyncio.subprocess.Process:
        environment = os.environ if self._environment is None else self._environment
        worker = self.process = await asyncio.create_subprocess_exec(
            *python("-m", self._module),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**environment, **_ONE_THREAD},
            limit=_BUFFER_BYTES,
        )
        assert worker.stdout is not None
        async with asyncio.timeout(START_TIMEOUT_S):
            await worker.stdout.readexactly(len(READY))
        return worker
