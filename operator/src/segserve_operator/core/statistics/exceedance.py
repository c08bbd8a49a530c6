"""Anytime-valid test whether the candidate exceeds an edge more often than stable does at the same time.

An error is a request above an edge between "answered" and "failed"; a slow request is above an edge of latency. Windows
are merged into blocks, and bets are made on each block's share above the edge. If the candidate is no worse than
stable, no bet wins on average, so that the wealth reaches 1 / a in at most one of 1 / a rollouts (Ville's inequality).
That is exact for a known baseline; stable's is estimated, and `baseline` states the correction. Several bets run in
parallel (a mixture), one of them on nothing, and each block redistributes a little of the wealth (fixed share, Herbster
and Warmuth 1998), so that a regression that comes late finds money to bet with. Streams share the wealth by weight.

All bets are made twice: against stable's own share, and against what is tolerated beyond it. A breach requires proof of
the first and `TOLERATED` times less of the second (`KNOWN_TOLERATED` times less if stable's dependence is known).
Candidates as good as stable are thus accused at the declared rate at most, and those that are worse but tolerable at
that many times it; in exchange a bad one is found much sooner.

In Shadow both get the same requests (`discordant`), and the evidence is the mean of three e-values: of pairs, of the
same requests without regard to pairs, and 1. A mean of e-values is one however they depend on each other, and a product
only if each is one given the other (Vovk and Wang 2021): so it is the mean while both see the same requests, and
afterwards the product of what Shadow proved and of what callers' requests prove.

A fault that begins late meets many requests of the candidate and, in a bake, few of stable: until these exclude an
incident of both, callers are harmed. `surge` does not wait for them, and is not proof. It is a CUSUM of e-values (Page
1954; e-detectors: Shin, Ramdas and Rinaldo 2022): each look multiplies it by the likelihood ratio of the candidate's
requests, divided by stable's clusters, against the share that is allowed by stable's past, and it begins anew where it
falls below 1. As it is at most the sum over all beginnings, it takes `SURGE` looks on average or more until it reaches
`SURGE` while the candidate keeps to that share, and far more for one that is as good as stable. It has the candidate
quarantined; segserve's own requests to both then distinguish an incident from a fault, and callers meanwhile have
stable.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from segserve_operator.core.evidence import CANDIDATE, STABLE, Bools, Floats, Judgement
from segserve_operator.core.statistics.baseline import Baseline, baseline, dispersion, remembered, spread_of
from segserve_operator.core.statistics.blocks import (
    CEILING,
    CERTIFIED,
    FLOOR,
    STAKES,
    certified,
    closing,
    harm_bound,
    likelihood,
    merged,
    redistributed,
    refuted,
    staked,
    summed,
    tails,
)
from segserve_operator.core.statistics.concurrent import ODDS, independent, one_sample, two_sample
from segserve_operator.core.statistics.discordant import Discordant, DiscordantState
from segserve_operator.core.statistics.past import Past

SWITCH: Final = 0.001
"""Part of the wealth that is redistributed per request of the candidate..."""
MOST_SWITCH: Final = 0.01
"""...and at most this part per block."""
TOLERATED: Final = np.log(15.0)
"""Log factor by which a candidate that is worse but tolerable may be accused more often than one that is no worse."""
KNOWN_TOLERATED: Final = np.log(400.0)
"""The same, if stable's dependence is known: one that is tolerable at the very edge may be accused more often."""
DOUBT: Final = np.log(4.0)
"""Log evidence that the candidate is worse from which on no budget is risked for it..."""
SHADOW_DOUBT: Final = np.log(1.5)
"""...and in Shadow, where it costs nothing to wait for more, unless the odds are..."""
SHADOW_TOLERABLE: Final = np.log(2.0)
"""...so high that it is tolerable."""
ALARM_BET: Final = 0.3
ALARM: Final = np.log(10.0)
"""Log evidence from which on a revision is out of bounds; less than a proof against a candidate..."""
MAX_ALARM: Final = np.log(1000.0)
"""...and limited to this, so that it is soon forgotten."""
WHILE_INCIDENT: Final = np.log(10.0)
"""Additional log evidence required while stable is out of bounds, which may last only a moment."""
EXCESS_DEVIATIONS: Final = 3.0
"""The excess counts only beyond this many standard deviations of chance."""
SURGE: Final = np.log(1000.0)
"""Log of the mean number of looks between two false alarms of a candidate at the edge of what is allowed."""
MAX_SURGE: Final = SURGE + np.log(len(ODDS)) + 0.5
SURGE_FADES: Final = 0.5
"""What is taken from it for each second without the candidate's requests: after a quarantine it is below its limit."""
NO_SURGE: Final = -1.0
"""In its place in states without a surge: of before, or without stable's past."""
UNKNOWN: Final = -1.0
"""In place of seconds of clustering: stable's past is too short to know."""
KNOWN_SWITCH: Final = 0.0003
MOST_KNOWN_SWITCH: Final = 0.003
"""The same as `SWITCH` and `MOST_SWITCH`, per independent request, for bets at a known dependence."""
PAST_REQUESTS: Final = 2000.0
"""Most requests that stable's past counts for, beside the rollout's, where its latencies are expected."""
SHADOW_WEIGHTS: Final = (0.5, 0.25, 0.25)
"""Parts of the evidence in Shadow: of pairs, of requests, and of no bet, so that a fault that comes later is found."""
UNKNOWN_WEIGHTS: Final = (0.75, 0.0, 0.25)
"""The same if stable's dependence is unknown: blocks of pairs bear longer clusters than blocks of requests."""
ONE_COMPARISON: Final = Discordant(tolerances=(0.0,), weights=(1.0,))
ROUNDED: Final = 0.98
"""Edges are about a tenth apart: this tolerance keeps the edge nearest to 1.1 times the last one eligible."""


@dataclass(frozen=True, slots=True)
class EvidenceStream:
    """One comparison. `at` is the index of the edge (bins from `at` on are above it), unless `quantile` is set: the
    edge is then that quantile of stable's latencies so far, multiplied by `stretch` for the candidate.

    A share of the candidate's requests above the edge of up to stable's plus `tolerance`, or up to `floor`, is
    tolerable. A healthy server's share swings slowly by `swing` of itself (standard deviation).
    """

    weight: float
    tolerance: float = 0.0
    floor: float = 0.0
    at: int = 1
    quantile: float | None = None
    stretch: float = 1.0
    swing: float = 0.0


@dataclass(frozen=True, slots=True)
class ExceedanceState:
    """All of it float64, with leading axes [...]; B bins, S streams, J bets, D levels of harm.

    served_s [...]: since the candidate's first request.
    age_s [...], pending [..., 2, B]: of the block that is open.
    memory [..., B]: stable's recent counts. total [..., 2, B]: the counts of all blocks that were judged.
    wealth [..., 2, S, J]: log of each bet's, against being no worse than stable (0) and than what is tolerated (1).
    squares, expected [..., S]: stable's squared deviations, and what they would be of independent requests.
    alarm [..., 2, S]: log evidence that stable, and that the candidate, is above the floor now.
    harmless [..., D]: log evidence that the harm is less than each level.
    excess, variance [...]: the candidate's requests above the edge that stable would not have had there.
    clustered_s [..., S], past [..., B]: seconds of clustering in stable's past (`UNKNOWN` if that is too short), and
    its counts; see `informed`.
    paired [..., 2, S, K]: log wealth of the bets on both revisions in the same block, as `wealth`; only if it is known.
    shadowed [...]: 1 while the candidate is in Shadow and got requests.
    carried [..., 2]: log evidence that Shadow left. pairs_...: of Shadow's pairs, as `DiscordantState` says.
    least_s [...]: seconds of clustering that verdicts allow for at least, while stable's past is short.
    surge [..., K]: log of the CUSUM against each alternative, 0 to `MAX_SURGE`; `NO_SURGE` without one.
    """

    served_s: Floats
    age_s: Floats
    pending: Floats
    memory: Floats
    total: Floats
    wealth: Floats
    squares: Floats
    expected: Floats
    alarm: Floats
    harmless: Floats
    excess: Floats
    variance: Floats
    clustered_s: Floats
    past: Floats
    paired: Floats
    shadowed: Floats
    carried: Floats
    pairs_age_s: Floats
    pairs_pending: Floats
    pairs_total: Floats
    pairs_wealth: Floats
    pairs_harmless: Floats
    pairs_assumed_s: Floats
    pairs_quick: Floats
    surge: Floats
    least_s: Floats


@dataclass(frozen=True, slots=True)
class Exceedance:
    """The test. `edges` increase strictly; bin i holds values of at least edges[i - 1] and less than edges[i].

    The stream with the index `counted` defines a bad request, for harm and excess. The first `warm_up_s` are ignored if
    stable's past is unknown. If it is known, evidence of the first `settling_s` may stop the candidate but proves
    nothing, and is dropped then. In Shadow that is so for `shadow_settling_s`, whatever is known. `pairs` is the test
    of Shadow's pairs, and `shadow_tolerated` takes the place of `KNOWN_TOLERATED` there. One that `surges` has the
    candidate quarantined by a sudden excess.
    """

    edges: tuple[float, ...]
    streams: tuple[EvidenceStream, ...]
    counted: int = 0
    warm_up_s: float = 0.0
    settling_s: float = 0.0
    shadow_settling_s: float = 0.0
    shadow_tolerated: float = float(KNOWN_TOLERATED)
    odds: tuple[float, ...] = ()
    pairs: Discordant = ONE_COMPARISON
    surges: bool = False

    @property
    def bets(self) -> int:
        """Number of parallel bets; the first one stakes nothing."""
        return 1 + len(STAKES) + len(self.odds)

    def start(self, shape: tuple[int, ...] = (), past: Past | None = None) -> ExceedanceState:
        """Return the state before any look; `past` is stable's, with the leading axes `shape`."""
        streams, bins = len(self.streams), len(self.edges) + 1
        each = np.zeros((*shape, streams))
        state = ExceedanceState(
            served_s=np.zeros(shape),
            age_s=np.zeros(shape),
            pending=np.zeros((*shape, 2, bins)),
            memory=np.zeros((*shape, bins)),
            total=np.zeros((*shape, 2, bins)),
            wealth=np.full((*shape, 2, streams, self.bets), -np.log(self.bets)),
            squares=each,
            expected=each,
            alarm=np.zeros((*shape, 2, streams)),
            harmless=np.zeros((*shape, len(CERTIFIED))),
            excess=np.zeros(shape),
            variance=np.zeros(shape),
            clustered_s=np.full((*shape, streams), UNKNOWN),
            past=np.zeros((*shape, bins)),
            paired=_untouched((*shape, 2, streams)),
            shadowed=np.zeros(shape),
            carried=np.zeros((*shape, 2)),
            **_fields_of(self.pairs.start(shape)),
            surge=np.full((*shape, len(ODDS)), NO_SURGE),
            least_s=np.zeros(shape),
        )
        if past is None:
            return state
        # A state without any past is one of before this assumption was made: nothing is assumed until it learns of one.
        return self.informed(replace(state, pairs_assumed_s=np.full(shape, self.pairs.assumed_s)), past)

    def informed(self, state: ExceedanceState, past: Past) -> ExceedanceState:
        """Return the state with what stable's past shows by now; a state with a past as long keeps it."""
        learns: Bools = past.enough & (~_known(state) | (state.least_s > self.pairs.assumed_s * past.lacking))
        if not learns.any():
            return state
        at, known = self.edges_now(replace(state, memory=past.counts))
        learns = learns & known.all(-1)
        first = (learns & ~_known(state))[..., None]
        # Callers' requests of the rollout so far are in both; copies, in Shadow, are only in its counts.
        own = np.where((state.shadowed > 0)[..., None], 0.0, state.total[..., STABLE, :])
        counts = np.maximum(past.counts - own, 0.0)
        counts = counts * np.minimum(PAST_REQUESTS / np.maximum(counts.sum(-1, keepdims=True), 1.0), 1.0)
        return replace(
            state,
            clustered_s=np.where(learns[..., None], past.clustered_s(at[..., STABLE, :]), state.clustered_s),
            least_s=np.where(learns, self.pairs.assumed_s * past.lacking, state.least_s),
            surge=np.where(first & self.surges, 0.0, state.surge),
            pairs_assumed_s=np.where(learns, 0.0, state.pairs_assumed_s),
            past=np.where(first, counts, state.past),
        )

    def again(self, former: ExceedanceState) -> ExceedanceState:
        """Return the state before any look of a rollout that begins with the same past of stable as a former one."""
        start = self.start(former.age_s.shape)
        if former.past.shape != start.past.shape or former.clustered_s.shape != start.clustered_s.shape:
            return start
        return replace(
            start,
            clustered_s=former.clustered_s,
            past=former.past,
            pairs_assumed_s=former.pairs_assumed_s,
            least_s=former.least_s,
            surge=np.minimum(former.surge, 0.0),
        )

    def update(self, state: ExceedanceState, bins: Floats, seconds: Floats) -> ExceedanceState:
        """Take in a look's counts [..., 2, B] of (stable, candidate); seconds [...]."""
        if self.warm_up_s > 0:
            bins, served_s = self._warm(state, bins, seconds)
            state = self._settled(replace(state, served_s=served_s), state.served_s)
        state = replace(state, surge=self._surge(state, bins, seconds))
        state, bins = _begun(state, bins, seconds)
        pending, age_s = merged(state.pending, state.age_s, bins, seconds)
        counts = pending.sum(-1)
        known = _known(state)
        spread = np.where(known, 1.0, spread_of(state.squares, state.expected).max(-1))
        closes = closing(counts, age_s, spread)
        if not closes.any():
            return replace(state, pending=pending, age_s=age_s)
        after = self._judged(replace(state, pending=pending, age_s=age_s), counts)
        cleared = replace(after, pending=np.zeros_like(pending), age_s=np.zeros_like(age_s))
        return _chosen(closes, cleared, replace(state, pending=pending, age_s=age_s))

    def update_pairs(self, state: ExceedanceState, bins: Floats, seconds: Floats, counts: Floats) -> ExceedanceState:
        """Take in a look of Shadow: both revisions' counts [..., 2, B], and the pairs' [..., Q, 3].

        What fails in Shadow has harmed no caller, and is not an excess.
        """
        after = self.update(state, bins, seconds)
        pairs, known = pairs_of(state), _known(state)
        settled: Bools = (state.served_s < self.shadow_settling_s) & (after.served_s >= self.shadow_settling_s)
        if settled.any():
            start = self.start(state.age_s.shape)
            at = settled[..., None, None]
            pairs = replace(
                pairs,
                pending=np.where(at, 0.0, pairs.pending),
                wealth=np.where(at[..., None], start.pairs_wealth, pairs.wealth),
                quick=np.where(at[..., None], start.pairs_quick, pairs.quick),
            )
            after = replace(after, paired=np.where(at[..., None], start.paired, after.paired))
        clustered_s = np.where(known, state.clustered_s.max(-1), UNKNOWN)
        spread = spread_of(state.squares, state.expected)[..., self.counted]
        asked = counts.any((-2, -1))
        return replace(
            after,
            excess=state.excess,
            variance=state.variance,
            shadowed=np.where(asked, 1.0, state.shadowed),
            **_fields_of(self.pairs.update(pairs, counts, seconds, clustered_s, spread, state.least_s)),
        )

    def after_shadow(self, state: ExceedanceState) -> ExceedanceState:
        """Return the state with which callers' requests follow: Shadow's evidence and certificate, and no levels.

        If the candidate may still be cold, what is against it proves nothing. Where it is unknown how stable's requests
        cluster, no certificate goes on: in larger steps a cluster would be taken for a fault more often.
        """
        shadowed = state.shadowed > 0
        settled = shadowed & (state.served_s >= self.shadow_settling_s)
        certified = np.clip(self.pairs.certified(pairs_of(state)), FLOOR, CEILING)
        return replace(
            self.again(state),
            served_s=state.served_s,
            carried=np.where(settled[..., None], self._evidence(state), 0.0),
            harmless=np.where((shadowed & _known(state))[..., None], certified, 0.0),
            pairs_total=state.pairs_total,
        )

    def _warm(self, state: ExceedanceState, bins: Floats, seconds: Floats) -> tuple[Floats, Floats]:
        """Return the counts without the counts of a candidate that is still cold, and for how long it has served."""
        begun = (state.served_s > 0) | bins[..., CANDIDATE, :].any(-1)
        cold = ((state.served_s < self.warm_up_s) & ~_known(state))[..., None] & (np.arange(2) == CANDIDATE)
        return np.where(cold[..., None], 0.0, bins), np.where(begun, state.served_s + seconds, 0.0)

    def _surge(self, state: ExceedanceState, bins: Floats, seconds: Floats) -> Floats:
        """Return the log of the CUSUM [..., K] after a look."""
        on: Bools = np.asarray((state.surge >= 0).all(-1))
        if not on.any():
            return state.surge
        stream, requests = self.streams[self.counted], bins[..., CANDIDATE, :].sum(-1)
        edges, known = self.edges_now(state)
        at = edges[..., self.counted]
        above = np.take_along_axis(tails(bins), at[..., None], -1)[..., CANDIDATE, 0]
        expected = _expected(state)
        usual = np.take_along_axis(tails(expected), at[..., STABLE, None], -1)[..., 0]
        level = (usual + 0.5) / (expected.sum(-1) + 1.0)
        floor = max(each.floor for each in self.streams if each.at == stream.at)
        allowed = np.maximum(level + stream.tolerance, floor)
        times = independent(requests, seconds, np.maximum(state.clustered_s[..., self.counted], state.least_s))
        moved = np.clip(state.surge + one_sample(above / times, requests / times, allowed), 0.0, MAX_SURGE)
        idle = np.maximum(state.surge - (SURGE_FADES * seconds)[..., None], 0.0)
        after = np.where((requests > 0)[..., None], moved, idle)
        found: Floats = np.where((on & known[..., self.counted])[..., None], after, state.surge)
        return found

    def _settled(self, state: ExceedanceState, before_s: Floats) -> ExceedanceState:
        """Return the state without the evidence of the candidate's first seconds, once they are over."""
        over: Bools = _known(state) & (before_s < self.settling_s) & (state.served_s >= self.settling_s)
        if not over.any():
            return state
        return replace(
            state,
            paired=np.where(over[..., None, None, None], _untouched(state.paired.shape[:-1]), state.paired),
            pending=np.where(over[..., None, None], 0.0, state.pending),
            age_s=np.where(over, 0.0, state.age_s),
            alarm=np.where(over[..., None, None] & (np.arange(2) == CANDIDATE)[:, None], 0.0, state.alarm),
            excess=np.where(over, 0.0, state.excess),
            variance=np.where(over, 0.0, state.variance),
        )

    def judge(self, state: ExceedanceState) -> Judgement:
        """Return what all blocks together amount to; see `Judgement`."""
        floors = np.array([stream.floor for stream in self.streams])
        alarmed: Bools = (state.alarm >= ALARM) & (floors > 0)
        incident = np.asarray(alarmed[..., STABLE, :].any(-1))
        known, shadowed = _known(state), state.shadowed > 0
        worse, intolerable = np.moveaxis(self._evidence(state), -1, 0)
        settling_s = np.where(shadowed, self.shadow_settling_s, self.settling_s)
        tolerated = np.where(shadowed, self.shadow_tolerated, np.where(known, KNOWN_TOLERATED, TOLERATED))
        noise = EXCESS_DEVIATIONS * np.sqrt(state.variance)
        return Judgement(
            breach=np.minimum(worse, intolerable + tolerated) - np.where(incident, WHILE_INCIDENT, 0.0),
            incident=incident,
            shared=np.asarray(alarmed.all(-2).any(-1)),
            enough=(state.total.sum(-1) > 0).all(-1) & ~(shadowed & (state.pairs_assumed_s > 0)),
            harm=np.where(shadowed, self.pairs.harm(pairs_of(state)), harm_bound(state.harmless)),
            excess=np.maximum(state.excess - noise, 0.0),
            doubtful=np.where(
                shadowed,
                (worse >= SHADOW_DOUBT) & (intolerable > -SHADOW_TOLERABLE),
                (known | state.carried.any(-1)) & (worse >= DOUBT),
            ),
            surging=summed(state.surge) - np.log(len(ODDS)) >= SURGE,
            settling=(known | shadowed) & (state.served_s > 0) & (state.served_s < settling_s),
        )

    def _evidence(self, state: ExceedanceState) -> Floats:
        """Return the log evidence [..., 2] of being worse than stable, and than what is tolerated."""
        known = _known(state)
        wealth = summed(state.wealth)
        if known.any():
            wealth = np.where(known[..., None, None], summed(state.paired), wealth)
        shares = np.array([stream.weight for stream in self.streams])
        found = summed(wealth + np.log(shares / shares.sum()))
        found = np.where(state.carried != 0, found + state.carried, found)
        if not state.shadowed.any():
            return found
        weights = np.where(known[..., None], SHADOW_WEIGHTS, np.maximum(UNKNOWN_WEIGHTS, 1e-300))
        parts = np.stack([self.pairs.evidence(pairs_of(state)), found, np.zeros_like(found)], -1)
        return np.where(state.shadowed[..., None] > 0, summed(parts + np.log(weights)[..., None, :]), found)

    def edges_now(self, state: ExceedanceState) -> tuple[NDArray[np.intp], Bools]:
        """Return each stream's edge [..., 2, S] for (stable, candidate), and where it is known [..., S]."""
        above_edge = tails(_expected(state))
        at = np.empty((*state.memory.shape[:-1], 2, len(self.streams)), np.intp)
        known = np.ones((*state.memory.shape[:-1], len(self.streams)), bool)
        for index, stream in enumerate(self.streams):
            if stream.quantile is None:
                at[..., index] = stream.at
                continue
            above = 1.0 - stream.quantile
            found = (above_edge > above * above_edge[..., :1]).sum(-1)
            at[..., STABLE, index] = found
            at[..., CANDIDATE, index] = _stretched(self.edges, stream.stretch)[found]
            # Fewer and the quantile is the largest of a handful.
            known[..., index] = above_edge[..., 0] * above >= 2.0
        return np.minimum(at, len(self.edges)), known

    def _judged(self, state: ExceedanceState, counts: Floats) -> ExceedanceState:
        """Return the state after the open block; if a role has no requests, only stable's memory changes."""
        at, known = self.edges_now(state)
        above = np.take_along_axis(tails(state.pending), at, -1)
        memory = remembered(state.memory, state.pending[..., STABLE, :], state.age_s)
        before, after = (np.take_along_axis(tails(each), at[..., STABLE, :], -1) for each in (state.memory, memory))
        swings = np.array([stream.swing for stream in self.streams])
        fresh = baseline(
            after,
            memory.sum(-1),
            above[..., STABLE, :],
            counts[..., STABLE],
            state.age_s,
            spread_of(state.squares, state.expected),
            swings,
        )
        both: Bools = np.asarray((counts > 0).all(-1))
        bet: Bools = both[..., None] & known
        prior = (before + 0.5) / (state.memory.sum(-1)[..., None] + 1.0)
        expected = _expected(state)
        long_run = np.take_along_axis(tails(expected), at[..., STABLE, :], -1)
        level = (long_run + 0.5) / (expected.sum(-1)[..., None] + 1.0)
        if _known(state).any():
            paired = self._paired(state, above, counts, level)
            state = replace(state, paired=np.where(bet[..., None, :, None], paired, state.paired))
        return replace(
            state,
            memory=memory,
            total=state.total + np.where(both[..., None, None], state.pending, 0.0),
            wealth=np.where(
                bet[..., None, :, None], self._wealth(state.wealth, above, counts, prior, fresh), state.wealth
            ),
            alarm=np.where(
                bet[..., None, :],
                self._alarm(state.alarm, above, counts),
                # A minute of one alone, as after a promotion: what was known of both is over.
                np.where(both[..., None, None], state.alarm, 0.0),
            ),
            **dispersion(state.squares, state.expected, state.age_s, fresh, bet),
            **self._harm(state, above, counts, self._clustered(fresh, state, level, counts), bet),
        )

    def _wealth(self, wealth: Floats, above: Floats, counts: Floats, prior: Floats, fresh: Baseline) -> Floats:
        """Return the log wealth [..., 2, S, J] after a block."""
        stable, requests = counts[..., STABLE, None], counts[..., CANDIDATE, None]
        share = (above[..., CANDIDATE, :] / np.maximum(requests, 1.0))[..., None, :]
        factors = [
            np.zeros((*wealth.shape[:-1], 1)),
            staked(
                share, self._allowed(fresh.share), self._allowed(prior), (fresh.sampling + fresh.swing)[..., None, :]
            ),
        ]
        if self.odds:
            worth, unsure = (requests / fresh.spread)[..., None, :], (fresh.variance + fresh.swing)[..., None, :]
            factors.append(likelihood(share, worth, self._allowed(fresh.present), unsure, self.odds))
        most = refuted(share[..., 0, :], requests, above[..., STABLE, :], stable, fresh.spread)[..., None, :, None]
        moved = wealth + np.minimum(np.concatenate(factors, -1), most)
        return redistributed(moved, np.clip(SWITCH * requests, SWITCH, MOST_SWITCH)[..., None, None])

    def _clustered(self, fresh: Baseline, state: ExceedanceState, level: Floats, counts: Floats) -> Baseline:
        """Return what harm is measured against: where dependence is known, all of stable's past and its clusters.

        The certificate takes the root of how many requests count as one: it says when to go on, and is not a verdict.
        """
        known = _known(state)[..., None]
        times = _times(counts, state.age_s, state.clustered_s)[CANDIDATE]
        return replace(
            fresh,
            low=np.where(known, np.maximum(level, fresh.low), fresh.low),
            worst=np.where(known, np.maximum(level, fresh.worst), fresh.worst),
            spread=np.where(known, np.maximum(np.sqrt(times), 1.0), fresh.spread),
        )

    def _paired(
        self,
        state: ExceedanceState,
        above: Floats,
        counts: Floats,
        level: Floats,
    ) -> Floats:
        """Return the log wealth [..., 2, S, K] of the bets on both revisions after a block; see `concurrent`."""
        times = _times(counts, state.age_s, np.maximum(state.clustered_s, state.least_s[..., None]))
        bad = (above[..., STABLE, :] / times[STABLE], above[..., CANDIDATE, :] / times[CANDIDATE])
        requests = (counts[..., STABLE, None] / times[STABLE], counts[..., CANDIDATE, None] / times[CANDIDATE])
        allowed = self._allowed(level)
        tolerances = np.array([stream.tolerance for stream in self.streams])
        floors = np.array([stream.floor for stream in self.streams])
        worse = two_sample(bad, requests, level, allowed[..., 0, :], np.zeros_like(level))
        # Beside a floor, what is tolerable is below it or below stable's: it takes evidence against both.
        tolerable = two_sample(bad, requests, level, allowed[..., 1, :], np.broadcast_to(tolerances, level.shape))
        beyond = one_sample(bad[CANDIDATE], requests[CANDIDATE], allowed[..., 1, :])
        tolerable = np.where((floors > 0)[:, None], np.minimum(tolerable, beyond), tolerable)
        factors = np.stack([worse, tolerable], -3)
        moved = state.paired + np.concatenate([np.zeros((*factors.shape[:-1], 1)), factors], -1)
        dealt = np.clip(KNOWN_SWITCH * requests[CANDIDATE], 1e-5, MOST_KNOWN_SWITCH)[..., None, :, None]
        return redistributed(moved, dealt)

    def _allowed(self, share: Floats) -> Floats:
        """Return which shares above the edge [..., 2, S] are no worse than stable's [..., S], and which tolerable."""
        floors = np.array([stream.floor for stream in self.streams])
        tolerances = np.array([stream.tolerance for stream in self.streams])
        return np.stack([share, np.maximum(floors, share + tolerances)], -2)

    def _alarm(self, alarm: Floats, above: Floats, counts: Floats) -> Floats:
        """Return the log evidence [..., 2, S] that each is above the floor; bounded, so that it comes and goes."""
        floors = np.array([stream.floor or 1.0 for stream in self.streams])
        share = above / np.maximum(counts[..., None], 1.0)
        after: Floats = np.clip(alarm + np.log1p(ALARM_BET * (share / floors - 1.0)), 0.0, MAX_ALARM)
        return after

    def _harm(
        self, state: ExceedanceState, above: Floats, counts: Floats, fresh: Baseline, bet: Bools
    ) -> dict[str, Floats]:
        which = self.counted
        here, share, spread = bet[..., which], fresh.low[..., which], fresh.spread[..., which]
        bad, requests = above[..., CANDIDATE, which], counts[..., CANDIDATE]
        harmless = certified(state.harmless, bad, requests, share, spread)
        level, others = fresh.worst[..., which], np.maximum(counts[..., STABLE], 1.0)
        noise = requests * level * (1.0 - level) * spread * (1.0 + requests / others)
        noise = noise + requests**2 * fresh.swing[..., which]
        return {
            "harmless": np.where(here[..., None], harmless, state.harmless),
            "excess": np.where(here, np.maximum(state.excess + bad - requests * level, 0.0), state.excess),
            "variance": np.where(here, state.variance + noise, state.variance),
        }


def pairs_of(state: ExceedanceState) -> DiscordantState:
    """Return what is known of Shadow's pairs."""
    return DiscordantState(*(getattr(state, f"pairs_{each.name}") for each in fields(DiscordantState)))


def _fields_of(pairs: DiscordantState) -> dict[str, Floats]:
    return {f"pairs_{each.name}": getattr(pairs, each.name) for each in fields(DiscordantState)}


def _known(state: ExceedanceState) -> Bools:
    """Return whether the dependence of stable's requests is known [...]."""
    known: Bools = np.asarray((state.clustered_s >= 0).all(-1))
    return known


def _expected(state: ExceedanceState) -> Floats:
    """Return counts [..., B] by which stable's edges and shares are expected: of long, or of the last minutes."""
    long_run = state.past + state.total[..., STABLE, :]
    expected: Floats = np.where(_known(state)[..., None], long_run, state.memory)
    return expected


def _untouched(shape: tuple[int, ...]) -> Floats:
    """Return the log wealth [..., K] of bets on both revisions that were never made; the first one stakes nothing."""
    return np.full((*shape, 1 + len(ODDS)), -np.log(1 + len(ODDS)))


@lru_cache(maxsize=64)
def _stretched(edges: tuple[float, ...], stretch: float) -> NDArray[np.intp]:
    """Return for each edge the next one that is about `stretch` times as high or more, as indices of bins."""
    after = np.searchsorted(edges, np.array(edges) * stretch * ROUNDED) + 1
    return np.array([0, *after, len(edges) + 1], np.intp)


def _times(counts: Floats, seconds: Floats, clustered_s: Floats) -> tuple[Floats, Floats]:
    """Return how many requests of (stable, candidate) in a block count as one, each [..., S]; 1 if that is unknown."""
    clustered_s, seconds = np.maximum(clustered_s, 0.0), seconds[..., None]
    return (
        independent(counts[..., STABLE, None], seconds, clustered_s),
        independent(counts[..., CANDIDATE, None], seconds, clustered_s),
    )


def _begun(state: ExceedanceState, bins: Floats, seconds: Floats) -> tuple[ExceedanceState, Floats]:
    """Return the state, and the counts for its block: one begins with the candidate's first request.

    What stable had before is not what it had at the same time, and goes only into its memory.
    """
    alone: Bools = np.asarray(~(state.pending[..., CANDIDATE, :].any(-1) | bins[..., CANDIDATE, :].any(-1)))
    if not alone.any():
        return state, bins
    memory = remembered(state.memory, np.where(alone[..., None], bins[..., STABLE, :], 0.0), seconds)
    return replace(state, memory=memory), np.where(alone[..., None, None], 0.0, bins)


def _chosen(closes: Bools, after: ExceedanceState, before: ExceedanceState) -> ExceedanceState:
    """Return the first state where blocks close, else the second."""
    if closes.all():
        return after
    chosen = {}
    for name in ExceedanceState.__dataclass_fields__:
        new, old = getattr(after, name), getattr(before, name)
        chosen[name] = np.where(closes.reshape(closes.shape + (1,) * (new.ndim - closes.ndim)), new, old)
    return ExceedanceState(**chosen)
