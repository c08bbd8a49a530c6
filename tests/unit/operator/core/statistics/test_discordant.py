"""The test on pairs: that it is an e-process, by enumeration; what it finds; what goes on from Shadow to callers."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product
from math import factorial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fakes.cases import cases
from segserve_operator.core.evidence import EDGES_MS, RATIOS, EvidenceWindow, Pairs
from segserve_operator.core.gates.error_rate import ErrorRate
from segserve_operator.core.gates.latency import Latency
from segserve_operator.core.statistics.blocks import CERTIFIED
from segserve_operator.core.statistics.discordant import Discordant, DiscordantState, discordant
from segserve_operator.core.statistics.exceedance import UNKNOWN, ExceedanceState, pairs_of
from segserve_operator.core.statistics.past import StablePast

TOLERANCE = 0.1
TEST = Discordant(tolerances=(TOLERANCE,), weights=(1.0,))
GATE = ErrorRate(slo_rate=0.01, tolerance=0.005)
LATENCY = Latency(tolerance=0.03, slo_ms=((0.95, 390.0),))
PROOF = np.log(200.0)
INDEPENDENT, ONE_BLOCK = 0.0, UNKNOWN


def after(counts: tuple[int, int, int], clustered_s: float, blocks: int = 1) -> DiscordantState:
    """The state after blocks with these pairs: the candidate alone bad, stable alone, neither."""
    state = TEST.start()
    for _ in range(blocks):
        each = np.array([counts] * 3, float)
        state = TEST.update(state, each, np.array(60.0), np.array(clustered_s), np.array(1.0))
    return state


def of_pairs(
    failed: Any, ratios: Any = None, latencies: Any = None, seconds: float = 5.0, shape: tuple[int, ...] = ()
) -> EvidenceWindow:
    """A look of Shadow: pairs by (stable failed, candidate failed)."""
    failed = np.broadcast_to(np.array(failed, float), (*shape, 2, 2))
    nothing = Pairs.nothing(shape)
    pairs = replace(nothing, failed=failed, ratios=nothing.ratios if ratios is None else np.array(ratios, float))
    errors = np.stack([failed[..., 1, :].sum(-1), failed[..., :, 1].sum(-1)], -1)
    asked = np.repeat(failed.sum((-2, -1))[..., None], 2, -1)
    bins = np.zeros((*shape, 2, len(EDGES_MS) + 1)) if latencies is None else np.array(latencies, float)
    return EvidenceWindow(np.full(shape, seconds), asked, errors, bins, pairs)


def watched(seconds: int = 1800, share: float = 0.002, rps: float = 100.0, runs: tuple[int, ...] = ()) -> StablePast:
    """A past of stable whose requests fail independently."""
    random, past = np.random.default_rng(3), StablePast.none(shape=runs)
    for _ in range(0, seconds, 15):
        requests = np.zeros((*runs, 2))
        requests[..., 0] = random.poisson(15 * rps, runs)
        errors = np.zeros((*runs, 2))
        errors[..., 0] = random.binomial(requests[..., 0].astype(int), share)
        latencies = np.zeros((*runs, 2, len(EDGES_MS) + 1))
        latencies[..., 0, 74:80] = random.multinomial(requests[..., 0].astype(int), [0.2, 0.2, 0.2, 0.2, 0.15, 0.05])
        past = past.added(EvidenceWindow(np.full(runs, 15.0), requests, errors, latencies))
    return past


@pytest.mark.parametrize("stable", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("null", [0, 1], ids=["no worse", "tolerable"])
def test_no_bet_on_independent_pairs_wins_on_average_under_its_null(null: int, stable: float) -> None:
    candidate, pairs = stable + null * TOLERANCE, 7
    mean = 0.0
    for bad, other in product(range(pairs + 1), repeat=2):
        if (neither := pairs - bad - other) < 0:
            continue
        ways = factorial(pairs) / (factorial(bad) * factorial(other) * factorial(neither))
        chance = ways * candidate**bad * stable**other * (1 - candidate - stable) ** neither
        wealth = np.exp(TEST.evidence(after((bad, other, neither), INDEPENDENT))[null])
        mean += chance * wealth
    assert mean <= 1 + 1e-9


@pytest.mark.parametrize("stable", [0.0, 0.05, 0.4])
@pytest.mark.parametrize("null", [0, 1], ids=["no worse", "tolerable"])
def test_no_quick_bet_wins_on_average_if_as_many_pairs_as_assumed_are_one(null: int, stable: float) -> None:
    """Clusters of equal pairs, as many as pairs are divided by: 1 + 5 a second * 3 s."""
    candidate, each, clusters = stable + null * TOLERANCE, 16, 3
    start = replace(TEST.start(), assumed_s=np.array(3.0))
    mean = 0.0
    for bad, other in product(range(clusters + 1), repeat=2):
        if (neither := clusters - bad - other) < 0:
            continue
        ways = factorial(clusters) / (factorial(bad) * factorial(other) * factorial(neither))
        chance = ways * candidate**bad * stable**other * (1 - candidate - stable) ** neither
        counts = np.array([(each * bad, each * other, each * neither)] * 3, float)
        seconds = np.array(clusters * each / 5.0)
        found = TEST.update(start, counts, seconds, np.array(UNKNOWN), np.array(1.0))
        mean += chance * np.exp(found.quick[null, 0]).sum()
    assert mean <= 1 + 1e-9


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 2))
def test_no_bet_on_a_block_wins_on_average_if_equal_revisions_may_change_places(seed: int, additional: int) -> None:
    """However a block's requests depend on each other: any distribution of both counts that is symmetric."""
    random, most = np.random.default_rng(seed), 6
    chances = random.dirichlet(np.full(most * most, 0.1)).reshape(most, most)
    chances = 0.5 * (chances + chances.T)
    pairs = 2 * most + additional
    mean = np.zeros(2)
    for (bad, other), chance in np.ndenumerate(chances):
        mean[0] += chance * np.exp(TEST.evidence(after((bad, other, pairs - bad - other), ONE_BLOCK))[0])
        # As many more of the candidate's as are tolerated: with that chance, both of them or none.
        for extra, share in ((0, 1 - TOLERANCE * pairs / 4), (4, TOLERANCE * pairs / 4)):
            counts = bad + extra, other, max(pairs - bad - other - extra, 0)
            mean[1] += chance * share * np.exp(TEST.evidence(after(counts, ONE_BLOCK))[1])
    assert mean[0] <= 1 + 1e-9
    assert mean[1] <= 1 + 1e-9


@pytest.mark.parametrize("level", [0.02, 0.1, 0.5])
def test_no_certificate_of_harm_wins_on_average_if_the_harm_is_its_level(level: float) -> None:
    at, mean = CERTIFIED.index(level), 0.0
    for bad in range(9):
        ways = factorial(8) / (factorial(bad) * factorial(8 - bad))
        certified = TEST.certified(after((bad, 0, 8 - bad), INDEPENDENT))[at]
        mean += ways * level**bad * (1 - level) ** (8 - bad) * np.exp(certified)
    # The evidence has a floor, from which it begins anew: it wins back at most so much.
    assert mean <= 1 + np.exp(-5.0)


@settings(max_examples=50, deadline=None)
@given(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 40)), st.sampled_from([INDEPENDENT, ONE_BLOCK]))
def test_one_more_failure_of_the_candidate_alone_is_never_less_evidence(
    counts: tuple[int, int, int], clustered_s: float
) -> None:
    bad, other, neither = counts
    before, worse = (after(each, clustered_s) for each in (counts, (bad + 1, other, neither - 1)))
    assert (TEST.evidence(worse) >= TEST.evidence(before) - 1e-12).all()
    assert (TEST.certified(worse) <= TEST.certified(before) + 1e-12).all()


def test_what_fails_at_both_or_at_neither_is_no_evidence_that_one_is_worse() -> None:
    incident = replace(GATE.start(), clustered_s=np.zeros(2))
    for _ in range(60):
        incident = GATE.update(incident, of_pairs([[5, 0], [0, 20]]))
    assert GATE.judge(incident).breach <= 0.0
    assert TEST.evidence(after((0, 0, 400), INDEPENDENT))[0] <= 0.0


def test_clusters_of_stables_past_make_pairs_count_for_less() -> None:
    independent, clustered = (TEST.evidence(after((12, 2, 286), each))[0] for each in (0.0, 2.0))
    assert 0 < clustered < 0.3 * independent


def test_counts_without_their_pairs_are_taken_as_the_least_evidence() -> None:
    assert discordant(np.array([3.0, 5.0]), np.array(20.0)).tolist() == [5.0, 3.0, 12.0]
    assert discordant(np.array([15.0, 18.0]), np.array(20.0)).tolist() == [5.0, 2.0, 13.0]


def shadow(
    gate: ErrorRate | Latency, runs: int, seconds: int, known: bool = True, seed: int = 1, **world: float
) -> tuple[np.ndarray, Any]:
    """When each of some invented Shadows breaches (s; infinity: never), and their last state; 5 pairs a second.

    world: more (the candidate's errors), slower (its latencies), own (standard deviation of a pair's logs), pause (s:
    each by itself is four times slower for so long, every three minutes), cold (times slower, fading with 30 s).
    """
    random = np.random.default_rng(seed)
    state = gate.start((runs,), watched(runs=(runs,)) if known else StablePast.none(shape=(runs,)))
    if world.get("pause"):
        state = replace(state, clustered_s=np.full_like(state.clustered_s, 0.4 * world["pause"] if known else UNKNOWN))
    breached, phases = np.full(runs, np.inf), random.uniform(0, 180, (runs, 2))
    for now in range(0, seconds, 5):
        rates = np.array([0.002, 0.002 + world.get("more", 0.0)])
        failed = random.random((runs, 25, 2)) < rates
        kinds = (2 * failed[..., 0] + failed[..., 1])[..., None] == np.arange(4)
        paused = ((now + phases) % 180 < world.get("pause", 0.0)) * np.log(4.0)
        cold = 1 + (world.get("cold", 1.0) - 1) * np.exp(-now / 30)
        logs = np.log(120.0) + 0.35 * random.standard_normal((runs, 25, 1)) + paused[:, None]
        logs = logs + world.get("own", 0.35) * random.standard_normal((runs, 25, 2))
        logs[..., 1] += np.log(world.get("slower", 1.0) * cold)
        latencies = (np.searchsorted(EDGES_MS, np.exp(logs))[..., None] == np.arange(len(EDGES_MS) + 1)).sum(1)
        ratios = np.searchsorted(RATIOS, np.exp(logs[..., 1] - logs[..., 0]), side="right")
        counts = (ratios[..., None] == np.arange(len(RATIOS) + 1)).sum(1)
        window = of_pairs(kinds.sum(1).reshape(runs, 2, 2), counts, latencies, shape=(runs,))
        state = gate.update(state, window)
        judged = gate.judge(state)
        proved = (judged.breach >= PROOF) & ~judged.settling
        breached = np.where(np.isinf(breached) & proved, now + 5.0, breached)
    return breached, state


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@cases(
    ("gate", "world"),
    {
        "errors": (GATE, {}),
        "latency": (LATENCY, {}),
        "hardly any noise": (LATENCY, {"own": 0.03}),
        "pauses of each by itself": (LATENCY, {"pause": 20.0}),
        "a cold candidate": (LATENCY, {"cold": 5.0}),
    },
)
def test_a_healthy_candidate_is_not_accused_in_shadow(gate: Any, world: dict[str, float], known: bool) -> None:
    breached, _ = shadow(gate, runs=60, seconds=600, known=known, **world)
    # At most one of 200 is promised: of 60, two or more have a chance of 4 %, and none is what the seed gives.
    assert np.isfinite(breached).sum() == 0


@cases(
    ("gate", "world", "within_s"),
    {
        "+1 pp of errors": (GATE, {"more": 0.01}, 600),
        "+5 pp of errors": (GATE, {"more": 0.05}, 90),
        "1.25 times slower": (LATENCY, {"slower": 1.25}, 300),
        "1.25 times slower, hardly any noise": (LATENCY, {"slower": 1.25, "own": 0.03}, 200),
        "twice as slow": (LATENCY, {"slower": 2.0}, 200),
    },
)
def test_half_of_bad_candidates_are_found_in_shadow_within(gate: Any, world: dict[str, float], within_s: float) -> None:
    breached, state = shadow(gate, runs=30, seconds=int(within_s), **world)
    assert np.median(breached) <= within_s
    assert (gate.judge(state).excess == 0).all()


@cases(("more", "within_s"), {"all fail": (0.99, 45), "two of five fail": (0.4, 120)})
def test_plain_failure_is_found_in_shadow_without_stables_past_within(more: float, within_s: int) -> None:
    breached, _ = shadow(GATE, runs=30, seconds=within_s, known=False, more=more)
    assert np.isfinite(breached).all()


def test_one_interruption_of_half_a_minute_is_no_proof_without_stables_past() -> None:
    state = GATE.start((), StablePast.none())
    for second in range(300):
        failed = [[0, 5], [0, 0]] if 60 <= second < 90 else [[5, 0], [0, 0]]
        state = GATE.update(state, of_pairs(failed, seconds=1.0))
        assert GATE.judge(state).breach < PROOF


def test_only_what_watches_an_unknown_past_assumes_clusters() -> None:
    fails = of_pairs([[0, 25], [0, 0]])
    new, certain = GATE.start((), StablePast.none()), GATE.start()
    for _ in range(10):
        new, certain = (GATE.update(state, fails) for state in (new, certain))
    assert GATE.judge(new).breach >= PROOF > GATE.judge(certain).breach
    assert GATE.again(new).pairs_assumed_s > 0 == GATE.again(certain).pairs_assumed_s
    assert GATE.start((), watched()).pairs_assumed_s == 0


@pytest.mark.parametrize("own", [0.03, 0.1, 0.35])
def test_one_that_is_less_than_a_tenth_slower_is_tolerated(own: float) -> None:
    breached, state = shadow(LATENCY, runs=30, seconds=400, slower=1.08, own=own)
    assert np.isfinite(breached).sum() == 0
    assert not (LATENCY.judge(state).doubtful & (LATENCY.judge(state).harm > 0.03)).all()


def test_harm_is_certified_in_shadow_and_only_where_it_is_true() -> None:
    for gate, tolerance in ((GATE, 0.005), (LATENCY, 0.03)):
        _, healthy = shadow(gate, runs=20, seconds=480)
        assert np.median(gate.judge(healthy).harm) <= tolerance
    _, failing = shadow(GATE, runs=60, seconds=300, more=0.03)
    assert (GATE.judge(failing).harm < 0.03).mean() <= 0.05
    _, slow = shadow(LATENCY, runs=20, seconds=300, slower=1.25)
    assert (LATENCY.judge(slow).harm > 0.03).all()


def test_ratios_are_mirror_images_so_that_equal_revisions_are_as_often_on_either_side() -> None:
    assert np.allclose(np.array(RATIOS) * np.array(RATIOS[::-1]), 1.0)


def test_what_shadow_proved_goes_on_and_levels_do_not() -> None:
    for gate, world in ((GATE, {"more": 0.02}), (LATENCY, {"slower": 1.4})):
        _, state = shadow(gate, runs=10, seconds=300, **world)
        before, going_on = gate.judge(state), gate.after_shadow(state)
        assert (gate.judge(going_on).breach >= before.breach - 1e-6).all()
        assert not going_on.total.any()
        assert not going_on.memory.any()
        assert (gate.judge(going_on).excess == 0).all()
    _, healthy = shadow(GATE, runs=10, seconds=480)
    going_on = GATE.after_shadow(healthy)
    assert (GATE.judge(going_on).harm <= GATE.judge(healthy).harm).all()
    assert (GATE.judge(going_on).breach >= np.log(0.24)).all()  # what a later fault has to make up for


def test_a_rollout_whose_shadow_had_no_traffic_goes_on_as_if_there_had_been_none() -> None:
    for gate in (GATE, LATENCY):
        start = gate.start((2,), watched(runs=(2,)))
        assert same(gate.after_shadow(start), start)


def test_the_verdict_names_pairs() -> None:
    state = GATE.update(GATE.start(), of_pairs([[403, 9], [0, 0]], seconds=100.0))
    verdict = GATE.explain(state, 0.01)
    assert "of 412 pairs the candidate alone failed 9 times, stable alone never" in verdict.message
    assert verdict.numbers["pairs"] == 412
    ratios = np.zeros(len(RATIOS) + 1)
    ratios[[6, 12]] = 301, 40
    latencies = np.zeros((2, len(EDGES_MS) + 1))
    latencies[:, 74] = 341
    start = replace(LATENCY.start(), served_s=np.array(60.0))
    slow = LATENCY.update(start, of_pairs([[341, 0], [0, 0]], ratios, latencies, seconds=100.0))
    assert "of 341 pairs the candidate took 1.1 times as long or longer 40 times, less 301 times" in (
        LATENCY.explain(slow, 0.01).message
    )


def test_pairs_are_shown_even_of_a_block_that_is_open() -> None:
    state = GATE.update(GATE.start(), of_pairs([[3, 1], [0, 0]]))
    assert pairs_of(state).total.sum() == 0
    assert GATE.explain(state, 0.01).numbers["candidate_alone"] == 1


def same(left: ExceedanceState, right: ExceedanceState) -> bool:
    return all(np.array_equal(getattr(left, each.name), getattr(right, each.name)) for each in fields(left))
