"""The best of many scores, by feature level or by class, in one pass and without a copy of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numba import njit, types
from numpy.typing import NDArray

from segserve_builder.kernels.compiled import OPTIONS, packed, source, target
from segserve_builder.kernels.nms import rising_key


@njit(**OPTIONS)
def _shrink(pairs: Any, used: Any, number: Any) -> Any:
    """Sort the pairs in use; return how many of the best there are, `number` at most."""
    pairs[:used].sort()
    return min(used, number)


@njit(**OPTIONS)
def _any_above(row: Any, least: Any) -> Any:
    """Return whether one of the scores is above `least`: counted, which goes in vectors, since most rows have none."""
    number = np.int32(0)
    for c in range(row.shape[0]):
        number += row[c] > least
    return number > 0


@njit(
    target(types.int64, 1)(
        source(types.float32, 2),
        source(types.boolean, 1),
        source(types.int64, 1),
        types.boolean,
        types.float32,
        types.int64,
    ),
    **OPTIONS,
)
def _top(scores: Any, allowed: Any, ends: Any, by_class: Any, least: Any, number: Any) -> Any:
    rows, columns = scores.shape
    bits = scores.view(np.int32)
    groups = columns if by_class else ends.shape[0]
    room = min(2 * number, rows if by_class else rows * columns)
    pairs, used = np.empty((groups, room), np.int64), np.zeros(groups, np.int64)
    low = np.full(groups, least, np.float32)
    level = 0
    for a in range(rows):
        while ends[level] <= a:
            level += 1
        if not _any_above(scores[a], least if by_class else low[level]):
            continue
        for c in range(columns):
            g = c if by_class else level
            if scores[a, c] > low[g] and allowed[c]:
                if (
                    used[g] == room
                ):  # half of them are the best so far, and nothing up to the worst of these can come in
                    used[g] = _shrink(pairs[g], room, number)
                    worst = pairs[g, number - 1] & 0xFFFFFFFF
                    low[g] = scores[worst // columns, worst % columns]
                if scores[a, c] > low[g]:
                    pairs[g, used[g]] = rising_key(bits[a, c]) << 32 | (a * columns + c)
                    used[g] += 1
    found = np.empty(rows * columns if rows * columns < groups * number else groups * number, np.int64)
    n = 0
    for g in range(groups):
        for k in range(_shrink(pairs[g], used[g], number)):
            found[n] = pairs[g, k] & 0xFFFFFFFF
            n += 1
    return found[:n]


def top_scores(
    scores: NDArray[np.float32],
    channels: Iterable[int],
    levels: Sequence[int],
    *,
    by_class: bool,
    least: float,
    number: int,
) -> NDArray[np.int64]:
    """Return the flat indices, int64, of the `number` best of `scores`, float32 (A, C), in each group above `least`.

    Groups are the classes, or the levels: consecutive rows, `levels` of them each. They come in order, each best first,
    and of equal scores the first one first. Only the columns `channels` count. Scores have no NaN. Raises `ValueError`
    if the levels do not add up to the rows.
    """
    scores = packed(scores, np.float32, 2)
    rows, columns = scores.shape
    if sum(levels) != rows or min(levels, default=0) < 0:
        raise ValueError(f"levels of {list(levels)} anchors do not add up to the {rows} that there are")
    if rows * columns >= 2**32:
        raise ValueError(f"there are {rows} x {columns} scores; fewer than 2**32 are allowed")
    if not rows * columns:
        return np.empty(0, np.int64)
    allowed = np.zeros(columns, np.bool_)
    allowed[list(channels)] = True
    found: NDArray[np.int64] = _top(scores, allowed, np.cumsum(levels), by_class, least, number)
    return found
