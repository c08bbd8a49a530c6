"""Scores of golden sets as agents report them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from segserve_builder.agent.protocol import ScoreReport, pack_classes, pack_qualities


def score_report(
    sha256: str, qualities: Sequence[float], classes: Mapping[int, float] | None = None, **more: Any
) -> ScoreReport:
    """Return scores of a golden set: the quality of each image, NaN if it was not answered, and of each class.

    Each of two classes is as good as all images together, unless `classes` are given.
    """
    mean = sum(quality for quality in qualities if not math.isnan(quality)) / len(qualities)
    by_class = {0: mean, 1: mean} if classes is None else classes
    known: dict[str, Any] = {
        "images": len(qualities),
        "qualities": pack_qualities(qualities),
        "classes": pack_classes(by_class.items()),
        "iou": mean,
        "recall": mean,
    }
    return ScoreReport(golden_sha256=sha256, **(known | more))
