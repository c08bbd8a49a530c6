"""Values that a process keeps between passes: the SLO and the self-test of each model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segserve_operator.core.rollout.counters import HungRequests, Sample


@dataclass(frozen=True, slots=True)
class Minute:
    """Requests of one minute, and by objective ("error", or a percentile of the SLO) the number that missed it."""

    minute: int
    requests: int
    broken: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SloWatch:
    """The last hour of one model's stable group."""

    group: str = ""
    measured_s: float = float("-inf")
    seen: Sample = field(default_factory=dict)
    hung: HungRequests = field(default_factory=HungRequests)
    minutes: tuple[Minute, ...] = ()


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Comparison of the two halves of one model's stable group.

    `rounds` have ended, `false_alarms` of them with a breach. `dispersion` is the variance of stable's failures divided
    by that of independent ones.
    """

    group: str = ""
    began_s: float = 0.0
    measured_s: float = float("-inf")
    seen: Sample = field(default_factory=dict)
    hung: HungRequests = field(default_factory=HungRequests)
    gates: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0
    false_alarms: int = 0
    dispersion: float = 1.0
