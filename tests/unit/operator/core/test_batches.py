"""Rollouts decided together: to the last bit what each comes to by itself."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fakes.rollout_evidence import same
from segserve_operator.api.rollout_policy import (
    BurnRateGate,
    ErrorRateGate,
    LatencyGate,
    MaskAgreementGate,
    RolloutPolicy,
    Shadow,
    Slo,
)
from segserve_operator.core.evidence import CANDIDATE, EDGES_MS, RATIOS, EvidenceWindow, Pairs
from segserve_operator.core.rollout.batches import answered, at_once, taken_apart
from segserve_operator.core.rollout.decisions import DecisionInput, DecisionResult, decide, decide_all
from segserve_operator.core.rollout.engine import Progress, Signals
from segserve_operator.core.rollout.phases import ENDED, Phase, Signal
from segserve_operator.core.rollout.record import Record
from segserve_operator.core.rollout.replay import replay

BEGUN_S = 1_790_000_000.0
LOOKS = 24
GATES = (ErrorRateGate(), LatencyGate(), BurnRateGate())
SHORT = RolloutPolicy(gates=GATES, shadow=None, bake_time=timedelta(seconds=40), max_bad_requests=400)
COPIED = RolloutPolicy(
    gates=(*GATES, MaskAgreementGate()),
    shadow=Shadow(min_requests=20, max_duration=timedelta(seconds=120)),
    bake_time=timedelta(seconds=40),
)
POLICIES = (
    (SHORT, Slo()),
    (SHORT, Slo(p95_milliseconds=120)),
    (COPIED, Slo()),
    (RolloutPolicy(gates=GATES[:1], shadow=None, deadline=timedelta(seconds=90), on_undecided="Rollback"), Slo()),
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A rollout: its policy, how bad and slow the candidate is, its requests a second, and what a person asks when."""

    policy: int
    seed: int
    errors: float
    slowness: float
    rate: float
    asked: tuple[int, Signal]

    def record(self, name: str) -> Record:
        policy, slo = POLICIES[self.policy]
        return Record(name, "coins", "coins-1", "coins-2", policy, slo, Progress.begun(BEGUN_S))


DRAWN = st.builds(
    Drawn,
    policy=st.integers(0, len(POLICIES) - 1),
    seed=st.integers(0, 2**32 - 1),
    errors=st.sampled_from((0.0, 0.01, 0.3)),
    slowness=st.sampled_from((1.0, 1.0, 1.6)),
    rate=st.sampled_from((0.2, 5.0, 60.0)),
    asked=st.tuples(st.integers(1, 30), st.sampled_from((Signal.NONE, Signal.ADVANCE, Signal.ABORT, Signal.PROMOTE))),
)


def latencies(numbers: np.random.Generator, counts: Sequence[int], slowness: float) -> np.ndarray:
    """Return the answers [2, K + 1] by latency, those of the candidate `slowness` times as late."""
    found = np.zeros((2, len(EDGES_MS) + 1))
    for role, count in enumerate(counts):
        took_ms = 20.0 * numbers.lognormal(0.0, 0.4, count) * (slowness if role == CANDIDATE else 1.0)
        np.add.at(found[role], np.searchsorted(EDGES_MS, took_ms, side="right"), 1.0)
    return found


def look(drawn: Drawn, record: Record, numbers: np.random.Generator, at_s: float, number: int) -> DecisionInput:
    """Return what is known at a look: of pairs in Shadow, else of callers; sometimes nothing new."""
    seconds = np.array(float(numbers.choice((2.0, 5.0))))
    weight = record.decisions[-1].weight / 100 if record.decisions else 0
    sent = numbers.poisson(drawn.rate * float(seconds) * np.array((1 - weight, weight)))
    failed = numbers.binomial(sent, (0.005, drawn.errors))
    callers = EvidenceWindow(
        seconds, sent.astype(float), failed.astype(float), latencies(numbers, sent - failed, drawn.slowness)
    )
    window = callers
    if int(record.progress.phase) == Phase.SHADOW:
        asked = int(numbers.poisson(drawn.rate * float(seconds)))
        wrong = int(numbers.binomial(asked, drawn.errors))
        ratios = np.zeros(len(RATIOS) + 1)
        np.add.at(ratios, np.searchsorted(RATIOS, drawn.slowness * numbers.lognormal(0.0, 0.3, asked - wrong)), 1.0)
        nothing = Pairs.nothing()
        differ = nothing.disagreements.copy()
        differ[numbers.integers(len(differ))] += asked - wrong
        both = np.array([[asked - wrong, wrong], [0.0, 0.0]])
        pairs = Pairs(both, ratios, differ, callers.requests.sum(-1))
        window = EvidenceWindow.of_pairs(seconds, latencies(numbers, (asked, asked - wrong), drawn.slowness), pairs)
    when, asked_for = drawn.asked
    known = Signals(
        ready=np.array(number > 1),
        probes=np.array(numbers.integers(-1, 2), np.int8),
        asked=int(asked_for) if number == when else int(Signal.NONE),
    )
    silent = numbers.random() < 0.2
    return DecisionInput(
        at_s,
        known,
        None if silent else window,
        callers if window is not callers and not silent else None,
        paused=bool(numbers.random() < 0.05),
        skipped=("latency",) if number > 20 and drawn.seed % 5 == 0 else (),
    )


# Every policy, with candidates that are bad and slow, and with one that a person promotes.
EACH_POLICY = [
    Drawn(number % len(POLICIES), number, (0.0, 0.3)[number % 2], 1.6, 60.0, (12, Signal.PROMOTE))
    for number in range(2 * len(POLICIES) + 1)
]


@settings(max_examples=3, deadline=None)
@given(st.lists(DRAWN, min_size=2, max_size=5))
@example(EACH_POLICY)
def test_rollouts_decided_together_are_to_the_last_bit_as_each_by_itself(fleet: list[Drawn]) -> None:
    records = [drawn.record(str(number)) for number, drawn in enumerate(fleet)]
    numbers = [np.random.default_rng(drawn.seed) for drawn in fleet]
    for number in range(LOOKS):
        going = [at for at, record in enumerate(records) if Phase(int(record.progress.phase)) not in ENDED]
        at_s = BEGUN_S + 5.0 * number
        asked = [(records[at], look(fleet[at], records[at], numbers[at], at_s, number)) for at in going]
        together = decide_all(asked)
        alone = [decide(*question) for question in asked]

        assert all(same(one.record, other.record) for one, other in zip(together, alone, strict=True))
        assert all(same(one.transition, other.transition) for one, other in zip(together, alone, strict=True))
        for at, result in zip(going, together, strict=True):
            records[at] = result.record

    assert all(each.same for record in records for each in replay(record))


def test_the_drawn_rollouts_come_to_every_phase() -> None:
    seen: set[Phase] = set()
    for seed in range(8):
        asked = (12, Signal.PROMOTE if seed % 4 else Signal.NONE)
        drawn = Drawn(seed % 3, seed, (0.0, 0.3)[seed % 2], 1.0, 60.0, asked)
        record, numbers = drawn.record("0"), np.random.default_rng(seed)
        for number in range(LOOKS):
            record = decide(record, look(drawn, record, numbers, BEGUN_S + 5.0 * number, number)).record
            seen.add(Phase(int(record.progress.phase)))

    in_progress = {Phase.GOLDEN, Phase.SHADOW, Phase.PROGRESSING, Phase.QUARANTINED, Phase.BAKING}
    assert seen >= in_progress | {Phase.SUCCEEDED, Phase.ROLLED_BACK}


@dataclass(frozen=True, slots=True)
class Part:
    """A name and numbers."""

    name: str
    numbers: np.ndarray


@dataclass(frozen=True, slots=True)
class Whole:
    """Parts in each of the ways in which a state may hold them."""

    part: Part
    by_name: dict[str, Part]
    several: tuple[Part, ...]
    missing: Part | None = None


def whole(number: float) -> Whole:
    part = Part("one", np.array([number, number + 0.5]))
    return Whole(part, {"a": part, "b": Part("two", np.array(number))}, (part,))


def apart(value: Whole) -> list[np.ndarray]:
    arrays: list[np.ndarray] = []
    taken_apart(value, arrays)
    return arrays


def test_whatever_consists_of_arrays_is_stacked_and_comes_back_as_it_was() -> None:
    shapes = []

    def twice(stacked: Whole) -> Whole:
        shapes.append((stacked.part.numbers.shape, stacked.by_name["b"].numbers.shape))
        return replace(stacked, part=Part("one", 2 * stacked.part.numbers))

    found = at_once(twice, whole(1.0), [apart(whole(number)) for number in (1.0, 2.0, 3.0)])

    assert shapes == [((3, 2), (3,))]
    assert all(
        same(each, replace(whole(number), part=Part("one", 2 * whole(number).part.numbers)))
        for number, each in zip((1.0, 2.0, 3.0), found, strict=True)
    )


def test_a_result_keeps_no_other_ones_arrays_in_memory() -> None:
    found = at_once(lambda stacked: stacked, whole(1.0), [apart(whole(1.0)), apart(whole(2.0))])

    memory = [each.part.numbers.base for each in found]

    assert memory[0] is not memory[1]
    assert all(base.nbytes <= sum(array.nbytes for array in apart(whole(1.0))) for base in memory)


@pytest.mark.parametrize("questions", [(), (3,), (3, 1, 2)])
def test_routines_that_ask_several_times_get_their_own_answers(questions: tuple[int, ...]) -> None:
    rounds: list[Sequence[int]] = []

    def routine(count: int) -> Generator[int, int, int]:
        total = 0
        for _ in range(count):
            total += yield count
        return total

    def doubled(asked: Sequence[int]) -> list[int]:
        rounds.append(asked)
        return [2 * each for each in asked]

    assert answered({each: routine(each) for each in questions}, doubled) == {each: 2 * each**2 for each in questions}
    assert [len(asked) for asked in rounds] == [
        sum(each > number for each in questions) for number in range(max(questions, default=0))
    ]


def test_of_many_rollouts_each_is_answered_for_itself() -> None:
    drawn = [Drawn(0, seed, 0.0, 1.0, 5.0, (40, Signal.NONE)) for seed in range(3)]
    asked = [
        (each.record(str(at)), look(each, each.record(str(at)), np.random.default_rng(at), BEGUN_S, 5))
        for at, each in enumerate(drawn)
    ]
    found: list[DecisionResult] = decide_all(asked)

    assert [result.record.name for result in found] == ["0", "1", "2"]
