"""How small a slice of requests the gate `slices` can judge within Shadow, estimated in advance with the real gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, Slo
from segserve_operator.core.evidence import MAX_SLICES, EvidenceWindow, Pairs, SlicePairs
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.slices import NAME, Slices
from segserve_operator.core.rollout.policy import alpha_shares
from segserve_operator.core.statistics.sliced import BLOCK_S

SHARES: Final = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005)
"""Parts of all requests that have one label."""
FAULTS: Final = (0.1, 0.5, 1.0)
"""Parts of the slice's requests that fail in addition."""
RUNS: Final = 40
SURE: Final = 0.9


@dataclass(frozen=True, slots=True)
class JudgedSlice:
    """The smallest part of requests (0 to 1) whose slice is proved worse in nine of ten Shadows, None if it is more
    than half of them, if the share `more` (0 to 1) of its requests fails in addition."""

    more: float
    share: float | None

    def text(self) -> str:
        """Return it in words."""
        what = "all its requests fail" if self.more >= 1 else f"{100 * self.more:g} points more of its requests fail"
        if self.share is None:
            return f"slice of which {what}: may be missed, however large it is"
        return f"slice of which {what}: found if it has {100 * self.share:g} % of all requests"


def judged_slices(
    policy: RolloutPolicy, slo: Slo, requests_per_second: float, base: float, seed: int = 0
) -> tuple[JudgedSlice, ...]:
    """Return the smallest slices that Shadow can judge at that rate; nothing without the gate, or without Shadow.

    Slices are taken to be equally large: one of a tenth of all requests is one of ten. `base` is stable's share (0 to
    1) of failed requests.
    """
    shadow, level = policy.shadow, alpha_shares(policy).get(NAME)
    gate = measured_gates(policy, slo).get(NAME)
    if shadow is None or level is None or not isinstance(gate, Slices):
        return ()
    shares = np.array(SHARES)
    pairs_per_s = shadow.copies_per_second(requests_per_second)
    proof = np.log(np.minimum(np.round(1.0 / shares), MAX_SLICES)) - np.log(level)
    random, found = np.random.default_rng(seed), []
    names, nothing = tuple(map(str, SHARES)), Pairs.nothing((RUNS,))
    for more in FAULTS:
        fails = min(base + more, 1.0)
        cells = ((1 - base) * (1 - fails), (1 - base) * fails, base * (1 - fails), base * fails)
        state, proved = gate.start((RUNS,)), np.zeros((RUNS, len(SHARES)), bool)
        for _ in range(int(shadow.max_duration.total_seconds() // BLOCK_S)):
            pairs = random.poisson(pairs_per_s * BLOCK_S * shares, (RUNS, len(SHARES)))
            failed = random.multinomial(pairs, cells).reshape(RUNS, len(SHARES), 2, 2).astype(float)
            slices = replace(SlicePairs.nothing(names, (RUNS,)), failed=failed)
            window = replace(
                EvidenceWindow.nothing((RUNS,)),
                seconds=np.full(RUNS, BLOCK_S),
                pairs=replace(nothing, failed=failed.sum(1), slices=slices),
            )
            state = gate.update(state, window)
            proved |= gate.evidence(state) >= proof
        sure = proved.mean(0) >= SURE
        # A larger one that is missed by chance is no reason to promise a smaller one.
        largest = len(SHARES) if sure.all() else int(np.argmin(sure))
        found.append(JudgedSlice(more, SHARES[largest - 1] if largest else None))
    return tuple(found)
