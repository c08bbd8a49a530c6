"""Simulated rollouts and their rehearsals by the shipped engine: each change live, live once more, and rehearsed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from bench.rollout.conditions import CONDITIONS, STEADY
from bench.rollout.faults import FAULTS, NONE
from bench.rollout.ours import PACES, PAST_S, outcomes_of
from bench.rollout.pairs import PairedWorld
from bench.rollout.quality import golden
from bench.rollout.world import Setting
from segserve_operator.api.shadow import Shadow

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

ROLLOUTS: Final = 100
RUNS: Final = 4
"""Rollouts of one setting."""
SLO_MS: Final = 390.0
HORIZON_S: Final = 2400.0
LEAD_S: Final = 10.0
"""For so long a rehearsal asks stable alone, as `segserve rollout rehearse` does by default."""
_RATES: Final = (1.0, 10.0, 100.0)
_FAULTS: Final = (
    *(NONE, "errors+5", NONE, "latency-x1.5", NONE, "errors+1", NONE, "errors+20", "latency-x2", NONE, "quality-10"),
    *("errors+100", NONE, "latency-x1.25", "tail", "delayed", NONE, "leak", "errors+2", "latency-x3", "rare-class"),
)
_CONDITIONS: Final = (
    *(STEADY, "diurnal", "image-sizes", "incident", "heavy-tail", "pauses-5s", "failing-caller", "bursts-15s"),
    *("bad-server", "outage", "cold-start", "bursts-0.02", "autocorrelation"),
)


class Verdict(StrEnum):
    """How a rollout ended within the horizon."""

    PROMOTED = "promoted"
    ROLLED_BACK = "rolled back"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Change:
    """What is rolled out where: names of a condition and of a fault, and callers' requests a second."""

    rate: float
    condition: str
    fault: str

    @property
    def live(self) -> Setting:
        """What is true when it is rolled out."""
        return Setting(self.rate, CONDITIONS[self.condition], FAULTS[self.fault], SLO_MS)

    def rehearsed(self, speed: float) -> Setting:
        """Return what is true when it is rehearsed by a clock that is `speed` times as fast.

        Requests come as recorded, those of a caller that always fails and the large images among them. What happens to
        a platform, such as an incident, is not recorded. What servers do by their own clock, such as a pause, a fault
        that begins later or a leak, takes `speed` times as long by the rehearsal's.
        """
        condition, fault = CONDITIONS[self.condition], FAULTS[self.fault]
        own = replace(
            condition,
            incident_s=0.0,
            outage_s=None,
            resets=0,
            drift=0.0,
            own_drift=0.0,
            bad_server=0.0,
            burst_s=condition.burst_s * speed,
            cold_s=condition.cold_s * speed,
            pause_s=condition.pause_s * speed,
            pause_every_s=condition.pause_every_s * speed,
        )
        late = replace(fault, onset_s=fault.onset_s * speed, leak_s=fault.leak_s * speed)
        return Setting(self.rate, own, late, SLO_MS)


@dataclass(frozen=True, slots=True)
class Compared:
    """The verdicts on one change: of a rollout, of a second one, and of rehearsals by their speed."""

    change: Change
    live: Verdict
    again: Verdict
    rehearsed: dict[float, Verdict]


def changes() -> Iterator[Change]:
    """Yield the settings, each combination of faults and conditions once before any comes twice."""
    for number in range(ROLLOUTS // RUNS):
        yield Change(
            _RATES[number % len(_RATES)], _CONDITIONS[number % len(_CONDITIONS)], _FAULTS[number % len(_FAULTS)]
        )


def compared(number: int, change: Change, speeds: tuple[float, ...]) -> list[Compared]:
    """Roll out a change `RUNS` times, again as often, and rehearse each at each speed."""
    rng = np.random.default_rng([20_261_122, number])
    policy = PACES["evidence"].model_copy(update={"shadow": Shadow()})
    # The same images are scored live and in the rehearsal.
    images = golden(FAULTS[change.fault], RUNS, policy, rng)
    live, again = (_verdicts(change.live, images, PAST_S, rng) for _ in range(2))
    rehearsed = {speed: _verdicts(change.rehearsed(speed), images, LEAD_S * speed, rng) for speed in speeds}
    return [
        Compared(change, live[run], again[run], {speed: rehearsed[speed][run] for speed in speeds})
        for run in range(RUNS)
    ]


def _verdicts(setting: Setting, images: NDArray[np.int8], past_s: float, rng: np.random.Generator) -> list[Verdict]:
    policy = PACES["evidence"].model_copy(update={"shadow": Shadow()})
    outcomes, _ = outcomes_of(PairedWorld(setting, RUNS, rng), policy, images, HORIZON_S, past_s)
    back, promoted = np.isfinite(outcomes.rolled_back_s), np.isfinite(outcomes.promoted_s)
    return [
        Verdict.ROLLED_BACK if back[run] else Verdict.PROMOTED if promoted[run] else Verdict.UNDECIDED
        for run in range(RUNS)
    ]


def to_json(found: Compared) -> dict[str, Any]:
    """Return verdicts as JSON."""
    return {
        "rate": found.change.rate,
        "condition": found.change.condition,
        "fault": found.change.fault,
        "live": found.live,
        "again": found.again,
        "rehearsed": {f"{speed:g}": verdict for speed, verdict in found.rehearsed.items()},
    }
