"""What surrounds a rollout and is nobody's fault: it acts on stable and candidate alike, or on none for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Condition:
    """What happens besides steady traffic; everything is off by default.

    diurnal: amplitude of a day's wave of the request rate, each run at an hour of its own.
    incident_errors, incident_slower, incident_s: an incident of both revisions: added share of errors, factor of
    latency, duration.
    outage_s: nothing is measured for so long (log-uniform between the two).
    resets: so often all counters begin anew.
    rho, burst_s: failures come in bursts: the correlation of two requests of the same revision within so many seconds.
    drift, own_drift: standard deviation of the log of the error rate, of both revisions and of each alone; it wanders
    with DRIFT_MEMORY_S. Latencies wander by a seventh of that.
    cold_slower, cold_s: the candidate is so many times slower at first, which fades with so many seconds.
    """

    says: str
    diurnal: float = 0.0
    incident_errors: float = 0.0
    incident_slower: float = 1.0
    incident_s: float = 0.0
    outage_s: tuple[float, float] | None = None
    resets: int = 0
    rho: float = 0.0
    burst_s: float = 1.0
    drift: float = 0.0
    own_drift: float = 0.0
    cold_slower: float = 1.0
    cold_s: float = 10.0


DRIFT_MEMORY_S: Final = 60.0
STEADY: Final = "steady"

CONDITIONS: Final[Mapping[str, Condition]] = {
    STEADY: Condition("steady traffic"),
    "diurnal": Condition("a day's wave, 20 to 180 % of the rate", diurnal=0.8),
    "incident": Condition(
        "both: +20 pp errors, latency x2, for 3 min", incident_errors=0.2, incident_slower=2.0, incident_s=180.0
    ),
    "outage": Condition("no metrics for 30 s to 10 min", outage_s=(30.0, 600.0)),
    "reset": Condition("counters begin anew three times", resets=3),
    "bursts-0.005": Condition("bursts of 1 s, rho 0.005", rho=0.005),
    "bursts-0.02": Condition("bursts of 1 s, rho 0.02", rho=0.02),
    "bursts-0.05": Condition("bursts of 1 s, rho 0.05", rho=0.05),
    "bursts-15s": Condition("bursts of 15 s, rho 0.02", rho=0.02, burst_s=15.0),
    "autocorrelation": Condition("error rates and latencies wander, together and apart", drift=0.7, own_drift=0.35),
    "cold-start": Condition("a cold candidate: x3, fading with 10 s", cold_slower=3.0),
}
