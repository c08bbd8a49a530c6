"""Probe: requests to both groups at a steady rate while a candidate is quarantined."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Final, TypeAlias

from segserve_builder.errors import GoldenError
from segserve_builder.golden import judging as golden
from segserve_common.kserve import Parameter
from segserve_operator.adapters.checks.context import CheckContext, ReportResult, RequestCounts
from segserve_operator.adapters.checks.gateway import NotAnsweredError
from segserve_operator.adapters.checks.golden_images import fetch_golden_images
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult

PERIOD_S: Final = 0.25
TIMEOUT_S: Final = 5.0
MAX_IMAGES: Final = 16
MAX_IN_FLIGHT: Final = 32
"""Requests in flight to a group that does not answer."""

ProbeImage: TypeAlias = "tuple[bytes, golden.Case | None]"


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Send four requests a second to each group for `check.seconds`, and report each answer.

    The candidate fails a request without an answer, or with another one than the golden image expects. Stable fails
    only without an answer, as the golden images are the candidate's.
    """
    images, parameters = await _images(check, context)
    counts, problems = RequestCounts(), list[CheckError]()
    in_flight: dict[int, set[asyncio.Task[None]]] = {STABLE: set(), CANDIDATE: set()}

    async def one(side: int, image: ProbeImage) -> None:
        try:
            failed = await _fails(check, context, side, image, parameters)
        except CheckError as error:
            problems.append(error)
            return
        counts.add(side, failed=failed)
        report(counts.result(check.key, context.clock(), done=False))

    async with asyncio.TaskGroup() as group:
        for _, image in zip(range(max(round(check.seconds / PERIOD_S), 1)), cycle(images), strict=False):
            for side, tasks in in_flight.items():
                if len(tasks) < MAX_IN_FLIGHT:
                    task = group.create_task(one(side, image))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            await asyncio.sleep(PERIOD_S)
    if problems and not counts.asked[CANDIDATE]:
        raise problems[-1]
    return counts.result(check.key, context.clock(), done=True)


async def _images(check: Check, context: CheckContext) -> tuple[Sequence[ProbeImage], Mapping[str, Parameter]]:
    """Return the images with their expected answers; the built-in one if the golden set is missing."""
    try:
        images = await fetch_golden_images(check, context)
    except CheckError:
        return [(golden.builtin_image(), None)], {}
    chosen = images.images[:MAX_IMAGES]
    contents = await asyncio.gather(*(asyncio.to_thread(image.path.read_bytes) for image in chosen))
    return [(content, image.case) for content, image in zip(contents, chosen, strict=True)], images.parameters


async def _fails(
    check: Check, context: CheckContext, side: int, image: ProbeImage, parameters: Mapping[str, Parameter]
) -> bool:
    content, expected = image
    group, revision = check.sides[side]
    try:
        answer = await context.gateway.infer(check.model, group, revision, content, parameters, TIMEOUT_S)
        if expected is not None and side == CANDIDATE:
            await asyncio.to_thread(golden.compare, expected, answer)
    except (NotAnsweredError, GoldenError):
        return True
    return False
