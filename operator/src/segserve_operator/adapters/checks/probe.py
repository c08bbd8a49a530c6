"""Probe: requests to both groups at a steady rate while a candidate is quarantined.

It checks whether servers answer at all; whether they answer well is judged by their agents, which replay the golden set
at the same time.
"""

from __future__ import annotations

import asyncio
from typing import Final

from segserve_builder.golden.judging import builtin_image
from segserve_operator.adapters.checks.context import CheckContext, ReportResult, RequestCounts
from segserve_operator.adapters.checks.gateway import NotAnsweredError
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.checks import Check, CheckError, ProbeCounts

PERIOD_S: Final = 0.25
TIMEOUT_S: Final = 5.0
MAX_IN_FLIGHT: Final = 32
"""Requests in flight to a group that does not answer."""


async def run(check: Check, context: CheckContext, report: ReportResult) -> ProbeCounts:
    """Send the built-in image four times a second to each group for `check.seconds`, and report each answer."""
    image = builtin_image()
    counts, problems = RequestCounts(), list[CheckError]()
    in_flight: dict[int, set[asyncio.Task[None]]] = {STABLE: set(), CANDIDATE: set()}

    async def one(side: int) -> None:
        try:
            failed = await _fails(check, context, side, image)
        except CheckError as error:
            problems.append(error)
            return
        counts.add(side, failed=failed)
        report(counts.result(done=False))

    async with asyncio.TaskGroup() as group:
        for _ in range(max(round(check.seconds / PERIOD_S), 1)):
            for side, tasks in in_flight.items():
                if len(tasks) < MAX_IN_FLIGHT:
                    task = group.create_task(one(side))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(PERIOD_S)
    if problems and not counts.asked[CANDIDATE]:
        raise problems[-1]
    return counts.result(done=True)


async def _fails(check: Check, context: CheckContext, side: int, image: bytes) -> bool:
    group, revision = check.sides[side]
    try:
        await context.gateway.infer(check.model, group, revision, image, {}, TIMEOUT_S)
    except NotAnsweredError:
        return True
    return False
