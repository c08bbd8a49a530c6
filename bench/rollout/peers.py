"""The peers' rules on simulated rollouts: each at its documented example, or with one number tuned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from bench.rollout.outcomes import Outcomes, accounted
from bench.rollout.rules import alarm, argo, burn_rate, flagger, group_sequential, kayenta, msprt
from bench.rollout.series import A_MINUTE, MINUTES, SCRAPE_S, WEIGHTS, scraped
from bench.rollout.world import CANDIDATE, STABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from bench.rollout.series import Series
    from bench.rollout.world import Floats, World

SLO_ERRORS: Final = 0.01
_MINUTE_S: Final = SCRAPE_S * A_MINUTE
_INFORMATION: Final = tuple(np.cumsum(WEIGHTS) / np.sum(WEIGHTS))
"""How much of the candidate's requests have come by each minute of the schedule."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a metric of one minute may be. `no_data_fails`: a minute without requests is a miss, as documented."""

    errors: float
    p95_ms: float
    no_data_fails: bool = True

    def missed(self, minutes: Series) -> NDArray[np.bool_]:
        """Return which measurements fail, [runs, metrics, minutes]."""
        values = np.stack([minutes.error_share(), minutes.p95_ms()], 1)
        above = values > np.array([self.errors, self.p95_ms])[:, None]
        return above | (np.isnan(values) & self.no_data_fails)


@dataclass(frozen=True, slots=True)
class Tuning:
    """One number for each rule; the rules that compare with limits have a pair each."""

    limits: Mapping[str, Limits]
    kayenta: float = kayenta.TOLERANCE
    burn_rate: float = burn_rate.FACTOR
    msprt: float = -float(np.log(msprt.ALPHA / 2))
    group_sequential: float = 1.0
    no_data_fails: bool = True

    @classmethod
    def documented(cls, slo_ms: float) -> Tuning:
        """Return the peers' own examples, with the SLO as their limits."""
        return cls({name: Limits(SLO_ERRORS, slo_ms) for name in LIMITED})


LIMITED: Final = ("Flagger", "Argo Rollouts", "one-minute alarm")


def run_flagger(world: World, limits: Limits) -> tuple[flagger.Canaries, Floats]:
    """Run Flagger, which holds the weight when a check fails; return its canaries and their weights by tick."""
    canaries = flagger.Canaries.begun(len(world.rate(0.0)))
    weights = []
    for number in range(flagger.LONGEST_TICKS):
        missed = _flagger_check(world, limits, canaries.weight, number * _MINUTE_S)
        weights.append(np.where(canaries.running, canaries.weight, np.where(np.isfinite(canaries.promoted_s), 1.0, 0)))
        canaries = flagger.tick(canaries, missed, (number + 1) * _MINUTE_S)
    return canaries, np.stack(weights, 1)


def _flagger_check(world: World, limits: Limits, weight: Floats, begin_s: float) -> NDArray[np.bool_]:
    minute = scraped(world, lambda _: weight, begin_s, A_MINUTE)
    found = limits.missed(minute.windows(A_MINUTE))[..., 0].any(1)
    # A provider that does not answer is a miss whatever the query makes of no data.
    return found | ~minute.measured[:, -1]


def argo_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when Argo Rollouts aborts."""
    failed = tuning.limits["Argo Rollouts"].missed(series.windows(A_MINUTE))
    down = ~series.measured
    failed &= ~down[:, None, A_MINUTE - 1 :: A_MINUTE]  # errors are counted by themselves
    return argo.rolled_back_s(failed, down, SCRAPE_S)


def kayenta_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when Kayenta's judge fails the canary."""
    metrics = [
        (series.error_share(), series.error_share(STABLE)),
        (series.p95_ms(), series.p95_ms(STABLE)),
    ]
    return kayenta.rolled_back_s(metrics, SCRAPE_S, tuning.kayenta, no_data_fails=tuning.no_data_fails)


def alarm_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when the alarm goes off; no data is no alarm."""
    limits = tuning.limits["one-minute alarm"]
    minutes = series.windows(A_MINUTE)
    with np.errstate(invalid="ignore"):
        above = (minutes.error_share() > limits.errors) | (minutes.p95_ms() > limits.p95_ms)
    return alarm.rolled_back_s(above)


def burn_rate_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when the error budget burns too fast."""
    errors, requests = series.errors[..., CANDIDATE], series.requests[..., CANDIDATE]
    return burn_rate.rolled_back_s(errors, requests, SCRAPE_S, tuning.burn_rate)


def msprt_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when one of the two tests, errors and slow requests, has its proof."""
    total = series.running()
    bad = (total.errors, total.slower(slo_ms))
    ratios = [msprt.log_ratio(each, total.requests, tau) for each, tau in zip(bad, msprt.TAUS, strict=True)]
    return msprt.rolled_back_s(ratios, SCRAPE_S, tuning.msprt)


def group_sequential_s(series: Series, tuning: Tuning, slo_ms: float) -> Floats:
    """Return when one of the two tests, errors and slow requests, passes its boundary."""
    total = series.windows(A_MINUTE).running()
    zs = [group_sequential.z_of(each, total.requests) for each in (total.errors, total.slower(slo_ms))]
    bounds = group_sequential.boundaries(_INFORMATION, group_sequential.ALPHA / 2)
    return group_sequential.rolled_back_s(zs, bounds, tuning.group_sequential)


RULES: Final[Mapping[str, Callable[[Series, Tuning, float], Floats]]] = {
    "Argo Rollouts": argo_s,
    "Kayenta": kayenta_s,
    "one-minute alarm": alarm_s,
    "burn rate": burn_rate_s,
    "mSPRT": msprt_s,
    "group-sequential": group_sequential_s,
}
"""Those that follow the schedule whatever they see, until they end it."""

PEERS: Final = ("Flagger", *RULES)


def peers_outcomes(
    world: Callable[[], World], tunings: Mapping[str, Tuning], horizon_s: float
) -> dict[str, dict[str, Outcomes]]:
    """Return what each peer does with a fresh world's runs, by tuning and by name."""
    here = world()
    slo_ms = here.setting.slo_ms
    grid_s = np.arange(0.0, horizon_s, SCRAPE_S)
    excess = np.stack([here.excess(now_s) * SCRAPE_S for now_s in grid_s], 1)
    series = scraped(here)
    schedule = np.ones(len(grid_s))
    schedule[: MINUTES * A_MINUTE] = np.repeat(WEIGHTS, A_MINUTE)
    found: dict[str, dict[str, Outcomes]] = {}
    for name, tuning in tunings.items():
        by_peer = {}
        flagger_world = world()
        flagger_excess = np.stack([flagger_world.excess(now_s) * SCRAPE_S for now_s in grid_s], 1)
        canaries, weights = run_flagger(flagger_world, tuning.limits["Flagger"])
        by_peer["Flagger"] = _flagger_outcomes(canaries, weights, flagger_excess)
        for peer, rule in RULES.items():
            ended_s = rule(series, tuning, slo_ms)
            promoted_s = np.where(np.isinf(ended_s), MINUTES * _MINUTE_S, np.inf)
            by_peer[peer] = Outcomes(ended_s, promoted_s, accounted(excess, schedule, ended_s, SCRAPE_S))
        found[name] = by_peer
    return found


def _flagger_outcomes(canaries: flagger.Canaries, weights: Floats, excess: Floats) -> Outcomes:
    by_scrape = np.repeat(weights, A_MINUTE, axis=1)[:, : excess.shape[1]]
    rest = np.isfinite(canaries.promoted_s)[:, None] * np.ones(excess.shape[1] - by_scrape.shape[1])
    spent = (excess * np.concatenate([by_scrape, rest], 1)).sum(1)
    return Outcomes(canaries.rolled_back_s, canaries.promoted_s, spent)
