"""What comparators have counted between two samples: resets, epochs, gateways that come and go, and other groups."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segserve_operator.core.evidence import EDGES_MS, RATIOS, EvidenceWindow
from segserve_operator.core.rollout.counters import Counters, PairCounts, Sample
from segserve_operator.core.rollout.pairs import pairs_between

T = 1_000_000.0
NONE = PairCounts("1", "main", "coins-new")
CALLERS = replace(EvidenceWindow.nothing(), seconds=np.array(2.0), requests=np.array([90.0, 0.0]))


def count(at_s: float, pairs: PairCounts | None, *, epoch: str = "1", began_s: float = 0.0) -> Counters:
    return Counters(epoch, T + at_s, {}, T + began_s, pairs)


def asked(*failed: int, epoch: str = "1", candidate: str = "coins-new") -> PairCounts:
    neither, candidate_alone, stable_alone, both = failed
    return PairCounts(epoch, "main", candidate, (neither, candidate_alone, stable_alone, both))


def window(before: Sample, after: Sample) -> EvidenceWindow:
    return pairs_between(before, after, "main", "coins-new", CALLERS)


def failed(before: Sample, after: Sample) -> list[float]:
    pairs = window(before, after).pairs
    return pairs.failed.reshape(4).tolist()


def test_a_window_of_pairs_has_the_requests_of_both_revisions_and_no_callers() -> None:
    then = PairCounts("1", "main", "coins-new", (10, 0, 0, 0), (((100.0, 10),), ((110.0, 10),)), (0,) * 13, (0,) * 10)
    bins = ((100.0, 15), (250.0, 2)), ((110.0, 16),)
    now = replace(
        then, failed=(15, 3, 1, 2), latencies=bins, ratios=(0,) * 6 + (5,) + (0,) * 6, disagreements=(5,) * 14
    )
    found = window({"a": count(0, then)}, {"a": count(2, now)})

    assert (found.seconds, found.pairs.callers) == (2.0, 90.0)
    assert found.requests.tolist() == [11, 11]
    assert found.errors.tolist() == [3, 5]  # stable alone and both, the candidate alone and both
    assert found.pairs.failed.tolist() == [[5, 3], [1, 2]]
    assert found.latencies[0, np.searchsorted(EDGES_MS, 100.0, side="right")] == 5
    assert found.latencies.sum() == 5 + 2 + 6
    assert found.pairs.ratios[np.searchsorted(RATIOS, 1.0, side="right")] == 5
    assert found.pairs.disagreements.tolist() == [5] * 14


def test_pairs_of_all_gateways_are_added_up() -> None:
    before = {"a": count(0, asked(1, 0, 0, 0)), "b": count(0, asked(5, 0, 0, 0))}

    assert failed(before, {"a": count(1, asked(3, 1, 0, 0)), "b": count(1, asked(9, 0, 0, 1))}) == [6, 1, 0, 1]


def test_a_comparator_that_begins_or_starts_anew_counts_from_zero() -> None:
    anew = {"a": count(1, asked(4, 1, 0, 0, epoch="2"))}

    assert failed({"a": count(0, None)}, anew) == [4, 1, 0, 0]
    assert failed({"a": count(0, asked(9, 9, 9, 9))}, anew) == [4, 1, 0, 0]
    assert failed({"a": count(0, asked(9, 9, 9, 9))}, {"a": count(1, asked(4, 1, 0, 0))}) == [4, 1, 0, 0]
    assert failed({"a": count(0, asked(9, 9, 9, 9, candidate="coins-old"))}, anew) == [4, 1, 0, 0]


def test_what_an_unknown_gateway_had_compared_before_is_no_evidence_unless_it_is_new() -> None:
    before = {"a": count(10, NONE)}
    after = {"b": count(11, asked(4, 0, 0, 0), began_s=5.0)}

    assert failed(before, after) == [0, 0, 0, 0]
    assert failed(before, {"b": replace(after["b"], began_s=T + 10.5)}) == [4, 0, 0, 0]
    assert failed({}, after) == [0, 0, 0, 0]


def test_what_a_gateway_compared_while_it_did_not_answer_is_in_the_window_after_its_return() -> None:
    before = {"a": count(0, asked(5, 0, 0, 0))}

    assert failed(before, {}) == [0, 0, 0, 0]
    assert failed(before, {"a": count(60, asked(8, 0, 0, 0))}) == [3, 0, 0, 0]


def test_pairs_of_other_groups_and_of_old_gateways_are_none() -> None:
    others = {"a": count(1, asked(4, 0, 0, 0, candidate="coins-old")), "b": count(1, None)}

    assert failed({"a": count(0, None), "b": count(0, None)}, others) == [0, 0, 0, 0]


def test_a_comparator_with_other_bins_tells_no_ratios() -> None:
    found = window({"a": count(0, NONE)}, {"a": count(1, replace(asked(4, 0, 0, 0), ratios=(4, 0)))})

    assert found.requests.tolist() == [4, 4]
    assert not found.pairs.ratios.any()


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=12), st.lists(st.integers(0, 11), max_size=3))
def test_no_pair_is_lost_or_counted_twice_however_often_comparators_start_anew(
    moves: list[tuple[int, int, int, int]], starts: list[int]
) -> None:
    seen: Sample = {"a": count(0, NONE)}
    held, total = NONE, np.zeros(4)
    for second, more in enumerate(moves, 1):
        if second in starts:
            held = asked(0, 0, 0, 0, epoch=f"{second}")
        held = replace(held, failed=tuple(np.add(held.failed, more).tolist()))
        after = {"a": count(second, held)}
        total += failed(seen, after)
        seen = after

    assert total.tolist() == np.sum(moves, 0).tolist() if moves else not total.any()
