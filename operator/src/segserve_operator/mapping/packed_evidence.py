"""The packed parts of a record: rows of evidence, the engine's state, inputs of decisions. Numbers are exact."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from segserve_common.kube.shards import pack, unpack
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.counters import (
    Counters,
    HungRequests,
    PairCounts,
    Series,
    SeriesCounts,
)
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.plain import from_plain, to_plain
from segserve_operator.core.rollout.record import PairRow, Row

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
    from segserve_operator.core.rollout.record import Bins, Decision, Record

CHUNK_ROWS: Final = 500
ROWS_BYTES: Final = 384 * 1024
"""No packed rows are larger: a ConfigMap has 1 MiB, and an object of a rollout has more than rows."""
_BATCH_ROWS: Final = 50


class UnreadableRecordError(Exception):
    """Raised for a record that segserve did not write."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"SegmentationRollout {name!r} cannot be read: {why}")


def chunked_rows(count: int) -> int:
    """Return how many of the oldest of `count` rows are stored separately: all but the newest 500 to 549."""
    return max(count - CHUNK_ROWS, 0) // _BATCH_ROWS * _BATCH_ROWS


def chunks(rows: tuple[Row, ...]) -> tuple[tuple[Row, ...], ...]:
    """Return the rows that are stored separately, 500 per chunk; only the last chunk changes."""
    apart = chunked_rows(len(rows))
    return tuple(rows[first : min(first + CHUNK_ROWS, apart)] for first in range(0, apart, CHUNK_ROWS))


def pack_rows(rows: Iterable[Row]) -> str:
    """Return rows as packed text."""
    return pack(
        [
            [
                *(row.at_s, row.seconds, row.weight, *row.requests, *row.errors),
                *(_gaps(bins) for bins in row.latencies),
                *_pair_values(row.pairs),
            ]
            for row in rows
        ]
    )


def pack_rows_within(rows: tuple[Row, ...], most: int) -> str:
    """Pack rows; if the text is too large, drop bins and pairs of the older ones."""
    text = pack_rows(rows)
    light = 0
    while len(text) > most and light < len(rows):
        light += max((len(rows) - light) // 2, 1)
        rows = (*map(_bare, rows[:light]), *rows[light:])
        text = pack_rows(rows)
    return text


def _bare(row: Row) -> Row:
    return replace(row, latencies=((), ()), pairs=None)


def _pair_values(pairs: PairRow | None) -> list[Any]:
    """Return a row's pairs as one more value; rows outside of Shadow stay as they were."""
    if pairs is None:
        return []
    bins = (*pairs.latencies, pairs.ratios, pairs.disagreements, pairs.baseline, pairs.shifts)
    return [[*pairs.failed, *map(_gaps, bins)]]


def unpack_rows(text: str) -> tuple[Row, ...]:
    """Return the rows that `pack_rows` packed; raises ValueError for any other text."""
    try:
        return tuple(_row(*values) for values in unpack(text))
    except (TypeError, ValueError) as error:
        raise ValueError(f"not rows of evidence: {error}") from error


def pack_state(record: Record) -> str:
    """Return the engine's state as packed text."""
    return pack(
        {
            "progress": to_plain(record.progress),
            "gates": {name: to_plain(state) for name, state in record.gates.items()},
            "hung": to_plain(record.hung),
            "seen": {gateway: _count_value(count) for gateway, count in record.seen.items()},
            "verdicts": _verdict_values(record.verdicts),
        }
    )


def unpack_state(text: str, policy: RolloutPolicy, slo: Slo) -> dict[str, Any]:
    """Return the fields of the record that `pack_state` packed; raises ValueError for any other text.

    States of gates that the policy does not declare are dropped.
    """
    try:
        state = unpack(text)
        gates = {name: gate for name, gate in measured_gates(policy, slo).items() if name in state["gates"]}
        return {
            "progress": from_plain(Progress.begun(0.0), state["progress"]),
            "gates": {name: from_plain(gate.start(), state["gates"][name]) for name, gate in gates.items()},
            "hung": None if state["hung"] is None else from_plain(HungRequests(), state["hung"]),
            "seen": {gateway: _count(value) for gateway, value in state["seen"].items()},
            "verdicts": _verdicts(state["verdicts"]),
        }
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a rollout's state: {error!r}") from error


def pack_inputs(decision: Decision) -> str:
    """Return inputs, result and verdicts of a decision as packed text."""
    return pack({"saw": decision.inputs, "made": decision.result, "verdicts": _verdict_values(decision.verdicts)})


def unpack_inputs(text: str) -> dict[str, Any]:
    """Return the fields of the decision that `pack_inputs` packed; raises ValueError for any other text."""
    try:
        packed = unpack(text)
        return {"inputs": packed["saw"], "result": packed["made"], "verdicts": _verdicts(packed["verdicts"])}
    except (TypeError, KeyError) as error:
        raise ValueError(f"not the inputs of a decision: {error!r}") from error


def _gaps(bins: Bins) -> list[int]:
    """Return (bin, count) pairs as a list of distances between bins and counts, since most distances are 1."""
    packed, last = [], 0
    for index, count in bins:
        packed += [index - last, count]
        last = index
    return packed


def _bins(gaps: Sequence[int]) -> Bins:
    bins, last = [], 0
    for gap, count in zip(gaps[::2], gaps[1::2], strict=True):
        last += gap
        bins.append((last, count))
    return tuple(bins)


def _row(at_s: float, seconds: float, weight: int, *rest: Any) -> Row:
    stable, candidate, stable_failed, candidate_failed, stable_bins, candidate_bins, *pairs = rest
    return Row(
        at_s,
        seconds,
        weight,
        (stable, candidate),
        (stable_failed, candidate_failed),
        (_bins(stable_bins), _bins(candidate_bins)),
        _pair_row(*pairs[0]) if pairs else None,
    )


def _pair_row(neither: int, candidate: int, stable: int, both: int, *rest: Any) -> PairRow:
    stable_bins, candidate_bins, ratios, disagreements, baseline, shifts = map(_bins, rest)
    return PairRow(
        (neither, candidate, stable, both),
        (stable_bins, candidate_bins),
        ratios,
        disagreements,
        baseline,
        shifts,
    )


def _count_value(count: Counters) -> list[Any]:
    by_series = [
        [
            *(series.group, series.protocol, tally.attempts, tally.failed, tally.given_up),
            *(tally.active, tally.latencies, tally.left, tally.waited_ms),
        ]
        for series, tally in count.by_series.items()
    ]
    pairs = [to_plain(count.pairs)] if count.pairs is not None else []
    return [count.epoch, count.at_s, count.began_s, by_series, *pairs]


def _count(value: Sequence[Any]) -> Counters:
    epoch, at_s, began_s, by_series, *pairs = value
    tallies = {}
    for group, protocol, attempts, failed, given_up, active, latencies, left, waited_ms in by_series:
        bins = tuple((edge_ms, count) for edge_ms, count in latencies)
        tally = SeriesCounts(attempts, failed, given_up, active, bins, left, waited_ms)
        tallies[Series(group, protocol)] = tally
    return Counters(epoch, at_s, tallies, began_s, from_plain(PairCounts("", "", ""), pairs[0]) if pairs else None)


def _verdict_values(verdicts: Iterable[Verdict]) -> list[Any]:
    # The numbers apart: `from_plain` leaves a mapping as it is, so infinities would stay strings.
    return [
        {
            **to_plain(replace(verdict, numbers={})),
            "numbers": {name: to_plain(float(number)) for name, number in verdict.numbers.items()},
        }
        for verdict in verdicts
    ]


def _verdicts(values: Iterable[Mapping[str, Any]]) -> tuple[Verdict, ...]:
    like = Verdict("", Outcome.UNDECIDED, "", "")
    return tuple(
        replace(
            from_plain(like, {**value, "numbers": {}}),
            numbers={name: from_plain(0.0, number) for name, number in value["numbers"].items()},
        )
        for value in values
    )
