"""Replay of a golden set to one server, and the scores of its answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np

from segserve_builder.errors import GoldenError
from segserve_builder.golden.judging import Answer
from segserve_builder.scoring.quality import Quality, Regions, score_samples
from segserve_builder.scoring.regions import GoldenImages, empty_regions, regions_of

PAUSES_S: Final = (0.0, 0.5, 2.0)
"""Pauses before the attempts at an image; then it counts as not answered. A single failure says nothing about masks."""

Infer: TypeAlias = "Callable[[bytes, Mapping[str, Any]], Answer | None]"
"""Sends an encoded image with parameters, and returns the answer, None if the server refuses the request."""


@dataclass(frozen=True, slots=True)
class GoldenScores:
    """Quality of one revision's answers to a golden set.

    `images` [image] is NaN where the revision gave no readable answer; such an image counts as answered without regions
    in `quality`. `labelled` is False if an image has no labels, so that its expected answer stands in for them.
    `slices` [image] says where it comes from, "" if the set does not. `at_limit` is the number of answers that
    reached the model's limit of objects.
    """

    quality: Quality
    images: tuple[float, ...]
    labelled: bool
    slices: tuple[str, ...] = ()
    at_limit: int = 0

    @property
    def lacks_answers(self) -> bool:
        """Whether there is an image without a readable answer."""
        return bool(np.isnan(self.images).any())


def replay(images: GoldenImages, infer: Infer, wait: Callable[[float], object]) -> GoldenScores:
    """Send all images, one after the other, and score the answers; errors of `infer` propagate.

    `wait` is called with seconds before the images without an answer are sent again.
    """
    answers: dict[int, Regions] = {}
    for pause_s in PAUSES_S:
        missing = [(index, image) for index, image in enumerate(images.images) if index not in answers]
        if missing and pause_s:
            wait(pause_s)
        for index, image in missing:
            answer = infer(image.path.read_bytes(), {**images.parameters, **image.case.parameters()})
            if answer is not None:
                with suppress(GoldenError):
                    answers[index] = regions_of(image.case.image, image.labels.size, answer, images.task)
    shown = [answers.get(index) or empty_regions(image, images.task) for index, image in enumerate(images.images)]
    (quality,) = score_samples(
        "semantic" if images.task == "semantic" else "objects",
        [image.labels for image in images.images],
        shown,
        [range(len(shown))],
        most=None,
        outlines=True,
    )
    return GoldenScores(
        quality=quality,
        images=tuple(value if index in answers else np.nan for index, value in enumerate(quality.images)),
        labelled=all(image.labelled for image in images.images),
        slices=tuple(image.case.slice or "" for image in images.images),
        at_limit=sum(len(answer.classes) >= images.limit for answer in answers.values()) if images.limit else 0,
    )
