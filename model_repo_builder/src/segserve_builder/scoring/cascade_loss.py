"""Losses of a cascade's answers to golden images against the answers of its heavy network alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from segserve_builder.scoring.quality import Regions, score_objects, score_semantic
from segserve_builder.scoring.regions import regions_of

if TYPE_CHECKING:
    from segserve_builder.golden.judging import Answer
    from segserve_builder.scoring.regions import GoldenImages


def cascade_losses(
    images: GoldenImages, heavy: Callable[[bytes], Answer], other: Callable[[bytes], Answer]
) -> list[float]:
    """Return by how much each image's other answer is worse than the heavy one, 0 to 1, in the order of `images`.

    An image's quality is its mean IoU, or for objects the panoptic quality. An image without labels is compared with
    the heavy answer itself: by what the two differ, they may differ from any labels. Masks must be encoded as rle.
    Raises `GoldenError` for an answer that cannot be read; errors of the two functions propagate.
    """
    labels: list[Regions] = []
    answers: tuple[list[Regions], list[Regions]] = ([], [])
    for image in images.images:
        content = image.path.read_bytes()
        name, size = image.case.image, image.labels.size
        best, found = (regions_of(name, size, ask(content), images.task) for ask in (heavy, other))
        labels.append(image.labels if image.labelled else best)
        answers[0].append(best)
        answers[1].append(found)
    of_heavy, of_other = (_qualities(images, labels, each) for each in answers)
    return [max(best - found, 0.0) for best, found in zip(of_heavy, of_other, strict=True)]


def _qualities(images: GoldenImages, labels: Sequence[Regions], answers: Sequence[Regions]) -> tuple[float, ...]:
    score = score_semantic if images.task == "semantic" else score_objects
    return score(labels, answers).images
