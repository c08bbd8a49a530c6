"""Rows of evidence: bounded, coarser the older they are, and nothing of the counts is lost."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.core.evidence import EvidenceWindow, Pairs
from segserve_operator.core.rollout.plain import canonical
from segserve_operator.core.rollout.record import Row, kept, row_of, window_of
from segserve_operator.mapping.packed_evidence import pack_rows, unpack_rows


def window(requests: tuple[int, int] = (9, 1), errors: tuple[int, int] = (1, 0)) -> EvidenceWindow:
    latencies = np.zeros((2, 6))
    latencies[0, 3], latencies[1, 5] = requests
    return EvidenceWindow(np.array(1.0), np.array(requests, float), np.array(errors, float), latencies)


def day(seconds: int, weight: int = 5) -> tuple[Row, ...]:
    rows: tuple[Row, ...] = ()
    for second in range(seconds):
        rows = kept(rows, row_of(window(), 1_000_000.0 + second, weight))
    return rows


def test_a_look_is_the_same_read_back_from_its_row() -> None:
    again = window_of(row_of(window(), 5.0, 25), 6)

    for name in EvidenceWindow.__dataclass_fields__:
        assert np.array_equal(getattr(again, name), getattr(window(), name))


def pairs(seconds: float = 1.0) -> EvidenceWindow:
    """Return what copies showed while callers had as many requests as in `window`."""
    compared = Pairs(np.array([[5.0, 2.0], [1.0, 0.0]]), np.arange(13.0), np.arange(14.0), np.array(10.0))
    latencies = np.zeros((2, 6))
    latencies[0, 1], latencies[1, 2] = 7, 6
    return EvidenceWindow(np.array(seconds), np.full(2, 8.0), np.array([1.0, 2.0]), latencies, compared)


def test_a_row_of_shadow_has_callers_requests_and_reads_back_as_the_pairs_that_its_gates_saw() -> None:
    row = row_of(window(), 5.0, 0, pairs())
    again = window_of(row, 6)

    assert row.requests == (9, 1)
    assert row.latencies == row_of(window(), 5.0, 0).latencies
    assert canonical(again) == canonical(pairs())


def test_a_row_keeps_its_pairs_also_when_it_is_packed() -> None:
    row = row_of(window(), 5.0, 0, pairs())
    (read,) = unpack_rows(pack_rows([row]))

    assert read == row


def test_rows_with_pairs_are_merged_among_themselves_and_no_pair_is_lost() -> None:
    rows: tuple[Row, ...] = ()
    for second in range(600):
        rows = kept(rows, row_of(window(), 1_000_000.0 + second, 0, pairs() if second >= 300 else None))

    asked = [row for row in rows if row.pairs is not None]
    assert len(rows) < 200
    assert sum(row.requests[0] for row in rows) == 600 * 9
    assert sum(row.requests[0] for row in asked) == 300 * 9
    assert np.sum([row.pairs.failed for row in asked if row.pairs], 0).tolist() == [1500, 600, 300, 0]
    assert sum(count for row in asked if row.pairs for _, count in row.pairs.ratios) == 300 * sum(range(13))


def test_two_hours_are_kept_in_few_rows_and_every_request_is_counted() -> None:
    rows = day(7200)

    assert len(rows) < 150 + 250 + 70
    assert sum(row.requests[0] for row in rows) == 7200 * 9
    assert sum(row.seconds for row in rows) == 7200
    assert sum(count for row in rows for _, count in row.latencies[1]) == 7200
    assert {row.seconds for row in rows[1:50]} == {60}
    assert rows[-1].seconds == 1


def test_rows_at_different_weights_are_not_merged() -> None:
    rows = day(60)
    for second in range(60, 400):
        rows = kept(rows, row_of(window(), 1_000_000.0 + second, 25))

    assert {row.weight for row in rows} == {5, 25}
    assert sum(row.seconds for row in rows if row.weight == 5) == 60


@given(st.lists(st.integers(1, 90), min_size=1, max_size=80))
def test_gaps_of_any_length_lose_nothing(gaps: list[int]) -> None:
    rows, now_s = (), 1_000_000.0
    for gap in gaps:
        now_s += gap
        rows = kept(rows, row_of(window(), now_s, 5))

    assert sum(row.requests[1] for row in rows) == len(gaps)
    assert [row.at_s for row in rows] == sorted(row.at_s for row in rows)
