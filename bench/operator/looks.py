"""What looks at many rollouts cost the processor: decisions together, as in a pool's pass, and one by one, and passes.

A pass is the operator's own over a cluster in memory; what it would ask of gateways is at hand.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from unittest.mock import patch

import numpy as np

from fakes.cluster_world import KEY, ClusterWorld, model_manifest
from segserve_operator.adapters.kube.gateway import ClusterTraffic
from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.rollout.counters import Counters, Sample, Series, SeriesCounts
from segserve_operator.core.rollout.decisions import DecisionInput, decide_all
from segserve_operator.core.rollout.engine import Progress, Signals
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Floats

LOOKS: Final = 5
LOOK_S: Final = 2.0
PERCENT: Final = 5
REQUESTS_PER_S: Final = 50
BEGUN_S: Final = 1_790_000_000.0
PASSES: Final = 30
START_TURNS: Final = 12


def looks(rollouts: int, a_pool: int, models: int) -> dict[str, Any]:
    """Return the least seconds of CPU time of a look at so many rollouts, `a_pool` at once and one at once.

    All are at their first step, with the gates of the default policy. A `pass` is over one pool with so many `models`,
    and writes nothing; `writing` is one that writes all its records.
    """
    return {
        "rollouts": rollouts,
        "a_pool": a_pool,
        "cpu_s": _cpu_s(rollouts, a_pool),
        "one_by_one_cpu_s": _cpu_s(rollouts, 1),
        **asyncio.run(_passes(models, a_pool)),
    }


@dataclass(slots=True)
class Load:
    """What a gateway has counted of each model since the start, by the groups that its requests go to."""

    random: np.random.Generator
    counted: dict[tuple[str, str], tuple[int, dict[float, int]]] = field(default_factory=dict)

    def sample(self, model: str, weights: Mapping[str, int], began_s: float, now_s: float) -> Sample:
        """Return the counts of now; latencies are in Envoy's bins, which have two digits."""
        series = {}
        for group, weight in weights.items():
            attempts = int((now_s - began_s) * REQUESTS_PER_S * weight / 100)
            before, known = self.counted.get((model, group), (0, {}))
            bins = dict(known)
            for took_ms in _took_ms(max(attempts - before, 0), self.random):
                lower_ms = float(f"{took_ms:.1e}")
                bins[lower_ms] = bins.get(lower_ms, 0) + 1
            self.counted[model, group] = (attempts, bins)
            series[Series(group, "http")] = SeriesCounts(attempts=attempts, latencies=tuple(sorted(bins.items())))
        return {"gateway": Counters("0", now_s, series, began_s)}


async def _passes(models: int, rollouts: int) -> dict[str, Any]:
    world, load = ClusterWorld(), Load(np.random.default_rng(1))
    began_s, samples = world.now_s, dict[str, Sample]()
    names = [f"model-{number:03}" for number in range(models)]

    async def at_hand(_: ClusterTraffic, asked: Mapping[str, tuple[str, str]]) -> Mapping[str, Sample]:
        return {name: samples.get(name, {}) for name in asked}

    def count() -> None:
        for name in names[:rollouts]:
            roles = world.status(name)["roles"]
            shares = (("stable", 100 - PERCENT), ("candidate", PERCENT))
            weights = {roles[role]["group"]: weight for role, weight in shares if (roles.get(role) or {}).get("group")}
            samples[name] = load.sample(name, weights, began_s, world.now_s)

    with patch.object(ClusterTraffic, "samples", at_hand):
        world.apply_pool()
        for name in names:
            world.apply(model_manifest(name))
        await world.turns()
        policy = {"steps": [{"weight": PERCENT}], "minRequests": 10_000_000}
        for name in names[:rollouts]:
            world.apply(model_manifest(name, "2", rollout=policy))
        for _ in range(START_TURNS):
            count()
            await world.turns(1)
        took_s: dict[int, list[float]] = {}
        for _ in range(PASSES):
            world.now_s += LOOK_S
            count()
            cpu_s = time.process_time()
            writes = (await world.passes.reconcile(KEY)).writes
            took_s.setdefault(writes, []).append(time.process_time() - cpu_s)
    weights = [world.status(name)["rollout"]["weight"] for name in names[:rollouts]]
    if set(weights) != {PERCENT}:
        raise RuntimeError(f"not all rollouts are at their first step: their weights are {weights}")
    return {
        "models_of_a_pool": models,
        "pass_ms": round(1e3 * min(took_s[0]), 1),
        "writing_pass_ms": round(1e3 * min(took_s[rollouts]), 1),
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
        took_ms = _took_ms(int(count), random)
        yield np.bincount(np.searchsorted(EDGES_MS, took_ms, side="right"), minlength=len(EDGES_MS) + 1).astype(float)


def _took_ms(requests: int, random: np.random.Generator) -> Floats:
    return 20.0 * random.lognormal(0.0, 0.4, requests)
