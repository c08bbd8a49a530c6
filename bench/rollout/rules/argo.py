"""Argo Rollouts: each metric counts its failed measurements; more than failureLimit end the rollout.

`analysis/analysis.go`: `failed > failureLimit`, cumulative, for each metric by itself. Measurements that end in an
error are asked again after 10 s; more than consecutiveErrorLimit (4) of them in a row end it too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.world import Floats

INTERVAL_S: Final = 60.0
FAILURE_LIMIT: Final = 3
ERROR_LIMIT: Final = 4
ERROR_RETRY_S: Final = 10.0


def rolled_back_s(failed: NDArray[np.bool_], down: NDArray[np.bool_], scrape_s: float) -> Floats:
    """Return when each run is aborted, inf where it is not.

    failed [runs, metrics, minutes]: the measurement at the end of that minute failed. down [runs, scrapes]: nobody
    answers for that stretch of `scrape_s`.
    """
    counted = failed.cumsum(-1) > FAILURE_LIMIT
    by_failures = _first(counted.any(1), INTERVAL_S)
    return np.minimum(by_failures, _by_errors(down, scrape_s))


def _by_errors(down: NDArray[np.bool_], scrape_s: float) -> Floats:
    """Return when five measurements in a row, 10 s apart, have ended in errors."""
    runs, scrapes = down.shape
    lasts_s = ERROR_LIMIT * ERROR_RETRY_S
    found = np.full(runs, np.inf)
    minutes = int(scrapes * scrape_s // INTERVAL_S)
    for minute in range(minutes, 0, -1):
        asked_s = minute * INTERVAL_S + ERROR_RETRY_S * np.arange(ERROR_LIMIT + 1)
        at = np.minimum((np.minimum(asked_s, scrapes * scrape_s) - 1e-6) // scrape_s, scrapes - 1).astype(int)
        found = np.where(down[:, at].all(1), minute * INTERVAL_S + lasts_s, found)
    return found


def _first(holds: NDArray[np.bool_], seconds: float) -> Floats:
    found: Floats = np.where(holds.any(-1), (holds.argmax(-1) + 1) * seconds, np.inf)
    return found
