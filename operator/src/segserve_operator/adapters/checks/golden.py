"""Golden check: replays the golden images to both groups, and scores the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import numpy as np
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_attempt, wait_chain, wait_fixed

from segserve_builder.errors import GoldenError
from segserve_builder.scoring.quality import Quality, Regions, score_objects, score_semantic
from segserve_builder.steps.public_outputs import Task
from segserve_operator.adapters.checks.context import CheckContext, ReportResult, RequestCounts
from segserve_operator.adapters.checks.gateway import NotAnsweredError
from segserve_operator.adapters.checks.golden_images import (
    GoldenImage,
    GoldenImages,
    empty_regions,
    fetch_golden_images,
    regions_of,
)
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult, Scores

CONCURRENT_IMAGES: Final = 1
"""Images in flight at once: the callers of stable should not notice the replay."""

TIMEOUT_S: Final = 30.0
DELAYS_S: Final = (0.5, 2.0)
"""Delays before the second attempt and the third: a single failure says nothing about masks."""


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Send every golden image to both groups, and score the answers.

    An image that the candidate's servers refuse three times, or answer unreadably, counts as an answer without regions.
    One that stable fails is left out of the comparison. If the candidate is only unavailable, there is no result.
    """
    images = await fetch_golden_images(check, context)
    counts, slots = RequestCounts(), asyncio.Semaphore(CONCURRENT_IMAGES)

    async def both(image: GoldenImage) -> tuple[Regions | None, Regions | None]:
        async with slots:
            content = await asyncio.to_thread(image.path.read_bytes)
            answers = await asyncio.gather(
                _answer(check, context, images, image, content, STABLE, counts),
                _answer(check, context, images, image, content, CANDIDATE, counts),
            )
        report(counts.result(check.key, context.clock(), done=False))
        return answers[STABLE], answers[CANDIDATE]

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(both(image)) for image in images.images]
    answers = [task.result() for task in tasks]
    scores = await asyncio.to_thread(_scores, images, answers)
    asked, failed = (counts.asked[0], counts.asked[1]), (counts.failed[0], counts.failed[1])
    return CheckResult(check.key, context.clock(), asked=asked, failed=failed, scores=scores)


async def _answer(
    check: Check,
    context: CheckContext,
    images: GoldenImages,
    image: GoldenImage,
    content: bytes,
    side: int,
    counts: RequestCounts,
) -> Regions | None:
    """Return the answer of one revision, None if it fails; raises `CheckError` if it is unavailable."""
    group, revision = check.sides[side]

    async def infer() -> Regions:
        try:
            answer = await context.gateway.infer(check.model, group, revision, content, images.parameters, TIMEOUT_S)
            regions = regions_of(image, answer, images.task)
        except (NotAnsweredError, GoldenError):
            counts.add(side, failed=True)
            raise
        counts.add(side, failed=False)
        return regions

    attempts = AsyncRetrying(
        retry=retry_if_exception_type((NotAnsweredError, GoldenError)),
        wait=wait_chain(*map(wait_fixed, DELAYS_S)),
        stop=stop_after_attempt(len(DELAYS_S) + 1),
        reraise=True,
    )
    try:
        return await attempts(infer)
    except (NotAnsweredError, GoldenError) as error:
        if side == CANDIDATE and getattr(error, "is_transient", False):
            raise CheckError(f"{image.case.image}: the candidate does not answer: {error}") from error
        return None


def _scores(images: GoldenImages, answers: Sequence[tuple[Regions | None, Regions | None]]) -> Scores:
    """Score both on the images that stable answered; if it answered none, score the candidate alone on all images."""
    pairs = list(zip(images.images, answers, strict=True))
    compared = [pair for pair in pairs if pair[1][STABLE] is not None]
    used = compared or pairs
    shown = [image for image, _ in used]
    candidate = _quality(images.task, shown, [answer[CANDIDATE] for _, answer in used])
    stable = _quality(images.task, shown, [answer[STABLE] for _, answer in used]) if compared else Quality(())
    return Scores(
        paired=tuple(zip(candidate.images, stable.images, strict=True)) if compared else (),
        classes={
            images.names.get(number, str(number)): (value, stable.classes.get(number, np.nan))
            for number, value in candidate.classes.items()
        },
        means={name: (value, stable.means.get(name, np.nan)) for name, value in candidate.means.items()},
        labelled=all(image.labelled for image in shown),
    )


def _quality(task: Task, images: Sequence[GoldenImage], answers: Sequence[Regions | None]) -> Quality:
    score = score_semantic if task == "semantic" else score_objects
    regions = [
        empty_regions(image, task) if answer is None else answer for image, answer in zip(images, answers, strict=True)
    ]
    return score([image.labels for image in images], regions)
