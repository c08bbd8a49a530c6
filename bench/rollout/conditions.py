"""What surrounds a rollout and is nobody's fault: it acts on stable and candidate alike, or on none for long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


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
    pause_slower, pause_s, pause_every_s: each revision by itself is so many times slower, for so long, so often.
    tail, tail_slower: so large a share of both revisions' requests takes so many times longer, at any time.
    bad_server, bad_errors, bad_slower: so large a share of both goes to a server with so many more errors, so slow.
    caller, caller_s, caller_every_s: a caller of so large a share, all of whose requests fail, is there for so long, so
    often.
    large, large_slower, large_every_s: the share of large images goes from 0 to this and back, so often; they take so
    many times longer.
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
    pause_slower: float = 4.0
    pause_s: float = 0.0
    pause_every_s: float = 180.0
    tail: float = 0.0
    tail_slower: float = 8.0
    bad_server: float = 0.0
    bad_errors: float = 0.02
    bad_slower: float = 2.5
    caller: float = 0.0
    caller_s: float = 30.0
    caller_every_s: float = 120.0
    large: float = 0.0
    large_slower: float = 2.5
    large_every_s: float = 300.0


DRIFT_MEMORY_S: Final = 60.0
STEADY: Final = "steady"
DRAWN: Final = 50
"""Number of worlds that are drawn at random, so that no rule is tuned to those that somebody thought of."""
_SEED: Final = 20_261_121


def drawn(number: int) -> Condition:
    """Return a world drawn at random: one to three things that healthy revisions suffer, of random sizes."""
    rng = np.random.default_rng([_SEED, number])

    def between(low: float, high: float) -> float:
        return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")

    kinds: Mapping[str, Callable[[], dict[str, float]]] = {
        "pauses": lambda: {
            "pause_s": between(2, 60),
            "pause_every_s": between(120, 600),
            "pause_slower": between(1.5, 8),
        },
        "bursts": lambda: {"rho": between(0.002, 0.1), "burst_s": between(1, 60)},
        "a heavy tail": lambda: {"tail": between(0.005, 0.08), "tail_slower": between(3, 30)},
        "a bad server of ten": lambda: {
            "bad_server": 0.1,
            "bad_errors": between(0.005, 0.05),
            "bad_slower": between(1.2, 5),
        },
        "a caller who always fails": lambda: {
            "caller": between(0.005, 0.1),
            "caller_s": between(5, 60),
            "caller_every_s": between(90, 600),
        },
        "large images": lambda: {
            "large": between(0.1, 0.8),
            "large_slower": between(1.5, 4),
            "large_every_s": between(60, 1200),
        },
        "wandering": lambda: {"drift": between(0.2, 1), "own_drift": between(0.1, 0.4)},
        "a cold candidate": lambda: {"cold_slower": between(1.5, 6), "cold_s": between(5, 30)},
    }
    chosen = [str(name) for name in rng.choice(list(kinds), size=int(rng.integers(1, 4)), replace=False)]
    values: dict[str, float] = {}
    for name in chosen:
        values |= kinds[name]()
    return Condition(f"drawn {number}: {', '.join(chosen)}", **values)  # type: ignore[arg-type]


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
    "pauses": Condition("each by itself: latency x4 for 20 s every 3 min", pause_s=20.0),
    "pauses-5s": Condition("each by itself: latency x4 for 5 s every minute", pause_s=5.0, pause_every_s=60.0),
    "pauses-45s": Condition("each by itself: latency x4 for 45 s every 5 min", pause_s=45.0, pause_every_s=300.0),
    "bursts-30s": Condition("bursts of 30 s, rho 0.05", rho=0.05, burst_s=30.0),
    "cold-30s": Condition("a cold candidate: x5, fading with 30 s", cold_slower=5.0, cold_s=30.0),
    "heavy-tail": Condition("3 % of both's requests take 10x", tail=0.03, tail_slower=10.0),
    "bad-server": Condition("one server of ten of both: +2 pp errors, latency x2.5", bad_server=0.1),
    "failing-caller": Condition("a caller of 3 % whose requests fail, 30 s every 2 min", caller=0.03),
    "image-sizes": Condition("large images (x2.5): 0 to 50 % and back in 5 min", large=0.5),
    **{f"drawn-{number}": drawn(number) for number in range(DRAWN)},
}
