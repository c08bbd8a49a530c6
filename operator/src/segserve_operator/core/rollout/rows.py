"""Windows as a record stores them: fewer and longer the older they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Final

import numpy as np

from segserve_operator.core.evidence import EvidenceWindow, Floats
from segserve_operator.core.rollout.record import Row

AGES_S: Final = ((3600.0, 60.0), (120.0, 15.0))
"""(age, length) in seconds: rows older than the age are merged to that length."""
_FINEST_S: Final = AGES_S[-1][1]


def row_of(window: EvidenceWindow, at_s: float, weight: int) -> Row:
    """Return a window (no leading axes) as a row."""
    requests, errors = window.requests.astype(int).tolist(), window.errors.astype(int).tolist()
    stable, candidate = (_sparse(latencies) for latencies in window.latencies)
    return Row(at_s, float(window.seconds), weight, tuple(requests), tuple(errors), (stable, candidate))


def window_of(row: Row, bins: int) -> EvidenceWindow:
    """Return a row as a window with `bins` latency bins."""
    latencies = np.zeros((2, bins))
    for role, found in enumerate(row.latencies):
        for index, count in found:
            latencies[role, index] = count
    return EvidenceWindow(np.array(row.seconds), np.array(row.requests, float), np.array(row.errors, float), latencies)


def kept(rows: tuple[Row, ...], new: Row) -> tuple[Row, ...]:
    """Return the rows with a new one; older ones are merged when due.

    Rows are merged if they lie in the same span of the clock and have the same weight.
    """
    longer = (*rows, new)
    # Merging once per span instead of every second is cheaper.
    if rows and new.at_s // _FINEST_S == rows[-1].at_s // _FINEST_S:
        return longer
    due = any(_span_s(row, new.at_s) > row.seconds * 2 for row in longer)
    return tuple(_merged(longer, new.at_s)) if due else longer


def _merged(rows: Iterable[Row], now_s: float) -> Iterator[Row]:
    def place(row: Row) -> tuple[float, float, int]:
        span_s = _span_s(row, now_s)
        return span_s, row.at_s // span_s if span_s else row.at_s, row.weight

    for _, group in groupby(rows, place):
        yield _sum(tuple(group))


def _span_s(row: Row, now_s: float) -> float:
    return next((span_s for age_s, span_s in AGES_S if now_s - row.at_s > age_s), 0.0)


def _sum(rows: tuple[Row, ...]) -> Row:
    if len(rows) == 1:
        return rows[0]
    stable, candidate = (_added([row.latencies[role] for row in rows]) for role in (0, 1))
    return Row(
        at_s=rows[-1].at_s,
        seconds=sum(row.seconds for row in rows),
        weight=rows[-1].weight,
        requests=(sum(row.requests[0] for row in rows), sum(row.requests[1] for row in rows)),
        errors=(sum(row.errors[0] for row in rows), sum(row.errors[1] for row in rows)),
        latencies=(stable, candidate),
    )


def _added(found: Iterable[tuple[tuple[int, int], ...]]) -> tuple[tuple[int, int], ...]:
    total: dict[int, int] = {}
    for bins in found:
        for index, count in bins:
            total[index] = total.get(index, 0) + count
    return tuple(sorted(total.items()))


def _sparse(latencies: Floats) -> tuple[tuple[int, int], ...]:
    return tuple((int(index), int(latencies[index])) for index in np.flatnonzero(latencies))
