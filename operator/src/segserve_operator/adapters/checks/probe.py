"""Asks both groups over and over while a candidate is quarantined."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Final, TypeAlias

from segserve_builder.errors import GoldenError
from segserve_builder.golden import judging as golden
from segserve_common.kserve import Parameter
from segserve_operator.adapters.checks.context import CheckContext, RequestCounts, ReportResult
from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.checks.gateway import NotAnsweredError
from segserve_operator.adapters.checks.golden_images import fetched
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.checks import Check, CheckResult

PERIOD_S: Final = 0.25
TIMEOUT_S: Final = 5.0
MOST_IMAGES: Final = 16
MOST_WAITING: Final = 32
"""A group that does not answer gets no more than this at once."""

Question: TypeAlias = "tuple[bytes, golden.Case | None]"


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """RunCheck four times a second for `order.seconds`, and tell of each answer as it comes.

    The candidate fails a request where its answer is none, or not the expected one of a golden image. Stable fails
    where it does not answer: the golden images are the candidate's.
    """
    questions, parameters = await _questions(check, context)
    counts, problems = RequestCounts(), list[CheckError]()
    waiting: dict[int, set[asyncio.Task[None]]] = {STABLE: set(), CANDIDATE: set()}

    async def one(side: int, question: Question) -> None:
        try:
            failed = await _fails(check, context, side, question, parameters)
        except CheckError as error:
            problems.append(error)
            return
        counts.add(side, failed=failed)
        report(counts.result(check.key, context.clock(), done=False))

    async with asyncio.TaskGroup() as group:
        for _, question in zip(range(max(round(check.seconds / PERIOD_S), 1)), cycle(questions), strict=False):
            for side, tasks in waiting.items():
                if len(tasks) < MOST_WAITING:
                    task = group.create_task(one(side, question))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(PERIOD_S)
    if problems and not counts.asked[CANDIDATE]:
        raise problems[-1]
    return counts.result(check.key, context.clock(), done=True)


async def _questions(check: Check, context: CheckContext) -> tuple[Sequence[Question], Mapping[str, Parameter]]:
    """Return the images to ask, with what is expected; the built-in one where there are none, or none can be had."""
    try:
        images = await fetched(check, context)
    except CheckError:
        return [(golden.builtin_image(), None)], {}
    chosen = images.images[:MOST_IMAGES]
    contents = await asyncio.gather(*(asyncio.to_thread(image.path.read_bytes) for image in chosen))
    return [(content, image.case) for content, image in zip(contents, chosen, strict=True)], images.parameters


async def _fails(
    check: Check, context: CheckContext, side: int, question: Question, parameters: Mapping[str, Parameter]
) -> bool:
    image, case = question
    group, revision = check.sides[side]
    try:
        answer = await context.gateway.infer(check.model, group, revision, image, parameters, TIMEOUT_S)
        if case is not None and side == CANDIDATE:
            await asyncio.to_thread(golden.compare, case, answer)
    except (NotAnsweredError, GoldenError):
        return True
    return False
