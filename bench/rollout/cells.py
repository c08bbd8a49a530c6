"""The cells of the benchmark: which there are, which are chosen by default, and what one amounts to."""

from __future__ import annotations

import hashlib
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.platform import ROOT
from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.ours import PACES, our_outcomes
from bench.rollout.outcomes import Outcomes
from bench.rollout.peers import PEERS, Tuning, peers_outcomes
from bench.rollout.quality import golden
from bench.rollout.world import Setting, World

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

RATES: Final = (0.1, 1.0, 10.0, 100.0, 1000.0)
SLO_MS: Final = 390.0
TIGHT_SLO_MS: Final = 300.0
"""Stable's p95 is 273 ms: reasonable slack, and little."""

DRAWN_NAME: Final = "drawn-"
"""With which the names of worlds drawn at random begin; they are run at these rates, and without faults."""
DRAWN_RATES: Final = (10.0, 100.0)

HEALTHY_RUNS: Final = 10_000
FAULTY_RUNS: Final = 2_000
BATCH: Final = 2_000
HORIZON_S: Final = 1800.0
SLOW_HORIZON_S: Final = 7200.0
_CORE: Final = ROOT / "operator/src/segserve_operator"
_WORLD: Final = ("conditions", "faults", "world", "series", "outcomes")


@dataclass(frozen=True, slots=True)
class Cell:
    """One combination; `condition` and `fault` are names."""

    rate: float
    condition: str = STEADY
    fault: str = NONE
    slo_ms: float = SLO_MS

    @property
    def name(self) -> str:
        """The cell's file name, less its ending."""
        return f"{self.rate:g}-{self.condition}-{self.fault}-{self.slo_ms:g}"

    @property
    def runs(self) -> int:
        """How many rollouts are simulated at least."""
        return HEALTHY_RUNS if self.fault == NONE else FAULTY_RUNS

    @property
    def horizon_s(self) -> float:
        """Until when bad requests count; a tenth of a request a second needs longer for anything."""
        return SLOW_HORIZON_S if self.rate < 1 else HORIZON_S

    @property
    def setting(self) -> Setting:
        """What is true in it."""
        return Setting(self.rate, CONDITIONS[self.condition], FAULTS[self.fault], self.slo_ms)


def every_cell() -> list[Cell]:
    """Return all cells, and those with little slack in steady traffic."""
    named = [name for name in CONDITIONS if not name.startswith(DRAWN_NAME)]
    wide = [Cell(rate, condition, fault) for rate in RATES for condition in named for fault in FAULTS]
    wide += [Cell(rate, name) for rate in DRAWN_RATES for name in CONDITIONS if name.startswith(DRAWN_NAME)]
    return wide + [Cell(rate, STEADY, fault, TIGHT_SLO_MS) for rate in RATES for fault in FAULTS]


def chosen_cells() -> list[Cell]:
    """Return what runs by default: all conditions healthy, all faults in steady traffic, and some of the rest."""
    return list(dict.fromkeys(_chosen()))


def _chosen() -> Iterator[Cell]:
    for rate in sorted(RATES, key=lambda rate: abs(math.log10(rate) - 1)):  # what most services have comes first
        yield from (Cell(rate, name) for name in CONDITIONS if not name.startswith(DRAWN_NAME) or rate in DRAWN_RATES)
        yield from (Cell(rate, STEADY, fault) for fault in FAULTS)
    for rate in (10.0, 100.0):
        for fault in (NONE, "errors+5", "latency-x1.25"):
            yield Cell(rate, STEADY, fault, TIGHT_SLO_MS)
        for condition in ("diurnal", "incident", "outage", "bursts-0.02", "autocorrelation", "pauses", "bursts-30s"):
            yield from (Cell(rate, condition, fault) for fault in ("errors+1", "errors+5", "latency-x1.25"))


def peers_part(cell: Cell, tuned: Tuning, runs: int) -> dict[str, Any]:
    """Return the figures of all peers, documented and tuned."""
    began_s = time.perf_counter()
    tunings = {"documented": Tuning.documented(cell.slo_ms), "tuned": tuned}
    parts = []
    for seeds, count in _batches(cell, "peers", runs):
        parts.append(peers_outcomes(_worlds(cell, count, seeds), tunings, cell.horizon_s))
    found = {kind: {peer: _figures(cell, [part[kind][peer] for part in parts]) for peer in PEERS} for kind in tunings}
    return {**found, "seconds": round(time.perf_counter() - began_s, 1)}


def our_part(cell: Cell, runs: int, paces: Collection[str] = tuple(PACES)) -> dict[str, Any]:
    """Return the figures of the shipped engine, by pace."""
    began_s = time.perf_counter()
    found: dict[str, Any] = {}
    span_s = 2400.0 if cell.rate < 1 else 600.0
    for pace in paces:
        policy, parts = PACES[pace], []
        for seeds, count in _batches(cell, "ours", runs):
            rng = np.random.default_rng(seeds)
            images = golden(cell.setting.fault, count, policy, rng)
            parts.append(our_outcomes(World(cell.setting, count, rng, span_s), pace, images, cell.horizon_s))
        found[pace] = _figures(cell, parts)
    return {**found, "seconds": round(time.perf_counter() - began_s, 1)}


def version_of(part: str) -> str:
    """Return the digest of the code that a part's figures depend on."""
    here = ROOT / "bench/rollout"
    files = [here / f"{name}.py" for name in _WORLD]
    if part == "peers":
        files += [here / "peers.py", here / "tuning.py", *sorted((here / "rules").glob("*.py"))]
    else:
        files += [here / "ours.py", here / "quality.py", *_engine_files()]
    numbers = repr((HEALTHY_RUNS, FAULTY_RUNS, BATCH, HORIZON_S, SLOW_HORIZON_S)).encode()
    digest = hashlib.sha256(numbers + b"".join(path.read_bytes() for path in files))
    return digest.hexdigest()[:12]


def _engine_files() -> list[Path]:
    single = ("rollout/engine", "rollout/phases", "rollout/policy", "evidence")
    folders = [path for name in ("gates", "statistics") for path in sorted((_CORE / "core" / name).glob("*.py"))]
    return [_CORE / "api/rollout_policy.py", *(_CORE / f"core/{name}.py" for name in single), *folders]


def _batches(cell: Cell, part: str, runs: int) -> Iterator[tuple[list[int], int]]:
    """Yield seeds and sizes; the same cell has the same seeds always."""
    left = runs
    key = int.from_bytes(hashlib.sha256(f"{part} {cell.name}".encode()).digest()[:8], "big")
    number = 0
    while left > 0:
        yield [key, number], min(left, BATCH)
        left -= BATCH
        number += 1


def _worlds(cell: Cell, runs: int, seeds: list[int]) -> Callable[[], World]:
    """Return what makes fresh worlds, one after the other."""
    rng = np.random.default_rng(seeds)
    return lambda: World(cell.setting, runs, rng)


def _figures(cell: Cell, parts: list[Outcomes]) -> Mapping[str, Any]:
    return Outcomes.joined(parts).figures(FAULTS[cell.fault].onset_s)
