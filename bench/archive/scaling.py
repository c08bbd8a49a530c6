"""Autoscaling simulated beside HPA's and KEDA's algorithms: `python -m bench.archive.scaling`.

Four scenarios, in seconds: a day of eight hours, bursts to ten times the rate in 5 s, flash crowds, and servers that
are lost. Servers work on several requests at a time and share one queue; what would wait longer than the gateway lets
it is refused. In a queue that is stable the share of requests that wait too long follows from Sakasegawa's
approximation (1977), else from the queue itself. Each algorithm has the same number of settings: targets times delays
before fewer servers; the picture has those that no other setting of the same algorithm beats. The figures go to
bench/out/scaling.json, the plot to docs/images/scaling.svg, and the table is printed (some seconds of a core for each
seed and algorithm).
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.platform import ROOT
from bench.rollout.report import markdown_table
from bench.archive.scaling_peers import Autoscaler, Hpa, Keda, Seen
from bench.svg import BLUE, GREY, ORANGE, plot_style, save_svg
from segserve_operator.core.scaling import (
    LoadHistory,
    LoadSample,
    ScalingPolicy,
    ScalingTarget,
    decide,
    observed,
)

OUT: Final = ROOT / "bench/out/scaling.json"
PLOT: Final = ROOT / "docs/images/scaling.svg"
SLOTS: Final = 4
SERVICE_S: Final = 0.1
SLO_S: Final = 0.5
LONGEST_WAIT_S: Final = 10.0
MAXIMUM: Final = 50
STARTUP_S: Final = (35.0, 60.0)
LOADS: Final = (0.45, 0.6, 0.75, 0.85, 0.95)
"""Targets, as a part of what a server can do."""
DELAYS_S: Final = (0, 60, 300)
"""Delays before fewer servers."""

LEAST_PERCENT: Final = 0.01
"""Misses below are not told apart."""
FIRST_SEED: Final = 200

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests per second, and the share of servers that is lost in each second."""

    rates: Floats
    lost: Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run comes to: server-hours, and the percentage of requests that missed the SLO or were refused."""

    server_hours: float
    missed_percent: float


@dataclass(slots=True)
class Ours:
    """segserve's decision, each second, from the counts of that second."""

    policy: ScalingPolicy
    history: LoadHistory = field(default_factory=LoadHistory)

    def step(self, seen: Seen) -> int:
        """Decide each second."""
        self.history = observed(
            self.history, LoadSample(1.0 + seen.at_s, seen.arrived, seen.in_flight, seen.ready), self.policy.target
        )
        self.history, decision = decide(self.history, self.policy, seen.desired)
        return decision.desired


def ours(load: float, delay_s: int, *, capacity: float) -> Ours:
    """Return our decision with a target of so much of a server's capacity."""
    return Ours(ScalingPolicy(1, MAXIMUM, ScalingTarget(load * capacity), float(delay_s)))


ALGORITHMS: Final[Mapping[str, Callable[[float, int], Autoscaler]]] = {
    "segserve": partial(ours, capacity=SLOTS),
    "HPA": lambda load, delay_s: Hpa(load * SLOTS, delay_s, MAXIMUM),
    "KEDA": lambda load, delay_s: Keda(load * SLOTS / SERVICE_S, delay_s, MAXIMUM),
}
COLOURS: Final = {"segserve": BLUE, "HPA": GREY, "KEDA": ORANGE}


def scenarios(seed: int) -> dict[str, Scenario]:
    """Return the scenarios, drawn from a seed."""
    rng = np.random.default_rng(seed)
    day = _day(8, rng)
    losses = _day(3, rng)
    return {
        "day": Scenario(day, np.zeros(len(day))),
        "bursts": Scenario(bursts := _bursts(2, rng), np.zeros(len(bursts))),
        "flash crowds": Scenario(crowds := _crowds(2, rng), np.zeros(len(crowds))),
        "spot losses": Scenario(losses, _losses(len(losses), rng)),
    }


def _noise(seconds: int, rng: np.random.Generator) -> Floats:
    """Return factors around 1 that are correlated over a minute."""
    steps = rng.normal(0.0, 0.1 * math.sqrt(2 / 60), seconds)
    noise = np.zeros(seconds)
    for second in range(1, seconds):
        noise[second] = noise[second - 1] * (1 - 1 / 60) + steps[second]
    return np.exp(noise)


def _day(hours: int, rng: np.random.Generator) -> Floats:
    at = np.arange(hours * 3600) / (hours * 3600)
    shape = 0.5 - 0.5 * np.cos(2 * np.pi * at)
    return (50 + 750 * shape**1.5) * _noise(len(at), rng)


def _bursts(hours: int, rng: np.random.Generator) -> Floats:
    rates = np.full(hours * 3600, 60.0)
    at = 600
    while at < len(rates) - 600:
        length = int(rng.uniform(60, 300))
        rates[at : at + 5] = np.linspace(60, 600, 5)
        rates[at + 5 : at + length] = 600
        at += length + int(rng.uniform(300, 1200))
    return rates * _noise(len(rates), rng)


def _crowds(hours: int, rng: np.random.Generator) -> Floats:
    seconds = np.arange(hours * 3600)
    rates = np.full(len(seconds), 40.0)
    for start in (900, 4000):
        since = seconds - start
        rates += np.where(since < 0, 0.0, 800 * np.minimum(since / 60, 1.0) * np.exp(-np.maximum(since - 60, 0) / 600))
    return rates * _noise(len(seconds), rng)


def _losses(seconds: int, rng: np.random.Generator) -> Floats:
    """Return the share of servers lost in each second: one in an hour of each, and a third at once every half hour."""
    lost = np.full(seconds, 1 / 3600)
    lost[rng.integers(0, seconds, seconds // 1800)] = 1 / 3
    return lost


def run(autoscaler: Autoscaler, scenario: Scenario, seed: int) -> Outcome:
    """Simulate one autoscaler in one scenario."""
    rng = np.random.default_rng(seed)
    arrivals = rng.poisson(scenario.rates).astype(float)
    drawn = rng.uniform(0.0, 1.0, len(arrivals))
    startups = rng.uniform(*STARTUP_S, len(arrivals))
    ready, queue, desired, missed, hours, in_flight = 2, 0.0, 2, 0.0, 0.0, 0.0
    starting: list[float] = []
    for second, arrived in enumerate(arrivals):
        if starting:
            ready += sum(end <= second for end in starting)
            starting = [end for end in starting if end > second]
        share = scenario.lost[second]
        # With few servers the share is the probability of losing one.
        gone = min(int(share * ready + drawn[second]), ready) if share else 0
        ready -= gone
        in_flight, queue, late = _serve(queue, arrived, ready)
        missed += late
        desired = autoscaler.step(Seen(second, arrived, in_flight, ready, len(starting), desired))
        while ready + len(starting) < desired:
            starting.append(second + startups[(second + len(starting)) % len(startups)])
        while ready + len(starting) > desired:
            if starting:
                starting.pop()
            else:
                ready -= 1
        hours += (ready + len(starting)) / 3600
    return Outcome(hours, 100 * missed / arrivals.sum())


def _serve(queue: float, arrived: float, ready: int) -> tuple[float, float, float]:
    """Return what is in flight, what waits after this second, and how many of those that arrived miss the SLO."""
    slots = ready * SLOTS
    capacity = slots / SERVICE_S
    waiting = queue + arrived - capacity
    if slots == 0:
        kept = min(waiting, 100.0)
        return kept, kept, arrived
    if queue == 0.0 and arrived < 0.99 * capacity:
        load = arrived / capacity
        exponent = math.sqrt(2 * (slots + 1)) - 1
        waits = load**exponent
        late = waits * math.exp(-(1 - load) * slots * (SLO_S - SERVICE_S) / SERVICE_S)
        return arrived * SERVICE_S + waits * load / (1 - load), 0.0, late * arrived
    longest = capacity * LONGEST_WAIT_S
    refused = max(waiting - longest, 0.0)
    left = max(min(waiting, longest), 0.0)
    # The wait grows or falls linearly within the second.
    before_s, after_s, slo_s = queue / capacity, left / capacity, SLO_S - SERVICE_S
    low, high = min(before_s, after_s), max(before_s, after_s)
    share = 1.0 if low >= slo_s else 0.0 if high <= slo_s else (high - slo_s) / (high - low)
    taken = max(arrived - refused, 0.0)
    return min(slots, queue + arrived) + left, left, min(refused + share * taken, arrived)


def results(seeds: Iterable[int]) -> dict[str, dict[str, list[tuple[float, int, Outcome]]]]:
    """Return by scenario and algorithm each setting with its mean outcome over the seeds."""
    by_seed = {seed: scenarios(seed) for seed in seeds}
    found: dict[str, dict[str, list[tuple[float, int, Outcome]]]] = {}
    for name in next(iter(by_seed.values())):
        for algorithm, make in ALGORITHMS.items():
            for load in LOADS:
                for delay_s in DELAYS_S:
                    outcomes = [run(make(load, delay_s), each[name], seed) for seed, each in by_seed.items()]
                    mean = Outcome(
                        float(np.mean([each.server_hours for each in outcomes])),
                        float(np.mean([each.missed_percent for each in outcomes])),
                    )
                    found.setdefault(name, {}).setdefault(algorithm, []).append((load, delay_s, mean))
    return found


def front(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Return the outcomes that no other beats in both figures, by server-hours."""
    best, kept = math.inf, []
    for outcome in sorted(outcomes, key=lambda each: (each.server_hours, each.missed_percent)):
        if outcome.missed_percent < best:
            best = outcome.missed_percent
            kept.append(outcome)
    return kept


def at_cost(outcomes: Iterable[Outcome], server_hours: float) -> float:
    """Return the fewest misses, in percent, for at most so many server-hours."""
    return min((each.missed_percent for each in outcomes if each.server_hours <= server_hours), default=math.inf)


def main(arguments: Sequence[str] | None = None) -> None:
    """Simulate, write the figures and the picture, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=1, help="Number of days, each with other arrivals.")
    parser.add_argument("--out", type=Path, default=OUT, help="File for the figures.")
    options = parser.parse_args(arguments)
    found = results(range(FIRST_SEED, FIRST_SEED + options.seeds))
    plain = {
        name: {
            algorithm: [[load, delay_s, each.server_hours, each.missed_percent] for load, delay_s, each in settings]
            for algorithm, settings in of.items()
        }
        for name, of in found.items()
    }
    options.out.write_text(json.dumps(plain, indent=1) + "\n")
    fronts = {name: {key: front(each[2] for each in of[key]) for key in of} for name, of in found.items()}
    draw(fronts, PLOT)
    print(table(fronts))


def table(fronts: Mapping[str, Mapping[str, Sequence[Outcome]]]) -> str:
    """Return the misses of each algorithm at equal costs."""
    rows = []
    for name, of in fronts.items():
        for share in (0.25, 0.5, 0.75):
            # Costs at which each has a setting.
            least = max(min(each.server_hours for each in outcomes) for outcomes in of.values())
            most = max(max(each.server_hours for each in outcomes) for outcomes in of.values())
            hours = least + share**2 * (most - least)
            rows.append((name, f"{hours:.0f}", *(_percent(at_cost(of[key], hours)) for key in ALGORITHMS)))
    return markdown_table(("scenario", "server-hours", *ALGORITHMS), rows)


def _percent(number: float) -> str:
    return f"{number:.2f} %" if number >= LEAST_PERCENT else f"< {LEAST_PERCENT} %"


def draw(fronts: Mapping[str, Mapping[str, Sequence[Outcome]]], path: Path) -> None:
    """Draw the settings of each algorithm that no other of its own beats."""
    # Tests import this module for what it measures.
    import matplotlib.pyplot as plt

    with plot_style():
        figure, axes = plt.subplots(2, 2, figsize=(8.0, 6.0))
        for axis, (name, of) in zip(axes.flat, fronts.items(), strict=True):
            for algorithm, outcomes in of.items():
                hours = [each.server_hours for each in outcomes]
                missed = [max(each.missed_percent, LEAST_PERCENT) for each in outcomes]
                axis.plot(hours, missed, marker="o", markersize=3, color=COLOURS[algorithm], label=algorithm)
            axis.set(title=name, xlabel="server-hours", ylabel="requests that missed the SLO, %", yscale="log")
        axes.flat[0].legend()
        figure.tight_layout()
        save_svg(figure, path)
        plt.close(figure)


if __name__ == "__main__":
    main()
