"""What gates make of a candidate."""

from __future__ import annotations

from typing import Any

import numpy as np

from segserve_operator.core.evidence import Judgement


def judgement(**changed: Any) -> Judgement:
    """Return what a gate makes of a candidate that is no worse than stable, but for what is changed."""
    known = {"breach": -3.0, "incident": False, "shared": False, "enough": True, "harm": 1e-4, "excess": 0.0}
    known |= {"doubtful": False, "settling": False}
    return Judgement(**{name: np.array(value) for name, value in {**known, **changed}.items()})
