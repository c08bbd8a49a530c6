"""The gate `slices`: whether the candidate is worse for requests of one label (camera, site, scanner), in Shadow.

Each label's pairs are one slice. The null of a slice says that its candidate is worse by no more than is tolerated: by
failures and by pairs that take longer. The evidence against it is the mean of theirs, an e-value of their intersection.
Among the slices e-BH bounds the share of false discoveries (`statistics.e_bh`), and any discovery is a breach. The
number of slices is that of the labels with pairs so far; who asks under which label must not depend on how the
candidate answers.

Later windows than Shadow's have no labels, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import RolloutPolicy, SlicesGate, Slo
from segserve_operator.core.evidence import (
    OTHER,
    Bools,
    EvidenceWindow,
    Floats,
    Judgement,
    SlicePairs,
    slice_name,
)
from segserve_operator.core.gates.base import Edges, MeasuredGate, MeasuredGateType, Outcome, Verdict, odds
from segserve_operator.core.gates.error_rate import ErrorRate
from segserve_operator.core.gates.latency import SHADOW_SETTLING_S, Latency
from segserve_operator.core.statistics import sliced
from segserve_operator.core.statistics.blocks import summed
from segserve_operator.core.statistics.discordant import failures
from segserve_operator.core.statistics.e_bh import discoveries, strongest
from segserve_operator.core.statistics.exceedance import UNKNOWN
from segserve_operator.core.statistics.past import StablePast

NAME: Final = "slices"
ERRORS, SLOW = 0, 1
KINDS: Final = 2
"""Kinds of discordant pairs: the candidate alone failed, and the candidate took longer than tolerated."""
DOUBT: Final = float(np.log(4.0))
"""Evidence from which on Shadow lasts longer, for more: a slice needs its time."""
NAMED: Final = 3
"""Slices that a message names; of more it says how many."""


@dataclass(frozen=True, slots=True)
class SlicesState:
    """Evidence by slice; all but the names is float64 with leading axes [...]. S slices, J bets.

    served_s, age_s [...]: since the first pairs, and of the open block. over [...]: 1 once Shadow is over.
    clustered_s [..., 2]: seconds in which stable's failures and slow answers come together, negative while its past is
    short. names: of S slices, in the order in which they came.
    pending, total [..., S, 2, 3]: pairs of the open block and of all, by kind: bad for the candidate alone, for stable
    alone, and others. wealth [..., S, 2, J]: log of each bet's.
    """

    served_s: Floats
    age_s: Floats
    over: Floats
    clustered_s: Floats
    names: tuple[str, ...]
    pending: Floats
    total: Floats
    wealth: Floats


@dataclass(frozen=True, slots=True)
class Slices(MeasuredGate[SlicesState]):
    """Finds slices that are worse than `errors` and `latency` tolerate."""

    errors: ErrorRate
    latency: Latency

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> SlicesState:
        """Return the state before any window; `past` is stable's."""
        return _begun(self._clustered_s(shape, past), shape)

    def again(self, former: SlicesState) -> SlicesState:
        """Return the state before any window of a rollout with the same past of stable as a former one."""
        return _begun(former.clustered_s, former.age_s.shape)

    def informed(self, state: SlicesState, past: StablePast) -> SlicesState:
        """Return the state with what stable's past tells by now."""
        unknown = (state.clustered_s < 0) & (state.over == 0)[..., None]
        if not unknown.any():
            return state
        clustered_s = np.where(unknown, self._clustered_s(state.age_s.shape, past), state.clustered_s)
        return replace(state, clustered_s=clustered_s)

    def _clustered_s(self, shape: tuple[int, ...], past: StablePast | None) -> Floats:
        # A short past tells little of what is rare and large: until it is long, the assumption stays.
        if past is None or (past.errors.lacking > 0).all():
            return np.full((*shape, 2), UNKNOWN)
        gates = self.errors.start(shape, past), self.latency.start(shape, past)
        found = np.stack([state.clustered_s.max(-1) for state in gates], -1)
        return np.where((past.errors.lacking > 0)[..., None], UNKNOWN, found)

    def update(self, state: SlicesState, window: EvidenceWindow) -> SlicesState:
        """Return the state after one more window."""
        if window.pairs is None:
            return state
        begun = (state.served_s > 0) | window.pairs.failed.any((-2, -1))
        served_s = np.where(begun, state.served_s + window.seconds, 0.0)
        if window.pairs.slices.names:
            state = self._with_pairs(state, window.pairs.slices)
        if not state.names:
            return replace(state, served_s=served_s)
        state = replace(state, served_s=served_s, age_s=state.age_s + np.where(begun, window.seconds, 0.0))
        closes: Bools = state.age_s >= sliced.BLOCK_S
        if not closes.any():
            return state
        at = closes[..., None, None, None]
        wealth = sliced.after_block(
            state.wealth,
            state.pending,
            np.array([self.errors.tolerance, self.latency.tolerance]),
            state.age_s[..., None, None],
            state.clustered_s[..., None, :],
        )
        return replace(
            state,
            age_s=np.where(closes, 0.0, state.age_s),
            pending=np.where(at, 0.0, state.pending),
            wealth=np.where(at, wealth, state.wealth),
        )

    def _with_pairs(self, state: SlicesState, new: SlicePairs) -> SlicesState:
        """Return the state with a window's pairs in the open block."""
        state, placed = _with_names(state, new.names)
        # What is slow while it is cold proves nothing.
        warm = (state.served_s >= SHADOW_SETTLING_S)[..., None, None]
        counts = np.stack([failures(new.failed), np.where(warm, self.latency.slower(new.ratios), 0.0)], -2)
        at_once = np.einsum("ns,...nkc->...skc", placed, counts)
        return replace(
            state,
            pending=state.pending + at_once,
            total=state.total + at_once,
        )

    def after_shadow(self, state: SlicesState) -> SlicesState:
        """Return the state with which a rollout goes on to callers: all of it, as a record; it holds up no step."""
        return replace(state, over=np.ones_like(state.over))

    def judge(self, state: SlicesState) -> Judgement:
        """Return the evidence; never that there is too little of it, as requests need not have labels."""
        breach = strongest(self.evidence(state)) if state.names else np.zeros(state.over.shape)
        doubtful: Bools = (breach >= DOUBT) & (state.over == 0)
        return replace(Judgement.of_evidence(breach), harm=np.where(doubtful, 1.0, 0.0), doubtful=doubtful)

    def evidence(self, state: SlicesState) -> Floats:
        """Return the log evidence [..., S] against each slice."""
        kinds = sliced.evidence(state.wealth)
        mean: Floats = summed(kinds) - np.log(kinds.shape[-1])
        return mean

    def explain(self, state: SlicesState, level: float) -> Verdict:
        """Return the verdict on one rollout, with the slices that are worse."""
        if not state.names:
            message = "no pair had a label yet: requests say theirs in the header x-segserve-slice"
            return Verdict(NAME, Outcome.UNDECIDED, "NoLabels", message)
        evidence = self.evidence(state)
        worse, found = discoveries(evidence, level), float(strongest(evidence))
        order = np.argsort(-evidence, kind="stable")
        numbers = {"slices": float(len(state.names)), "worse": float(worse.sum()), "evidence": found}
        if worse.any():
            named = "; ".join(self._figures(state, int(index)) for index in order[: min(int(worse.sum()), NAMED)])
            more = int(worse.sum()) - NAMED
            also = f"; and in {more} more of {len(state.names)} slices" if more > 0 else ""
            return Verdict(NAME, Outcome.BREACH, "SliceWorse", f"worse for {named}{also}", 1.0, numbers)
        progress = float(np.clip(found / -np.log(level), 0.0, 1.0))
        message = f"not proved worse in any of {len(state.names)} slice{'s' if len(state.names) != 1 else ''}"
        if progress >= 0.2:
            message = f"{message}; most is against {self._figures(state, int(order[0]))}; {odds(found, level)}"
        return Verdict(NAME, Outcome.PASS, "NoWorse", message, progress, numbers)

    def _figures(self, state: SlicesState, index: int) -> str:
        """Return a slice's name, and the figures of the kind with the most evidence."""
        name, kind = state.names[index], int(sliced.evidence(state.wealth)[index].argmax())
        candidate, stable, neither = (float(count) for count in state.total[index, kind])
        did = "failed" if kind == ERRORS else f"took {self.latency.ratios[0]:g} times as long or longer"
        of = f"on {candidate:,.0f} of {candidate + stable + neither:,.0f}"
        return f"{name}: the candidate alone {did} {of}, stable alone on {stable:,.0f}"


def _begun(clustered_s: Floats, shape: tuple[int, ...]) -> SlicesState:
    nothing = np.zeros(shape)
    return SlicesState(nothing, nothing, nothing, clustered_s, (), *_empty(shape, 0))


def _empty(shape: tuple[int, ...], slices: int) -> tuple[Floats, ...]:
    counts = np.zeros((*shape, slices, KINDS, 3))
    wealth = sliced.started((*shape, slices, KINDS))
    return counts, counts, wealth


def _with_names(state: SlicesState, names: tuple[str, ...]) -> tuple[SlicesState, Floats]:
    """Return the state with slices of these names too, and 1 where a name [n] is that of a slice [n, S].

    Names beyond the limit are `OTHER`.
    """
    known = dict.fromkeys(state.names)
    for name in names:
        known.setdefault(slice_name(name, known))
    indices = {name: at for at, name in enumerate(known)}
    placed = np.zeros((len(names), len(known)))
    placed[np.arange(len(names)), [indices[name if name in indices else OTHER] for name in names]] = 1.0
    more = _empty(state.over.shape, len(known) - len(state.names))
    former = (state.pending, state.total, state.wealth)
    if state.names:
        more = tuple(np.concatenate(both, state.over.ndim) for both in zip(former, more, strict=True))
    pending, total, wealth = more
    return replace(state, names=tuple(known), pending=pending, total=total, wealth=wealth), placed


def _build(_spec: SlicesGate, slo: Slo, policy: RolloutPolicy, edges: Edges) -> Slices:
    tolerance = policy.tolerance
    return Slices(
        ErrorRate(slo.error_percent / 100, tolerance.error_percent / 100),
        Latency(tolerance.slow_percent / 100, 1 + tolerance.latency_percent / 100, slo.latencies, edges),
    )


# A slice's share of all requests is not known here: the gate reports no harm, and is in doubt or is not.
GATE: Final = MeasuredGateType(SlicesGate, _build, lambda _: 0.5)
