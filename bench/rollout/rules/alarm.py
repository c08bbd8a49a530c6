"""One alarm of one minute, as SageMaker's guardrails in their example: one datapoint out of bounds ends it.

A minute without data is no datapoint, and no alarm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bench.rollout.world import Floats

PERIOD_S: Final = 60.0


def rolled_back_s(out_of_bounds: NDArray[np.bool_]) -> Floats:
    """Return when each run is rolled back, inf where it is not; argument [runs, minutes]."""
    found: Floats = np.where(out_of_bounds.any(1), (out_of_bounds.argmax(1) + 1) * PERIOD_S, np.inf)
    return found
