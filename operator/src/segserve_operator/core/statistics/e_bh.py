"""The e-Benjamini-Hochberg procedure: which of many hypotheses are refuted, with a bounded share of false ones.

Of K e-values the k largest are discoveries, for the largest k whose smallest is at least K / (k a). In expectation, at
most the share a of discoveries is then false, however the e-values depend on each other (Wang and Ramdas 2022, "False
discovery rate control with e-values"); if all hypotheses are true, that is the probability of any discovery. E-values
of processes stay such at any stopping time, so that one may look at any moment, and stop at the first discovery.
"""

from __future__ import annotations

import numpy as np

from segserve_operator.core.evidence import Bools, Floats


def strongest(logs: Floats) -> Floats:
    """Return the log of 1 / a [...] for the least level a at which something is a discovery, from logs [..., K]."""
    most: Floats = _scores(logs).max(-1)
    return most


def discoveries(logs: Floats, level: float) -> Bools:
    """Return which hypotheses [K] are discoveries at `level`, from the logs [K] of their e-values."""
    if not logs.size:
        return np.zeros(0, bool)
    reached = np.flatnonzero(_scores(logs) >= -np.log(level))
    found = np.zeros(logs.shape, bool)
    if reached.size:
        found[np.argsort(-logs, kind="stable")[: reached[-1] + 1]] = True
    return found


def _scores(logs: Floats) -> Floats:
    """Return the log of k times the k-th largest e-value by K, for each k."""
    number = logs.shape[-1]
    scores: Floats = -np.sort(-logs, axis=-1) + np.log(np.arange(1, number + 1) / number)
    return scores
