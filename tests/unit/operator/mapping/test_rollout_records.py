"""Objects of rollout records at their limits; ordinary ones are covered by the contract tests of stores."""

from __future__ import annotations

from dataclasses import MISSING, fields, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from fakes.rollout_evidence import STARTED_S, decision, record, row, same, state_of_record
from segserve_common.canonical import canonical_json
from segserve_operator.api.segmentation_rollout import MAX_DECISIONS, MESSAGE_MAX_LENGTH
from segserve_operator.core.evidence import EDGES_MS
from segserve_operator.core.rollout import decisions as core_decisions
from segserve_operator.core.rollout.plain import canonical
from segserve_operator.core.rollout.record import Decision, PairRow, Record, Row
from segserve_operator.mapping.packed_evidence import (
    CHUNK_ROWS,
    ROWS_BYTES,
    UnreadableRecordError,
    chunked_rows,
    chunks,
    pack_rows,
    pack_rows_within,
    unpack_rows,
)
from segserve_operator.mapping.rollouts import OBJECT_BYTES, manifest_of, record_of, status_of

NOW = datetime(2026, 9, 1, tzinfo=UTC)


def to_object(original: Record) -> dict[str, Any]:
    return {**manifest_of(original), "status": status_of(original, NOW)}


def dense(number: int, most: int) -> Row:
    """Return a row without empty bins."""
    numbers = np.random.default_rng(number)
    stable, candidate = (
        tuple((index, int(count)) for index, count in enumerate(numbers.integers(1, most, len(EDGES_MS) + 1)))
        for _ in range(2)
    )
    return Row(STARTED_S + number, 1.0, 25, (most, most), (1, 1), (stable, candidate))


def wordy(sequence: int) -> Decision:
    inputs = canonical({"x": np.random.default_rng(sequence).random(400).tolist()})
    return replace(decision(sequence), inputs=inputs, message="x" * 5000)


@pytest.mark.parametrize("most", [1000, 10**9])
def test_no_record_is_larger_than_its_limit(most: int) -> None:
    rows = tuple(dense(number, most) for number in range(CHUNK_ROWS + 49))
    full = replace(record(), rows=rows, decisions=tuple(map(wordy, range(1, 301))))

    restored = record_of(to_object(full), ())

    assert len(canonical_json(to_object(full))) <= OBJECT_BYTES
    assert [(each.at_s, each.requests) for each in restored.rows] == [(each.at_s, each.requests) for each in rows]
    assert same(restored.rows[-10:], rows[-10:])
    newest = restored.decisions[-1]
    assert (newest.sequence, newest.inputs) == (300, full.decisions[-1].inputs)
    assert same(restored.progress, full.progress)


def test_inputs_of_the_oldest_decisions_are_dropped_first() -> None:
    full = replace(record(), decisions=tuple(replace(wordy(n), message="") for n in range(1, 301)))

    restored = record_of(to_object(full), ())

    has_inputs = [each.inputs != "" for each in restored.decisions]
    assert len(has_inputs) == MAX_DECISIONS == core_decisions.MAX_DECISIONS
    assert has_inputs == sorted(has_inputs)
    assert 0 < sum(has_inputs) < MAX_DECISIONS


def test_a_long_message_is_truncated_with_an_ellipsis() -> None:
    restored = record_of(to_object(replace(record(), decisions=(wordy(1),))), ())

    assert len(restored.decisions[0].message) == MESSAGE_MAX_LENGTH
    assert restored.decisions[0].message.endswith("...")


@pytest.mark.parametrize("count", [0, 1, 499, 549, 550, 600, 1049, 1050, 2345])
def test_the_newest_rows_are_in_the_object_and_all_others_in_chunks(count: int) -> None:
    rows = tuple(map(row, range(count)))
    row_chunks = chunks(rows)

    assert sum(map(len, row_chunks)) == chunked_rows(count)
    assert tuple(each for chunk in row_chunks for each in chunk) == rows[: chunked_rows(count)]
    assert all(len(chunk) == CHUNK_ROWS for chunk in row_chunks[:-1])
    assert count - chunked_rows(count) < CHUNK_ROWS + 50
    assert chunked_rows(count) == 0 or count - chunked_rows(count) >= CHUNK_ROWS


def test_rows_are_packed_without_loss_into_little_space() -> None:
    rows = tuple(map(row, range(500)))

    assert same(unpack_rows(pack_rows(rows)), rows)
    assert len(pack_rows(rows)) < 60_000


def test_of_rows_that_are_too_large_together_pairs_and_bins_of_the_older_ones_go() -> None:
    rows = tuple(replace(dense(number, 1000), pairs=PairRow((9, 0, 0, 0))) for number in range(40))
    most = len(pack_rows(rows)) // 2
    found = unpack_rows(pack_rows_within(rows, most))
    kept = [each.pairs is not None for each in found]

    assert same(unpack_rows(pack_rows_within(rows, ROWS_BYTES)), rows)
    assert len(pack_rows_within(rows, most)) <= most
    assert (kept, any(kept), all(kept)) == (sorted(kept), True, False)
    assert [each.requests for each in found] == [each.requests for each in rows]


@pytest.mark.parametrize("text", ["", "AAAA", pack_rows(())[:-8], "H4sIAAAAAAAC/4s1BAD4sS5cAwAAAA=="])
def test_text_that_is_not_evidence_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not"):
        unpack_rows(text)


def test_the_error_of_an_unreadable_record_names_it() -> None:
    with pytest.raises(UnreadableRecordError, match="SegmentationRollout 'coins-2-1' cannot be read: it has no state"):
        record_of(manifest_of(record()), ())


@pytest.mark.parametrize(
    "sample",
    [record(), decision(1), row(7), state_of_record(record(), paused=True, quarantines=1)],
    ids=lambda s: type(s).__name__,
)
def test_the_records_of_these_tests_leave_no_field_at_its_default(sample: Any) -> None:
    """Otherwise a field that is lost on the way would not be noticed."""
    for each in fields(sample):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        assert default is MISSING or not same(getattr(sample, each.name), default), each.name


def test_states_of_unknown_gates_are_dropped() -> None:
    full = record()
    restored = record_of(to_object(replace(full, gates={**full.gates, "vibes": next(iter(full.gates.values()))})), ())

    assert same(restored.gates, full.gates)
