"""A group-sequential test of two shares: ten looks, O'Brien and Fleming's spending of alpha (Lan and DeMets 1983).

At each minute the one-sided z of pooled shares since the start is compared with the boundary of that look.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.special import ndtr, ndtri

from bench.rollout.world import CANDIDATE, STABLE

if TYPE_CHECKING:
    from bench.rollout.world import Floats

ALPHA: Final = 0.05
INTERVAL_S: Final = 60.0
_PATHS: Final = 400_000


def spent(fraction: Floats, alpha: float) -> Floats:
    """Return how much of a one-sided alpha is spent at a fraction of the information."""
    found: Floats = 2 * (1 - ndtr(ndtri(1 - alpha / 2) / np.sqrt(fraction)))
    return found


@cache
def boundaries(fractions: tuple[float, ...], alpha: float) -> tuple[float, ...]:
    """Return the bound of z at each look, from 400,000 simulated paths; inf where next to nothing is spent yet."""
    rng = np.random.default_rng(1983)
    t = np.array(fractions)
    spend = np.diff(np.concatenate([[0.0], spent(t, alpha)]))
    path, before, bounds = np.zeros(_PATHS), 0.0, []
    for now, part in zip(t, spend, strict=True):
        path = path + rng.standard_normal(len(path)) * np.sqrt(now - before)
        z, ends = path / np.sqrt(now), round(part * _PATHS)
        bound = float(np.partition(z, len(z) - ends)[len(z) - ends]) if ends else float("inf")
        path, before = path[z < bound], now
        bounds.append(bound)
    return tuple(bounds)


def z_of(bad: Floats, requests: Floats) -> Floats:
    """Return z of the candidate's share being larger, 0 where it cannot be told; counts [runs, looks, 2]."""
    n_c, n_s = requests[..., CANDIDATE], requests[..., STABLE]
    pooled = bad.sum(-1) / np.maximum(requests.sum(-1), 1)
    variance = pooled * (1 - pooled) * (1 / np.maximum(n_c, 1) + 1 / np.maximum(n_s, 1))
    d = bad[..., CANDIDATE] / np.maximum(n_c, 1) - bad[..., STABLE] / np.maximum(n_s, 1)
    found: Floats = np.where((variance > 0) & (n_c > 0) & (n_s > 0), d / np.sqrt(np.maximum(variance, 1e-300)), 0.0)
    return found


def rolled_back_s(zs: list[Floats], bounds: tuple[float, ...], scale: float = 1.0) -> Floats:
    """Return when each run's first z passes its look's bound times `scale`, inf where none does; each [runs, looks]."""
    limit = np.array(bounds) * scale
    proved = np.logical_or.reduce([z >= limit for z in zs])
    found: Floats = np.where(proved.any(1), (proved.argmax(1) + 1) * INTERVAL_S, np.inf)
    return found
