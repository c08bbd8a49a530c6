"""Simulated requests to stable and candidate: thousands of rollouts at once, seeded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import ndtr

from bench.rollout.conditions import DRIFT_MEMORY_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bench.rollout.conditions import Condition
    from bench.rollout.faults import Fault

    Floats = NDArray[np.float64]

STABLE: Final = 0
CANDIDATE: Final = 1
BASE_ERRORS: Final = 0.002
MEDIAN_MS: Final = 120.0
SPREAD: Final = 0.5
"""Of the log of latencies: their p95 is 273 ms."""

EDGES_MS: Final = (
    *(75.0, 100.0, 110.0, 120.0, 130.0, 150.0, 180.0, 220.0, 240.0, 270.0, 300.0, 330.0, 360.0, 390.0, 430.0, 470.0),
    *(560.0, 680.0, 1000.0),
)
"""A short ladder: both SLOs, and steps of about a tenth around stable's p50, p95 and p99."""

LOST_CLASS_IOU: Final = 0.01
"""A class of four in an image, in 5 % of the images, and IoU 0.8."""

_LOG_EDGES: Final = np.log(np.array(EDGES_MS) / MEDIAN_MS)
_DAY_S: Final = 86_400.0
_SLOW_CORRELATION: Final = 0.2234
"""Correlation of `slower than p95` where medians have the latencies' own spread: phi(z)^2 / (q (1 - q)), q = .05."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One cell's truth. `rate` requests a second in all; `slo_ms` is the SLO's p95."""

    rate: float
    condition: Condition
    fault: Fault
    slo_ms: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What was measured in a stretch of time: [runs, 2], latencies [runs, 2, edges + 1]; `measured` [runs]."""

    requests: Floats
    errors: Floats
    latencies: Floats
    measured: NDArray[np.bool_]


class World:
    """Runs of one setting. Times are seconds since the candidate's first request; they only go forward.

    `span_s` is the time within which incidents, outages and resets begin.
    """

    def __init__(self, setting: Setting, runs: int, rng: np.random.Generator, span_s: float = 600.0) -> None:
        self.setting = setting
        self._rng = rng
        condition = setting.condition
        self._state: dict[str, Floats] = {
            "phase": rng.random(runs),
            "incident": rng.uniform(0, span_s, runs),
            "outage": rng.uniform(0, span_s, runs),
            "outage_s": np.exp(rng.uniform(*np.log(condition.outage_s or (1.0, 1.0)), runs)),
            "resets": np.sort(rng.uniform(0, span_s, (runs, condition.resets)), axis=1),
            "drift": rng.standard_normal((runs, 3, 2)) * _spreads(condition),
            "burst_errors": np.full((runs, 2), np.nan),
            "burst_slower": np.zeros((runs, 2)),
            "burst_until": np.full(runs, -np.inf),
        }
        if condition.pause_s or condition.caller or condition.large:
            # Drawn last, so that worlds without them stay as they were.
            self._state["pauses"], self._state["waves"] = rng.random((runs, 2)), rng.random((runs, 1))

    def keep(self, which: NDArray[np.bool_]) -> None:
        """Go on with these runs alone."""
        self._state = {name: value[which] for name, value in self._state.items()}

    def rate(self, now_s: float) -> Floats:
        """Return the requests a second of each run."""
        wave = np.sin(2 * np.pi * (now_s / _DAY_S + self._state["phase"]))
        found: Floats = self.setting.rate * (1 + self.setting.condition.diurnal * wave)
        return found

    def excess(self, now_s: float) -> Floats:
        """Return the requests a second that go wrong by the fault, were all sent to the candidate. [runs]"""
        return self.rate(now_s) * excess_share(self.setting, now_s)

    def count(self, now_s: float, seconds: float, weight: Floats) -> Counted:
        """Return what is counted in the next seconds, with these shares (0 to 1, [runs]) of the candidate."""
        rate = self.rate(now_s)
        errors, shift = self._surroundings(now_s, seconds)
        bins = bins_of(self.setting, now_s, shift, self._slower(now_s, seconds))
        measured, share = self._measured(now_s, seconds)
        shares = np.stack([1 - weight, weight], -1) * (rate * seconds * share)[:, None]
        latencies = self._rng.poisson(np.broadcast_to(bins, (*shares.shape, bins.shape[-1])) * shares[..., None])
        requests = latencies.sum(-1)
        failed = self._rng.binomial(requests, np.broadcast_to(errors, requests.shape))
        return Counted(requests.astype(float), failed.astype(float), latencies.astype(float), measured)

    def probes(self, now_s: float, asked: Floats, role: int) -> Floats:
        """Return how many of our own requests to a revision fail; `asked` [runs]."""
        fault, condition = self.setting.fault, self.setting.condition
        share = np.full(len(asked), BASE_ERRORS)
        if condition.incident_s:
            begun = self._state["incident"]
            share += ((now_s > begun) & (now_s < begun + condition.incident_s)) * condition.incident_errors
        share = np.minimum(share + (fault.errors_at(now_s) if role == CANDIDATE else 0.0), 1.0)
        return self._rng.binomial(asked.astype(np.int64), share).astype(float)

    def _surroundings(self, now_s: float, seconds: float) -> tuple[Floats, Floats]:
        """Return the share of errors and the log of the factor of latencies, each [runs or 1, 2]."""
        condition, fault = self.setting.condition, self.setting.fault
        errors, shift = np.full((1, 2), BASE_ERRORS), np.zeros((1, 2))
        if condition.drift or condition.own_drift:
            drift = self._drift(seconds)
            errors = errors * np.exp(drift[..., 0])
            shift = shift + drift[..., 1] / 7
        if condition.incident_s:
            begun = self._state["incident"]
            during = ((now_s + seconds > begun) & (now_s < begun + condition.incident_s))[:, None]
            errors = errors + during * condition.incident_errors
            shift = shift + during * np.log(condition.incident_slower)
        if condition.caller:
            present = _overlap(self._state["waves"], now_s, seconds, condition.caller_s, condition.caller_every_s)
            errors = errors + present * condition.caller
        errors, shift = errors + condition.bad_server * condition.bad_errors, shift.copy()
        errors[:, CANDIDATE] += fault.errors_at(now_s)
        shift[:, CANDIDATE] += np.log(fault.slower_at(now_s) * _coldness(condition, now_s, seconds))
        errors = np.minimum(errors, 1.0)
        return self._bursts(now_s, seconds, errors, shift) if condition.rho else (errors, shift)

    def _slower(self, now_s: float, seconds: float) -> list[tuple[Floats, float]]:
        """Return which shares of the requests, each [runs or 1, 2], take how many times longer by the surroundings."""
        condition, found = self.setting.condition, []
        if condition.pause_s:
            paused = _overlap(self._state["pauses"], now_s, seconds, condition.pause_s, condition.pause_every_s)
            found.append((paused, condition.pause_slower))
        if condition.large:
            wave = np.sin(2 * np.pi * ((now_s + seconds / 2) / condition.large_every_s + self._state["waves"]))
            found.append((condition.large * 0.5 * (1 + wave), condition.large_slower))
        for share, slower in ((condition.tail, condition.tail_slower), (condition.bad_server, condition.bad_slower)):
            if share:
                found.append((np.array([[share]]), slower))
        return found

    def _drift(self, seconds: float) -> Floats:
        """Wander on (Ornstein-Uhlenbeck); return the logs of errors' and latencies' factors, [runs, 2, 2]."""
        stays = np.exp(-seconds / DRIFT_MEMORY_S)
        drift, spread = self._state["drift"], _spreads(self.setting.condition)
        drift = stays * drift + self._rng.standard_normal(drift.shape) * spread * np.sqrt(1 - stays**2)
        self._state["drift"] = drift
        # Factors of errors have the mean one.
        found: Floats = drift[:, :1] + drift[:, 1:] - 0.5 * (spread[0] ** 2 + spread[1:] ** 2)
        return found

    def _bursts(self, now_s: float, seconds: float, errors: Floats, shift: Floats) -> tuple[Floats, Floats]:
        """Return errors and shift with a burst's own; of several bursts in a stretch the mean's distribution."""
        condition, state = self.setting.condition, self._state
        rho = condition.rho * min(1.0, condition.burst_s / seconds)
        runs = len(state["phase"])
        size = 1 / rho - 1
        mean = np.clip(np.broadcast_to(errors, (runs, 2)), 1e-9, 1 - 1e-9)
        over = now_s >= state["burst_until"]
        quantile = self._rng.beta(mean * size, (1 - mean) * size)
        wave = self._rng.standard_normal((runs, 2)) * SPREAD * np.sqrt(rho / _SLOW_CORRELATION)
        state["burst_errors"] = np.where(over[:, None], quantile, state["burst_errors"])
        state["burst_slower"] = np.where(over[:, None], wave, state["burst_slower"])
        state["burst_until"] = np.where(over, now_s + max(seconds, condition.burst_s) - 1e-6, state["burst_until"])
        return state["burst_errors"], shift + state["burst_slower"]

    def _measured(self, now_s: float, seconds: float) -> tuple[NDArray[np.bool_], Floats]:
        """Return which runs are measured now, and the share of the counts that is not lost by a reset. [runs]"""
        condition, state = self.setting.condition, self._state
        runs = len(state["phase"])
        measured, share = np.ones(runs, bool), np.ones(runs)
        if condition.outage_s:
            begun = state["outage"]
            measured = ~((now_s + seconds > begun) & (now_s + seconds <= begun + state["outage_s"]))
        if condition.resets:
            now = (state["resets"] >= now_s) & (state["resets"] < now_s + seconds)
            share = np.where(now.any(1), self._rng.random(runs), 1.0)
        return measured, share


def excess_share(setting: Setting, now_s: float) -> float:
    """Return the share of the candidate's requests that go wrong by its fault.

    Wrong is: failed, or slower than the SLO's p95. Of faults of quality: lost IoU, in requests.
    """
    fault = setting.fault
    if fault.of_quality:
        return LOST_CLASS_IOU if fault.lost_class else fault.lost_iou
    shift = np.array([[0.0, np.log(fault.slower_at(now_s))]])
    slow = bins_of(setting, now_s, shift)[0, :, EDGES_MS.index(setting.slo_ms) + 1 :].sum(-1)
    errors = np.array([BASE_ERRORS, min(1.0, BASE_ERRORS + fault.errors_at(now_s))])
    bad = 1 - (1 - errors) * (1 - slow)
    return float(bad[CANDIDATE] - bad[STABLE])


def bins_of(setting: Setting, now_s: float, shift: Floats, slower: Sequence[tuple[Floats, float]] = ()) -> Floats:
    """Return the probability of each latency bin, [runs or 1, 2, edges + 1]; shift [runs or 1, 2] is in logs.

    `slower` are the shares [runs or 1, 2] of the requests that take longer by the surroundings, and how many times;
    one after the other takes its share of what is left.
    """
    fault = setting.fault
    bins, tail = _lognormal(shift), fault.tail_at(now_s)
    for share, times in slower:
        bins = (1 - share[..., None]) * bins + share[..., None] * _lognormal(shift + np.log(times))
    if not tail:
        return bins
    return (1 - tail) * bins + tail * _lognormal(shift + np.array([0.0, np.log(fault.tail_slower)]))


def _overlap(phases: Floats, now_s: float, seconds: float, lasts_s: float, every_s: float) -> Floats:
    """Return which part of the next seconds lies within what lasts so long, so often; `phases` are 0 to 1."""

    def until(time_s: Floats) -> Floats:
        whole, rest = np.divmod(time_s, every_s)
        passed: Floats = whole * lasts_s + np.minimum(rest, lasts_s)
        return passed

    begins_s = now_s + phases * every_s
    found: Floats = (until(begins_s + seconds) - until(begins_s)) / seconds
    return found


def _coldness(condition: Condition, now_s: float, seconds: float) -> float:
    """Return by how much a cold candidate is slower, on average over the next seconds."""
    if now_s < 0:
        return 1.0
    cold_s = condition.cold_s
    fades = cold_s / seconds * (np.exp(-now_s / cold_s) - np.exp(-(now_s + seconds) / cold_s))
    return float(1 + (condition.cold_slower - 1) * fades)


def _spreads(condition: Condition) -> Floats:
    """Return how far wanders what both have in common, stable alone, the candidate alone; [3, 1]."""
    return np.array([[condition.drift], [condition.own_drift], [condition.own_drift]])


def _lognormal(shift: Floats) -> Floats:
    """Return the probability of each bin of latencies that are exp(shift) times the base's; one axis more."""
    below = ndtr((_LOG_EDGES - shift[..., None]) / SPREAD)
    ends = np.zeros((*shift.shape, 1))
    found: Floats = np.diff(np.concatenate([ends, below, ends + 1], -1), axis=-1)
    return found
