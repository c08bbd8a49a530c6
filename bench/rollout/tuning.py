"""Finds for each peer the number with which it rolls back 1 % of healthy rollouts in steady traffic of a rate."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.peers import LIMITED, RULES, Limits, Tuning, run_flagger
from bench.rollout.series import A_MINUTE, scraped
from bench.rollout.world import Setting, World

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from bench.rollout.series import Series

GOAL: Final = 0.01
RUNS: Final = 4000
_SEED: Final = 271_828
_CHANCES: Final = tuple(np.geomspace(0.3, 1e-5, 46))
"""Of one measurement of a healthy candidate beyond its limit."""

_NO_LIMIT_MS: Final = 1e6
_TOLERANCES: Final = tuple(np.arange(0.0, 3.01, 0.05))
_FACTORS: Final = tuple(np.geomspace(0.2, 200.0, 61))
_BOUNDS: Final = tuple(np.linspace(0.0, 20.0, 81))
_SCALES: Final = tuple(np.linspace(0.7, 6.0, 107))


def tuned(rate: float, slo_ms: float, runs: int = RUNS) -> Tuning:
    """Return the peers' numbers for a rate; of those that keep the goal the most eager."""
    setting = Setting(rate, CONDITIONS[STEADY], FAULTS[NONE], slo_ms)
    series = scraped(World(setting, runs, np.random.default_rng(_SEED)))
    limits = list(_limits(series.windows(A_MINUTE), slo_ms))
    start = replace(Tuning.documented(slo_ms), no_data_fails=False)

    def with_limits(name: str, value: Limits) -> Tuning:
        return replace(start, limits={**start.limits, name: value})

    def backs(rule: str) -> Callable[[Tuning], float]:
        return lambda tuning: float(np.isfinite(RULES[rule](series, tuning, slo_ms)).mean())

    def flagger_backs(tuning: Tuning) -> float:
        world = World(setting, runs, np.random.default_rng(_SEED + 1))
        return float(np.isfinite(run_flagger(world, tuning.limits["Flagger"])[0].rolled_back_s).mean())

    found = {
        name: _first_within(
            (with_limits(name, value) for value in limits), flagger_backs if name == "Flagger" else backs(name)
        ).limits[name]
        for name in LIMITED
    }
    return replace(
        start,
        limits=found,
        kayenta=_first_within((replace(start, kayenta=float(each)) for each in _TOLERANCES), backs("Kayenta")).kayenta,
        burn_rate=_first_within(
            (replace(start, burn_rate=float(each)) for each in _FACTORS), backs("burn rate")
        ).burn_rate,
        msprt=_first_within((replace(start, msprt=float(each)) for each in _BOUNDS), backs("mSPRT")).msprt,
        group_sequential=_first_within(
            (replace(start, group_sequential=float(each)) for each in _SCALES), backs("group-sequential")
        ).group_sequential,
    )


def plain(tuning: Tuning) -> dict[str, Any]:
    """Return a tuning as JSON values."""
    return asdict(tuning)


def read(values: Mapping[str, Any]) -> Tuning:
    """Return the tuning of JSON values."""
    limits = {name: Limits(**each) for name, each in values["limits"].items()}
    return Tuning(**{**values, "limits": limits})


def _limits(minutes: Series, slo_ms: float) -> Iterable[Limits]:
    """Yield pairs of limits that a healthy minute passes with ever smaller chances, the same for both metrics."""
    errors, p95_ms = minutes.error_share(), minutes.p95_ms()
    errors, p95_ms = errors[np.isfinite(errors)], p95_ms[np.isfinite(p95_ms)]
    for chance in _CHANCES:
        if len(errors):
            pair = np.quantile(errors, 1 - chance), np.quantile(p95_ms, 1 - chance)
            yield Limits(float(pair[0]), float(pair[1]), no_data_fails=False)
    yield Limits(1.0, _NO_LIMIT_MS, no_data_fails=False)


def _first_within(candidates: Iterable[Tuning], rate_of: Callable[[Tuning], float]) -> Tuning:
    """Return the first tuning within the goal; the last where there is none. Candidates go from eager to reluctant."""
    every = list(candidates)
    low, high = 0, len(every) - 1
    while low < high:  # eagerness falls along the list
        middle = (low + high) // 2
        if rate_of(every[middle]) <= GOAL:
            high = middle
        else:
            low = middle + 1
    return every[low]
