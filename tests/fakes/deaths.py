"""Moments at which a process dies, by the writes that it makes: a sample, and a sweep for `make test-thorough`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pytest

SWEEP = pytest.mark.parametrize(
    "every",
    [
        pytest.param(False, id="a sample"),
        pytest.param(True, id="every write", marks=[pytest.mark.thorough, pytest.mark.timeout(1800)]),
    ],
)
"""A test that is given `every` runs twice: for a sample, and thoroughly."""


def deaths(kinds: Sequence[Hashable], *, every: bool) -> list[tuple[int, bool]]:
    """Return the numbers of writes, from 1, and whether the process dies after them rather than before.

    `kinds` tells writes apart. The sample dies before the first of each kind, and after the last.
    """
    numbered = list(enumerate(kinds, 1))
    if every:
        return [(number, after) for number, _ in numbered for after in (False, True)]
    first = {kind: number for number, kind in reversed(numbered)}
    last = {kind: number for number, kind in numbered}
    return sorted([*((number, False) for number in first.values()), *((number, True) for number in last.values())])
