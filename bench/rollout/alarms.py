"""How often the gate `slices` finds a difference where there is none: `python -m bench.rollout.alarms`.

The figures go to bench/out/rollout_alarms.json, and the tables into bench/out/decisions.md. `--report` only writes
the tables anew.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.platform import ROOT
from bench.rollout.outcomes import wilson
from bench.rollout.report import markdown_table, put_into_document
from bench.rollout.running import minutes_told, run_missing
from segserve_operator.api.rollout_policy import RolloutPolicy, SlicesGate, Slo
from segserve_operator.core.evidence import EvidenceWindow, Pairs, SlicePairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.statistics.past import StablePast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from segserve_operator.core.evidence import Bools, Floats

OUT: Final = ROOT / "bench/out/rollout_alarms.json"
ROLLOUTS: Final = 500
SHADOW_S: Final = 1800
WATCHED_S: Final = 540
"""For which stable was watched before a Shadow that learns from its past: as short as Shadow by default takes it."""
READ_S: Final = 15
LEVEL: Final = 0.01
BASE_ERRORS: Final = 0.002
BURST_S: Final = 30
PART: Final = 0.05
"""Of half minutes in which a revision has a burst: one in ten minutes, on average."""
SEED: Final = 20_261_122


@dataclass(frozen=True, slots=True)
class FailureBursts:
    """Each revision by itself fails this share of its requests in one of twenty half minutes, by chance."""

    says: str
    share: float = 0.0

    def failing(self, rng: np.random.Generator, runs: int, seconds: int) -> Floats:
        """Return the shares [half minutes, runs, 2] that fail beside the usual ones."""
        return np.where(rng.random((seconds // BURST_S, runs, 2)) < PART, self.share, 0.0)


STEADY: Final = FailureBursts("steady traffic")
HALF: Final = FailureBursts("half of all requests fail for 30 s, every 10 min on average", 0.5)
ALL: Final = FailureBursts("all requests fail for 30 s, every 10 min on average", 1.0)


@dataclass(frozen=True, slots=True)
class HealthyShadow:
    """A Shadow of half an hour of a healthy candidate, with so many pairs a second in so many slices.

    One that `learns` knows stable's past of nine minutes at first, and what is added to it meanwhile: all requests of
    callers, of which half are copied.
    """

    bursts: FailureBursts
    slices: int
    pairs_per_s: float
    learns: bool = False

    @property
    def name(self) -> str:
        """Its name in the file."""
        return f"slices-{self.bursts.share:g}-{self.slices}-{self.pairs_per_s:g}{'-learns' * self.learns}"

    def figures(self) -> dict[str, Any]:
        """Return how many of the candidates are accused at any look."""
        rng = np.random.default_rng(SEED)
        policy = RolloutPolicy().model_copy(update={"gates": (SlicesGate(),)})
        gate, shape = measured_gates(policy, Slo())["slices"], (ROLLOUTS,)
        names = tuple(f"camera-{number}" for number in range(self.slices))
        past, watched_s = StablePast.none(shape=shape), WATCHED_S * self.learns
        state, accused = gate.start(shape, past), np.zeros(ROLLOUTS, bool)
        failing = self.bursts.failing(rng, ROLLOUTS, watched_s + SHADOW_S)
        nothing = EvidenceWindow.nothing(shape)
        for now_s in range(-watched_s, SHADOW_S, 5):
            shares = np.minimum(failing[(watched_s + now_s) // BURST_S] + BASE_ERRORS, 1.0)
            if self.learns and now_s % READ_S == 0:
                requests = rng.poisson(READ_S * 2 * self.pairs_per_s, shape)
                failed = rng.binomial(requests, shares[:, 0])
                counts = np.stack([requests - failed, failed], -1).astype(float)
                past = replace(past, errors=past.errors.added(counts, np.full(shape, float(READ_S))))
                state = gate.informed(state, past)
            if now_s < 0:
                continue
            window = _of_slices(nothing, names, _pairs(rng, shares, self.slices, 5.0 * self.pairs_per_s))
            state = gate.update(state, window)
            accused |= gate.judge(state).breach >= -np.log(LEVEL)
        return {"runs": ROLLOUTS, "accused": _share(accused)}


def _pairs(rng: np.random.Generator, shares: Floats, slices: int, expected: float) -> Floats:
    """Return pairs [runs, slices, 2, 2] by whether stable, and the candidate, failed."""
    stable, candidate = (shares[:, None, role] for role in (0, 1))
    kinds = ((1 - stable) * (1 - candidate), (1 - stable) * candidate, stable * (1 - candidate), stable * candidate)
    counts = rng.poisson(np.stack(kinds, -1) * np.full((slices, 1), expected / slices))
    failed: Floats = counts.reshape(len(shares), slices, 2, 2).astype(float)
    return failed


def _of_slices(nothing: EvidenceWindow, names: tuple[str, ...], failed: Floats) -> EvidenceWindow:
    """Return the window of 5 s of these pairs."""
    shape = failed.shape[:1]
    slices = replace(SlicePairs.nothing(names, shape), failed=failed)
    pairs = replace(Pairs.nothing(shape), failed=failed.sum(-3), slices=slices)
    return replace(nothing, seconds=np.full(shape, 5.0), pairs=pairs)


def _share(which: Bools) -> list[float]:
    """Return the share, with its interval."""
    return [float(which.mean()), *wilson(int(which.sum()), len(which))]


SHADOWS: Final = tuple(
    HealthyShadow(bursts, slices, pairs_per_s)
    for bursts in (STEADY, HALF, ALL)
    for slices in (1, 3, 10)
    for pairs_per_s in (5.0, 20.0)
) + tuple(HealthyShadow(bursts, slices, 5.0, learns=True) for bursts in (STEADY, HALF, ALL) for slices in (1, 3, 10))


def _named() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    yield from ((each.name, each.figures) for each in SHADOWS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing until the time is over, and write the tables."""
    found = run_missing(_named(), OUT, minutes_told("python -m bench.rollout.alarms", __doc__, arguments))
    put_into_document({"alarms of slices": slices_table(found)})


def slices_table(found: Mapping[str, Any]) -> str:
    """Return how often a healthy candidate was accused of being worse in a slice."""
    rows = [
        (
            each.bursts.says,
            str(each.slices),
            f"{each.pairs_per_s:g}",
            "nine minutes at first" if each.learns else "unknown",
            _shown(mine["accused"]),
        )
        for each in SHADOWS
        if (mine := found.get(each.name))
    ]
    return markdown_table(("traffic", "slices", "pairs a second", "stable's past", "accused, %"), rows)


def _shown(share: Sequence[float]) -> str:
    middle, low, high = (f"{round(100 * each, 2):g}" for each in share)
    return f"{middle} ({low} to {high})"


if __name__ == "__main__":
    main()
