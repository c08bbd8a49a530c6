"""The order in which samples are worth labelling. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from segserve_builder.capture.store import ManifestRow

RankedBy: TypeAlias = Literal["uncertainty", "disagreement", "diversity", "newest"]


def ranked(rows: Sequence[ManifestRow], by: RankedBy, most: int | None = None) -> list[ManifestRow]:
    """Return samples, those worth most first, and at most so many.

    diversity is greedy k-centre over the embeddings (Gonzalez 1985; Sener and Savarese, Active Learning for
    Convolutional Neural Networks: A Core-Set Approach, 2018): each next one is as far as possible from all before, and
    the most uncertain is the first.
    """
    newest = sorted(rows, key=lambda row: -row.captured_at_s)
    match by:
        case "newest":
            return newest[:most]
        case "uncertainty":
            return sorted(newest, key=lambda row: -(row.uncertainty or 0.0))[:most]
        case "disagreement":
            return sorted(newest, key=lambda row: -(row.disagreement or 0.0))[:most]
        case "diversity":
            return _diverse(sorted(newest, key=lambda row: -(row.uncertainty or 0.0)), most)


def _diverse(rows: list[ManifestRow], most: int | None) -> list[ManifestRow]:
    length = max((len(row.embedding) for row in rows), default=0)
    points = np.array([row.embedding if len(row.embedding) == length else (0.0,) * length for row in rows])
    distances, chosen = np.full(len(rows), np.inf), list[int]()
    for _ in rows[:most]:
        chosen.append(int(np.argmax(distances)) if chosen else 0)
        nearer = np.linalg.norm(points - points[chosen[-1]], axis=1)
        distances = np.minimum(distances, nearer)
        distances[chosen] = -1.0
    return [rows[index] for index in chosen]
