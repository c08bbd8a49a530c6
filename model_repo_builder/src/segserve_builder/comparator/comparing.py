"""Has answers compared by a process of its own, so that this one is always there for copies."""

from __future__ import annotations

import time
from typing import Final, NamedTuple

from segserve_builder.copies.copies import TIMEOUT_S, FrameWorker, RequestCopy, WorkerFrame
from segserve_builder.copies.groups import Answer
from segserve_builder.copies.http_server import ByteBudget

HELD_BYTES: Final = 96 * 2**20
"""Answers that wait for the worker, or are with it; further ones are not compared."""


class AnswerComparison(NamedTuple):
    """How much two answers agree, a pair of a sheet as JSON or nothing, and the shift of confidence if there is one."""

    agreement: float
    shown: bytes = b""
    shift: float | None = None


class AnswerComparer:
    """Compares the answers of pairs, one pair after the other. The process starts with the first pair."""

    def __init__(self, *, timeout_s: float = TIMEOUT_S) -> None:
        self._budget = ByteBudget(HELD_BYTES)
        self._worker = FrameWorker(f"{__package__}.worker", timeout_s=timeout_s)

    async def close(self) -> None:
        """End the process."""
        await self._worker.close()

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
            answer = await self._worker.ask(WorkerFrame(header, [copy.body, stable.content, candidate.content]))
        finally:
            self._budget.give_back(size)
        agreement = None if answer is None else answer.header["agreement"]
        if answer is None or agreement is None:
            return None
        return AnswerComparison(agreement, answer.blobs[0], answer.header["shift"])
