"""The best scores by level or class against a sort of all of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segserve_builder.kernels.top_scores import top_scores


def plain(
    scores: np.ndarray, channels: set[int], levels: list[int], by_class: bool, least: float, number: int
) -> list[int]:
    rows, columns = np.indices(scores.shape)
    level = np.repeat(np.arange(len(levels)), levels)[rows]
    kept: list[int] = []
    for group in range(scores.shape[1] if by_class else len(levels)):
        here = (columns == group if by_class else level == group) & np.isin(columns, list(channels))
        flat = np.flatnonzero(here & (scores > np.float32(least)))
        kept += flat[np.argsort(-scores.reshape(-1)[flat], kind="stable")][:number].tolist()
    return kept


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=4),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from([-np.inf, -0.5, 0.0, 0.5, np.inf]),
    st.sampled_from([1, 3, 20, 1000]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_indices_are_those_of_a_sort(
    levels: list[int], columns: int, by_class: bool, least: float, number: int, tied: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(sum(levels), columns)).astype(np.float32)
    if tied:
        scores = np.round(scores)
    channels = set(np.flatnonzero(rng.random(columns) < 0.8).tolist())

    found = top_scores(scores, channels, levels, by_class=by_class, least=least, number=number)

    assert found.tolist() == plain(scores, channels, levels, by_class, least, number)


def test_levels_must_be_all_anchors() -> None:
    with pytest.raises(ValueError, match=r"\[2, 1\] anchors do not add up to the 4"):
        top_scores(np.zeros((4, 2), np.float32), {0}, (2, 1), by_class=False, least=0, number=9)
