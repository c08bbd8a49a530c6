"""The gate `slices`: a camera that the candidate breaks is found and named, and healthy candidates are let go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from segserve_operator.api.rollout_policy import RolloutPolicy, SlicesGate, Slo
from segserve_operator.core.evidence import MAX_SLICES, OTHER, RATIOS, EvidenceWindow, Floats, Pairs, SlicePairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.gates.slices import Slices, SlicesState
from segserve_operator.core.rollout.plain import from_plain, to_plain

LEVEL = 0.0025
LOOK_S = 10.0


def gate_of() -> Slices:
    policy = RolloutPolicy().model_copy(update={"gates": (SlicesGate(),)})
    return measured_gates(policy, Slo())["slices"]


GATE = gate_of()


def window(names: Sequence[str], failed: Floats, ratios: Floats | None = None) -> EvidenceWindow:
    """Return a window of `LOOK_S`: failed [..., S, 4] neither, candidate alone, stable alone, both."""
    shape = failed.shape[:-2]
    nothing = SlicePairs.nothing(tuple(names), shape)
    slices = replace(
        nothing,
        failed=failed.reshape(*failed.shape[:-1], 2, 2).astype(float),
        ratios=nothing.ratios if ratios is None else ratios,
    )
    pairs = replace(Pairs.nothing(shape), failed=slices.failed.sum(-3), slices=slices)
    return replace(EvidenceWindow.nothing(shape), seconds=np.full(shape, LOOK_S), pairs=pairs)


def cameras(count: int) -> tuple[str, ...]:
    return tuple(f"camera-{number}" for number in range(count))


def seen(windows: Sequence[EvidenceWindow], gate: Slices = GATE) -> SlicesState:
    state = gate.start()
    for each in windows:
        state = gate.update(state, each)
    return state


def one_broken(count: int, looks: int, broken: int, alone: int) -> list[EvidenceWindow]:
    """Return looks in which each camera has a pair, of which the broken one's fails in all but every `alone`-th."""
    windows = []
    for look in range(looks):
        failed = np.tile([1, 0, 0, 0], (count, 1))
        if look % alone:
            failed[broken] = [0, 1, 0, 0]
        windows.append(window(cameras(count), failed))
    return windows


def test_one_camera_of_fifty_that_the_candidate_breaks_is_found_and_named() -> None:
    verdict = GATE.explain(seen(one_broken(50, 60, 7, 4)), LEVEL)

    assert (verdict.outcome, verdict.reason) == (Outcome.BREACH, "SliceWorse")
    assert verdict.message == "worse for camera-7: the candidate alone failed on 45 of 60, stable alone on 0"
    assert (verdict.numbers["slices"], verdict.numbers["worse"]) == (50, 1)


def test_what_the_gate_breaches_by_is_what_the_engine_stops_at() -> None:
    state = seen(one_broken(50, 60, 7, 4))

    assert GATE.judge(state).breach >= -np.log(LEVEL)
    assert GATE.judge(state).breach == pytest.approx(GATE.explain(state, LEVEL).numbers["evidence"])


def test_a_camera_whose_requests_fail_for_both_is_the_camera_not_the_candidate() -> None:
    windows = [window(cameras(3), np.array([[1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])) for _ in range(100)]

    verdict = GATE.explain(seen(windows), LEVEL)

    assert (verdict.outcome, verdict.message) == (Outcome.PASS, "not proved worse in any of 3 slices")


def slow_camera(times: float) -> list[EvidenceWindow]:
    ratios = np.zeros((4, len(RATIOS) + 1))
    ratios[:, np.searchsorted(RATIOS, 1.0, side="right")] = 2
    ratios[2] = 0
    ratios[2, np.searchsorted(RATIOS, times, side="right")] = 2
    return [window(cameras(4), np.tile([2, 0, 0, 0], (4, 1)), ratios) for _ in range(60)]


def test_a_camera_that_takes_twice_as_long_is_found_once_the_candidate_cannot_be_cold_any_more() -> None:
    windows = slow_camera(2.0)

    assert GATE.explain(seen(windows[:18]), LEVEL).outcome is Outcome.PASS
    verdict = GATE.explain(seen(windows), LEVEL)
    assert verdict.message.startswith("worse for camera-2: the candidate alone took 1.1 times as long or longer on ")
    assert GATE.explain(seen(slow_camera(1.05)), LEVEL).outcome is Outcome.PASS


def test_without_labels_it_has_nothing_to_say_and_holds_nothing_up() -> None:
    pairs = replace(Pairs.nothing(), failed=np.array([[9.0, 9.0], [0.0, 0.0]]))
    state = seen([replace(EvidenceWindow.nothing(), seconds=np.array(LOOK_S), pairs=pairs)] * 9)
    judged, verdict = GATE.judge(state), GATE.explain(state, LEVEL)

    assert (verdict.outcome, verdict.reason) == (Outcome.UNDECIDED, "NoLabels")
    assert "x-segserve-slice" in verdict.message
    assert (judged.enough, judged.doubtful, judged.harm, judged.breach) == (True, False, 0, 0)


def test_a_slice_that_looks_worse_keeps_a_rollout_in_shadow_and_holds_no_step_afterwards() -> None:
    state = seen(one_broken(5, 30, 3, 3))

    assert (bool(GATE.judge(state).doubtful), float(GATE.judge(state).harm)) == (True, 1.0)
    after = GATE.after_shadow(state)
    assert (bool(GATE.judge(after).doubtful), float(GATE.judge(after).harm)) == (False, 0.0)
    callers = replace(EvidenceWindow.nothing(), seconds=np.array(LOOK_S), requests=np.array([90.0, 10.0]))
    assert GATE.update(after, callers) is after


def test_labels_beyond_the_limit_are_judged_together_and_the_state_stays_small() -> None:
    names = [f"camera-{number:033}" for number in range(MAX_SLICES + 30)]
    windows = [window(names, np.tile([3, 1, 1, 0], (len(names), 1))) for _ in range(30)]
    state = seen(windows)

    assert len(state.names) == MAX_SLICES + 1
    assert state.total[state.names.index(OTHER), 0].tolist() == [900, 900, 2700]
    assert len(str(to_plain(state))) < 96 * 1024


def test_a_state_that_was_stored_goes_on_as_if_it_had_not_been() -> None:
    windows = [*one_broken(4, 15, 2, 3), *one_broken(6, 15, 2, 3)]
    whole, stored = GATE.start(), GATE.start()
    for each in windows:
        whole = GATE.update(whole, each)
        stored = GATE.update(from_plain(GATE.start(), to_plain(stored)), each)

    assert to_plain(stored) == to_plain(whole)
    assert GATE.explain(stored, LEVEL) == GATE.explain(whole, LEVEL)


def most_evidence(slices: int, *, bursts: bool, runs: int = 400, minutes: float = 10.0) -> Floats:
    """Return the most evidence against any slice of healthy candidates, whose failures come together in bursts or not.

    Of 5 pairs a second the n-th label has a part of 1/n.
    """
    generator = np.random.default_rng(11)
    part = 1.0 / np.arange(1, slices + 1)
    part /= part.sum()
    state, most = GATE.start((runs,)), np.full(runs, -np.inf)
    until_s, next_s = np.zeros((runs, 2)), generator.exponential(120.0, (runs, 2))
    for look in range(round(minutes * 60 / LOOK_S)):
        now_s = look * LOOK_S
        begins = bursts & (next_s <= now_s)
        until_s = np.where(begins, now_s + 30.0, until_s)
        next_s = np.where(begins, until_s + generator.exponential(120.0, (runs, 2)), next_s)
        fails = np.where(until_s > now_s, 0.5, 0.01)
        stable, candidate = fails[:, :1], fails[:, 1:]
        cells = ((1 - stable) * (1 - candidate), (1 - stable) * candidate, stable * (1 - candidate), stable * candidate)
        pairs = generator.poisson(5.0 * LOOK_S * part, (runs, slices))
        failed = generator.multinomial(pairs, np.stack(cells, -1))
        state = GATE.update(state, window(cameras(slices), failed))
        most = np.maximum(most, GATE.judge(state).breach)
    return most


@pytest.mark.parametrize("bursts", [False, True], ids=["alone", "in bursts of half a minute"])
def test_healthy_candidates_with_two_hundred_uneven_slices_are_accused_as_rarely_as_declared(bursts: bool) -> None:
    level = 0.05
    assert (most_evidence(200, bursts=bursts, runs=30) >= -np.log(level)).mean() <= level
    assert (most_evidence(4, bursts=bursts) >= -np.log(level)).mean() <= level
