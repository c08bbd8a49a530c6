"""Replays the golden images to both groups, and scores what they answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from segserve_builder.errors import GoldenError
from segserve_builder.steps.public_outputs import Task
from segserve_operator.adapters.checks.context import CheckContext, RequestCounts, ReportResult
from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.checks.gateway import NotAnsweredError
from segserve_operator.adapters.checks.golden_images import GoldenImage, GoldenImages, fetched, nothing_of, regions_of
from segserve_operator.core.evidence import CANDIDATE, STABLE
from segserve_operator.core.gates.checks import Check, CheckResult, Scores
from segserve_operator.core.quality import Quality, Regions, score_objects, score_semantic

AT_ONCE: Final = 1
"""Images that are asked at once: stable has callers, who should not notice."""

TIMEOUT_S: Final = 30.0
PAUSES_S: Final = (0.5, 2.0)
"""Before the second try and the third: a single failure says nothing of masks."""


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """RunCheck every golden image of both groups, and score the answers.

    An image that the candidate's servers refuse three times, or answer with what cannot be read, shows nothing. One
    that stable fails is left out of the comparison. A candidate that is only silent or unavailable was not asked.
    """
    images = await fetched(check, context)
    counts, turns = RequestCounts(), asyncio.Semaphore(AT_ONCE)

    async def both(image: GoldenImage) -> tuple[Regions | None, Regions | None]:
        async with turns:
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
    """Return what one revision answers; None where it fails, raises `CheckError` where it could not be asked."""
    group, revision = check.sides[side]
    for pause_s in (*PAUSES_S, None):
        try:
            answer = await context.gateway.infer(check.model, group, revision, content, images.parameters, TIMEOUT_S)
            found = regions_of(image, answer, images.task)
        except (NotAnsweredError, GoldenError) as error:
            counts.add(side, failed=True)
            if pause_s is not None:
                await asyncio.sleep(pause_s)
            elif side == CANDIDATE and getattr(error, "passing", False):
                raise CheckError(f"{image.case.image}: the candidate does not answer: {error}") from error
        else:
            counts.add(side, failed=False)
            return found
    return None


def _scores(images: GoldenImages, answers: Sequence[tuple[Regions | None, Regions | None]]) -> Scores:
    """Score both on the images that stable answered; the candidate alone on all of them where it answered none."""
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
        means=_together(candidate.means, stable.means),
        labelled=all(image.labelled for image in shown),
    )


def _quality(task: Task, images: Sequence[GoldenImage], answers: Sequence[Regions | None]) -> Quality:
    score = score_semantic if task == "semantic" else score_objects
    seen = [
        nothing_of(image, task) if answer is None else answer for image, answer in zip(images, answers, strict=True)
    ]
    return score([image.labels for image in images], seen)


def _together(candidate: Mapping[str, float], stable: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    return {name: (value, stable.get(name, np.nan)) for name, value in candidate.items()}
