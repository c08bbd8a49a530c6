"""Bets on the discordant pairs of many slices at once: x is 1 if the candidate alone was bad, -1 if stable alone was.

The null of a slice says that x is at most `tolerance` on average. A bet multiplies its wealth by 1 + stake (x -
tolerance) for each pair, which is at most 1 on average under the null; several stakes share the wealth, and one bet
stakes nothing (betting; Waudby-Smith and Ramdas 2024). See `discordant` for the same on all pairs together.

Failures of a server come in clusters. If up to m requests of a slice fail together, the product of a cluster's factors
is at most the m-th power of one, so that the root of degree m is bet instead: the logs are divided by m = 1 + rate *
`clustered_s`, with the slice's own rate in a block of 20 s. It is an approximation: clusters longer than `clustered_s`
count as several. Stable's past says how long they are (`past`), and `ASSUMED_S` where it is too short to know. As most
slices have few requests in such a time, little is lost by it.

Wealth is rounded down to four decimals, which is little to store for two hundred slices, and favours the candidate.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from segserve_operator.core.evidence import Floats
from segserve_operator.core.statistics.blocks import summed
from segserve_operator.core.statistics.discordant import by_pair

STAKES: Final = (0.06, 0.2, 0.5, 0.9)
BLOCK_S: Final = 20.0
ASSUMED_S: Final = 10.0
"""Seconds of a slice's pairs that count as one where stable's past is too short to know: half a minute in which the
candidate alone fails is worth a factor of 7 at most."""
LEAST_S: Final = 2.0
"""The same at least, whatever the past says: one of a candidate that pauses by itself is not in stable's past."""
BETS: Final = 1 + len(STAKES)


def started(shape: tuple[int, ...]) -> Floats:
    """Return the log wealth [..., J] of bets that were not made yet; the stakes are equal parts of one."""
    return np.zeros((*shape, len(STAKES)))


def after_block(wealth: Floats, counts: Floats, tolerance: Floats, age_s: Floats, clustered_s: Floats) -> Floats:
    """Return the log wealth [..., J] after a block's pairs [..., 3]: candidate alone, stable alone, neither.

    `tolerance`, `age_s` and `clustered_s` have the leading axes of `counts`, or broadcast; a negative `clustered_s` is
    unknown.
    """
    known_s = np.where(clustered_s >= 0, np.maximum(clustered_s, LEAST_S), ASSUMED_S)
    times = 1.0 + counts.sum(-1) / np.maximum(age_s, 1e-9) * known_s
    factors = by_pair(counts, np.asarray(tolerance), STAKES)
    after = np.floor((wealth + factors / times[..., None]) * 1e4) / 1e4
    bet: Floats = np.where((counts.sum(-1) > 0)[..., None], after, wealth)
    return bet


def evidence(wealth: Floats) -> Floats:
    """Return the log evidence [...] against the null: of all bets together, and of the one that stakes nothing."""
    total: Floats = summed(np.concatenate([wealth, np.zeros((*wealth.shape[:-1], 1))], -1)) - np.log(BETS)
    return total
