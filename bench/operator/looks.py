"""What the decisions on many rollouts cost the processor, together as in a pool's pass, and one by one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.rollout.decisions import DecisionInput, decide_all
from segserve_operator.core.rollout.engine import Progress, Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Floats

LOOKS: Final = 8
LOOK_S: Final = 2.0
PERCENT: Final = 5
REQUESTS_PER_S: Final = 50
BEGUN_S: Final = 1_790_000_000.0


def looks(rollouts: int, a_pool: int) -> dict[str, Any]:
    """Return the least seconds of CPU time of a look at so many rollouts, `a_pool` at once and one at once.

    All are at their first step, with the gates of the default policy; the records are not written.
    """
    return {
        "rollouts": rollouts,
        "a_pool": a_pool,
        "cpu_s": _cpu_s(rollouts, a_pool),
        "one_by_one_cpu_s": _cpu_s(rollouts, 1),
    }


def _cpu_s(rollouts: int, at_once: int) -> float:
    pools = [[_record(f"model-{number}") for number in range(at_once)] for _ in range(rollouts // at_once)]
    random, took_s = np.random.default_rng(1), []
    for number in range(1, LOOKS + 1):
        known = [[_input(BEGUN_S + LOOK_S * number, random) for _ in records] for records in pools]
        began_s = time.process_time()
        pools = [
            [result.record for result in decide_all(list(zip(records, inputs, strict=True)))]
            for records, inputs in zip(pools, known, strict=True)
        ]
        took_s.append(time.process_time() - began_s)
    return round(min(took_s), 3)


def _record(model: str) -> Record:
    progress = replace(Progress.begun(BEGUN_S), phase=np.array(Phase.PROGRESSING, np.int8), step=np.array(0, np.int8))
    return Record(f"{model}-2-1", model, f"{model}-1", f"{model}-2", RolloutPolicy(), Slo(), progress)


def _input(at_s: float, random: np.random.Generator) -> DecisionInput:
    requests = random.poisson(REQUESTS_PER_S * LOOK_S / 100 * np.array([100 - PERCENT, PERCENT])).astype(float)
    latencies = np.stack(list(_latencies(requests, random)))
    window = EvidenceWindow(np.array(LOOK_S), requests, np.zeros(2), latencies)
    return DecisionInput(at_s, Signals(grown=np.array(False)), window)


def _latencies(requests: Floats, random: np.random.Generator) -> Iterator[Floats]:
    for count in requests:
        took_ms = 20.0 * random.lognormal(0.0, 0.4, int(count))
        yield np.bincount(np.searchsorted(EDGES_MS, took_ms, side="right"), minlength=len(EDGES_MS) + 1).astype(float)
