"""Records of rollouts with numbers that no rounding survives, and what it means that two records are the same."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.rollout.counters import (
    Counters,
    HungRequests,
    InFlight,
    InFlightSample,
    PairCounts,
    Series,
    SeriesCounts,
)
from segserve_operator.core.rollout.engine import Progress
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.plain import canonical
from segserve_operator.core.rollout.record import Decision, PairRow, Record, RolloutState, Row

STARTED_S = 1_790_000_000.0
POLICY = RolloutPolicy(alpha=0.1 + 0.2 - 0.2)
SLO = Slo(error_percent=1 / 3, p95_milliseconds=120)
AWKWARD = (0.1 + 0.2, 1 / 3, 5e-324, np.nextafter(1.0, 2.0), -0.0, 1.7976931348623157e308)


def same(one: Any, other: Any) -> bool:
    """Tell whether two values are equal to the last bit, arrays' types and shapes included.

    A number of numpy's is an array without axes.
    """
    if isinstance(other, np.ndarray | np.generic):
        one, other = np.asarray(one), np.asarray(other)
        return (one.dtype, one.shape) == (other.dtype, other.shape) and one.tobytes() == other.tobytes()
    if is_dataclass(one):
        alike = type(one) is type(other)
        return alike and all(same(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", other)
    return bool(one == other)


def record(name: str = "coins-2-1", model: str = "coins", *, rows: int = 20, sequence: int = 3) -> Record:
    """Return the record of a rollout in the middle of its way, with so many rows of evidence."""
    numbers = np.random.default_rng(7)
    gates = {name: gate.update(gate.start(), _look(numbers)) for name, gate in measured_gates(POLICY, SLO).items()}
    progress = replace(
        Progress.begun(STARTED_S),
        phase=np.array(Phase.PROGRESSING, np.int8),
        step=np.array(1, np.int8),
        rate=np.array(AWKWARD[0]),
        bad=np.array(AWKWARD[1]),
    )
    return Record(
        name=name,
        model=model,
        stable="coins-1",
        candidate="coins-2",
        policy=POLICY,
        slo=SLO,
        progress=progress,
        sequence=sequence,
        gates=gates,
        seen={"gateway-0": _count(), "gateway-1": Counters("second", STARTED_S + 0.1)},
        hung=HungRequests(
            (("gateway-0", InFlight((1 / 3, 0.0), (InFlightSample(STARTED_S, (1.0, 2.0), (0.0, 1.0)),))),)
        ),
        rows=_rows(rows),
        decisions=tuple(decision(number) for number in range(1, sequence + 1)),
        verdicts=(verdict(),),
    )


@cache
def _rows(count: int) -> tuple[Row, ...]:
    return tuple(map(row, range(count)))


@cache
def row(number: int) -> Row:
    """Return a row of evidence."""
    latencies = tuple((index, 1 + (number * index) % 997) for index in range(number % 7, len(EDGES_MS) + 1, 7))
    # Every other one is of Shadow.
    pairs = PairRow((number, 3, 2, 1), (latencies[:2], latencies[1:4]), ((6, number),), ((0, 3), (9, 1)))
    at_s, counts = STARTED_S + number + 0.1, ((number, 3), (0, 1), (latencies, latencies[:3]))
    return Row(at_s, 1 / 3, 25, *counts, pairs if number % 2 else None)


def decision(sequence: int) -> Decision:
    """Return a decision, with all that it saw."""
    return Decision(
        sequence=sequence,
        at_s=STARTED_S + sequence / 3,
        signal="ADVANCE",
        phase=Phase.PROGRESSING,
        weight=25,
        actor="segserve",
        reason="StepDone",
        message="the evidence allows the next weight",
        verdicts=(verdict(),),
        inputs=canonical({"nowS": STARTED_S + sequence / 3, "numbers": [*AWKWARD, np.inf]}),
        result=canonical({"signal": "ADVANCE"}),
    )


def verdict() -> Verdict:
    """Return a verdict whose numbers are awkward."""
    numbers = {f"n{index}": number for index, number in enumerate((*AWKWARD, np.inf, -np.inf))}
    return Verdict("latency", Outcome.UNDECIDED, "NoProof", "4.9 % are slower", 1 / 3, numbers)


def state_of_record(found: Record, **changes: Any) -> RolloutState:
    """Return where a record's rollout stands, as its model's status says it."""
    at = RolloutState(
        rollout=found.name,
        revision=found.candidate,
        phase=Phase.PROGRESSING,
        step=1,
        sequence=found.sequence,
        started_s=STARTED_S,
        since_s=STARTED_S + 40,
        step_since_s=STARTED_S + 60,
        resumed_s=STARTED_S + 70,
        weight=25,
        skipped=("latency",),
        reason="HarmNotBounded",
        message="too few requests",
    )
    return replace(at, **changes)


def _look(numbers: np.random.Generator) -> EvidenceWindow:
    requests = np.array([900.0, 100.0])
    latencies = numbers.multinomial(900, np.full(len(EDGES_MS) + 1, 1 / (len(EDGES_MS) + 1)), 2).astype(float)
    return EvidenceWindow(np.array(1 / 3), requests, np.array([3.0, 1.0]), latencies)


def _count() -> Counters:
    tally = SeriesCounts(1000, 3, 1, 2, ((0.5, 3), (120.0, 990), (100_000.0, 1)))
    bins = ((0.5, 3), (120.0, 990))
    pairs = PairCounts("begun", "main", "coins-2", (990, 3, 2, 1), (bins, bins[:1]), (0,) * 6 + (7,), (5, 0, 1), 4)
    by_series = {Series("main", "http"): tally, Series("coins-2", "grpc"): SeriesCounts()}
    return Counters("first", STARTED_S + 1 / 3, by_series, pairs=pairs)
