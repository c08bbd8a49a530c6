"""Whether a stable revision meets its SLO, with or without a rollout: the column SLO of `get`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import Slo
from segserve_operator.core.evidence import EDGES_MS, STABLE, EvidenceWindow
from segserve_operator.core.rollout.counters import Sample
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.statistics.past import StablePast
from segserve_operator.core.world.observed import Minute, ModelObserved, Observed, RoleHolder, SloWatch

MET: Final = "Met"
BREACHED: Final = "Breached"
UNKNOWN: Final = "Unknown"
INTERVAL_S: Final = 15.0
"""Interval of reading the gateways' counters outside of rollouts."""
LONG_MIN: Final = 60
SHORT_MIN: Final = 5
ENOUGH_BAD: Final = 10
"""Bad requests that a breach needs at least: one of two is not half."""


def slo_of(model: ModelObserved) -> Slo | None:
    """Return the SLO of a model, if it has one."""
    return model.wanted.slo if model.wanted is not None else None


def is_watched(model: ModelObserved) -> bool:
    """Return whether a model's requests are counted although no rollout is in progress."""
    return slo_of(model) is not None


def is_due(measured_s: float, now_s: float) -> bool:
    """Return whether the interval has passed; the absolute difference covers a clock that was set back."""
    return abs(now_s - measured_s) >= INTERVAL_S


def watches(models: Iterable[ModelObserved], world: Observed) -> dict[str, SloWatch]:
    """Return the watches of all models with an SLO by name, updated with the current counters."""
    watches_by_model: dict[str, SloWatch] = {}
    for model in models:
        stable, sample, slo = model.roles.stable, world.samples.get(model.name), slo_of(model)
        if slo is not None and stable is not None:
            watch = world.watches.get(model.name) or SloWatch()
            if sample and is_due(watch.measured_s, world.now_s):
                watch = measured(watch, sample, stable.group, slo, world.now_s)
            watches_by_model[model.name] = watch
    return watches_by_model


def past_of(model: ModelObserved, stable: RoleHolder | None, world: Observed) -> StablePast | None:
    """Return stable's past as far as it is known, or None if it is not watched."""
    if not is_watched(model):
        return None
    watch = world.watches.get(model.name)
    is_stable = watch is not None and stable is not None and watch.group == stable.group
    return watch.past if watch is not None and is_stable else SloWatch().past


def measured(watch: SloWatch, sample: Sample, group: str, slo: Slo, now_s: float) -> SloWatch:
    """Return the watch with one more sample; a change of group starts it anew."""
    if watch.group != group:
        watch = SloWatch(group)
    counted = window_between(watch.seen, sample, group, "", hung=watch.hung)
    minutes, past = watch.minutes, watch.past
    if watch.seen:
        minutes, past = tuple(_with(minutes, _minute(counted.window, slo, now_s))), past.added(counted.window)
    return replace(watch, measured_s=now_s, seen=counted.seen, hung=counted.hung, minutes=minutes, past=past)


def slo_state(watch: SloWatch, slo: Slo, now_s: float) -> str:
    """Return `MET`, `BREACHED` or `UNKNOWN`.

    The SLO is breached if an objective is missed more often than allowed both over the last five minutes and over the
    last hour: multi-window burn rate (Google, The Site Reliability Workbook, chapter 5) at a factor of one.
    """
    now = int(now_s // 60)
    long = [minute for minute in watch.minutes if minute.minute > now - LONG_MIN]
    short = [minute for minute in long if minute.minute > now - SHORT_MIN]
    if not sum(minute.requests for minute in long):
        return UNKNOWN
    broken = any(_breaks(short, name, share) and _breaks(long, name, share) for name, share in objectives(slo).items())
    return BREACHED if broken else MET


def objectives(slo: Slo) -> dict[str, float]:
    """Return by objective the share of requests (0 to 1) that may miss it."""
    return {"error": slo.error_percent / 100} | {_name(quantile): 1 - quantile for quantile, _ in slo.latencies}


def _name(quantile: float) -> str:
    return f"p{100 * quantile:g}"


def _breaks(minutes: list[Minute], name: str, share: float) -> bool:
    broken, requests = sum(m.broken.get(name, 0) for m in minutes), sum(m.requests for m in minutes)
    return broken >= ENOUGH_BAD and broken > share * requests


def _minute(window: EvidenceWindow, slo: Slo, now_s: float) -> Minute:
    slow = {
        _name(quantile): int(window.latencies[STABLE, int(np.searchsorted(EDGES_MS, limit_ms)) + 1 :].sum())
        for quantile, limit_ms in slo.latencies
    }
    broken = {"error": int(window.errors[STABLE]), **slow}
    return Minute(int(now_s // 60), int(window.requests[STABLE]), broken)


def _with(minutes: tuple[Minute, ...], new: Minute) -> Iterator[Minute]:
    yield from (minute for minute in minutes if new.minute - LONG_MIN < minute.minute < new.minute)
    same = [minute for minute in minutes if minute.minute == new.minute]
    broken = {name: count + sum(m.broken.get(name, 0) for m in same) for name, count in new.broken.items()}
    yield Minute(new.minute, new.requests + sum(m.requests for m in same), broken)
