"""Anytime-valid test on pairs: both revisions got the same request at the same moment, and x is 1 if the candidate
alone was bad, -1 if stable alone was, and 0 else.

What hits both cancels, whatever its level is, and no baseline is estimated. The null says that x is at most `tolerance`
on average. A bet multiplies the wealth by 1 + stake (x - tolerance), which is at most 1 on average under the null
(betting; Waudby-Smith and Ramdas 2024), so that it reaches 1 / a in at most one of 1 / a rollouts (Ville). Several
stakes share the wealth, one bet stakes nothing, and a little is dealt anew with each block (fixed share).

What remains in a pair is each revision's own: its pauses and bursts. If stable's past is known, the logs are divided by
how many requests count as one (`past`); an approximation (quasi-likelihood). If not, a whole block is one observation:
the sign of its sum, the sum itself, and one between. If equal revisions may change places in a block without a
difference, then the sign is as often positive as negative however its requests depend on each other, and so many
additional failures move it by no more than their number. Blocks last a minute, and pay at most twice their stake: proof
takes a quarter of an hour, which in Shadow harms no caller.

A candidate that fails plainly need not have so long. Whatever a block holds, exchangeable revisions put it against the
candidate in half of all cases, so that no test without another assumption gains more than log 2 by it. `quick` bets as
if the past were known and had clusters of which `assumed_s` seconds of pairs count as one: twice as many as of bursts
of 30 s with a correlation of 0.05. Under that assumption it is an e-value (as far as the division makes it one). The
evidence is its mean with the blocks' evidence, which assumes nothing of the kind (Vovk and Wang 2021). That all pairs
of t seconds fail is worth at most t / assumed_s * log 1.9: an interruption of half a minute is not proof.

Harm is certified by the same bets the other way, against each level of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.core.evidence import Bools, Floats
from segserve_operator.core.statistics.blocks import BOUND, CEILING, CERTIFIED, FLOOR, redistributed, summed

STAKES: Final = (0.06, 0.15, 0.3, 0.5, 0.7, 0.9)
"""Parts of the wealth that are staked on one pair."""
BLOCK_STAKES: Final = (0.35, 0.9)
"""The same of one block, for each way in which a block's sum becomes one observation."""
QUICK_STAKES: Final = (0.4, 0.9)
"""The same of one pair where a cluster's length is assumed: for what fails often."""
HARM_STAKES: Final = (0.2, 0.5, 0.8)
"""The same against each level of harm."""
KNOWN_BLOCK_S: Final = 5.0
BLOCK_S: Final = 60.0
"""Shortest block if stable's past is known, and if it is not: longer than most pauses and bursts of a server."""
SWITCH: Final = 0.0003
LEAST_SWITCH: Final = 1e-5
MOST_SWITCH: Final = 0.003
"""Part of the wealth that is dealt anew, per independent pair, and at least and at most per block."""
CANDIDATE_ALONE, STABLE_ALONE, NEITHER = 0, 1, 2
"""Columns of counts: pairs in which one revision alone was bad, and all others."""


@dataclass(frozen=True, slots=True)
class DiscordantState:
    """All of it float64, with leading axes [...]; S streams, C certificates, Q = 2 S + C, J bets, D levels, L stakes.

    age_s [...], pending [..., Q, 3]: of the open block. total [..., Q, 3]: of all blocks that were judged.
    wealth [..., 2, S, J]: log of each bet's, against being no worse than stable (0) and than what is tolerated (1).
    harmless [..., C, D, L]: log of each bet's against the harm being each of the levels `CERTIFIED` or more.
    assumed_s [...]: seconds of pairs that count as one by assumption; 0 assumes nothing, as states of before do.
    quick [..., 2, S, K]: as `wealth`, under that assumption.
    """

    age_s: Floats
    pending: Floats
    total: Floats
    wealth: Floats
    harmless: Floats
    assumed_s: Floats
    quick: Floats


@dataclass(frozen=True, slots=True)
class Discordant:
    """The test: `tolerances` and `weights` of its streams, and the number of its certificates of harm.

    `assumed_s` is how many seconds of pairs count as one where stable's past is unknown; 0 assumes nothing.

    Counts are [..., Q, 3]: first of the streams, in terms of what is no worse; then of the streams, in terms of what is
    tolerable; then of what certificates are about.
    """

    tolerances: tuple[float, ...]
    weights: tuple[float, ...]
    certificates: int = 1
    assumed_s: float = 0.0

    def start(self, shape: tuple[int, ...] = ()) -> DiscordantState:
        """Return the state before any pair."""
        streams, counts = len(self.weights), np.zeros((*shape, 2 * len(self.weights) + self.certificates, 3))
        bets, quick = 1 + len(STAKES), 1 + len(QUICK_STAKES)
        return DiscordantState(
            age_s=np.zeros(shape),
            pending=counts,
            total=counts,
            wealth=np.full((*shape, 2, streams, bets), -np.log(bets)),
            harmless=np.zeros((*shape, self.certificates, len(CERTIFIED), len(HARM_STAKES))),
            assumed_s=np.zeros(shape),
            quick=np.full((*shape, 2, streams, quick), -np.log(quick)),
        )

    def update(
        self,
        state: DiscordantState,
        counts: Floats,
        seconds: Floats,
        clustered_s: Floats,
        spread: Floats,
        least_s: Floats | float = 0.0,
    ) -> DiscordantState:
        """Take in a look's counts [..., Q, 3]; `clustered_s` [...] is negative if it is unknown, see `past`.

        `spread` [...] is how many times as much as independent requests stable's vary, as far as the rollout shows.
        Bets allow for clusters of `least_s` [...] at least; certificates, which are not verdicts, do not.
        """
        pending = state.pending + counts
        age_s = np.where(pending.any((-2, -1)), state.age_s + seconds, state.age_s)
        known = clustered_s >= 0
        closes: Bools = pending.any((-2, -1)) & (age_s >= np.where(known, KNOWN_BLOCK_S, BLOCK_S))
        pairs = pending.sum(-1).max(-1)
        per_s = np.where(known, pairs / np.maximum(age_s, 1e-9), 0.0)
        times = 1.0 + per_s * np.maximum(clustered_s, least_s)
        dealt = np.clip(SWITCH * pairs / times, LEAST_SWITCH, MOST_SWITCH)[..., None, None, None]
        wealth = redistributed(state.wealth + self._factors(pending, known, times), dealt)
        certificates = pending[..., 2 * len(self.weights) :, :]
        # A certificate says when to go on and is not a verdict: it takes the root of what counts as one, as
        # `exceedance`.
        lighter = np.where(known, np.sqrt(1.0 + per_s * clustered_s), np.maximum(spread, 1.0))[..., None, None, None]
        harmless = np.clip(state.harmless + _harmless(certificates) / lighter, FLOOR, CEILING)
        at = closes[..., None, None]
        return DiscordantState(
            age_s=np.where(closes, 0.0, age_s),
            pending=np.where(at, 0.0, pending),
            total=np.where(at, state.total + pending, state.total),
            wealth=np.where(at[..., None], wealth, state.wealth),
            harmless=np.where(at[..., None], harmless, state.harmless),
            assumed_s=state.assumed_s,
            quick=self._quick(state, counts, seconds),
        )

    def evidence(self, state: DiscordantState) -> Floats:
        """Return the log evidence [..., 2] of being worse than stable, and than what is tolerated."""
        wealth = summed(state.wealth)
        assumed: Bools = state.assumed_s > 0
        if assumed.any():
            both = summed(np.stack([wealth, summed(state.quick)], -1)) - np.log(2.0)
            wealth = np.where(assumed[..., None, None], both, wealth)
        weights = np.array(self.weights)
        return summed(wealth + np.log(weights / weights.sum()))

    def certified(self, state: DiscordantState) -> Floats:
        """Return the log evidence [..., D] that the harm is less than each level, by all certificates."""
        each: Floats = summed(state.harmless) - np.log(len(HARM_STAKES))
        least: Floats = each.min(-2)
        return least

    def harm(self, state: DiscordantState) -> Floats:
        """Return the smallest level [...] that all certificates exclude, or 1."""
        excluded: Floats = np.where(self.certified(state) >= BOUND, np.array(CERTIFIED), 1.0).min(-1)
        return excluded

    def _factors(self, pending: Floats, known: Bools, times: Floats) -> Floats:
        """Return the log factors [..., 2, S, J] of a block."""
        counts, allowed = self._of_streams(pending)
        single = by_pair(counts, allowed, STAKES) / times[..., None, None, None]
        factors = np.where(known[..., None, None, None], single, _by_block(counts, allowed))
        return np.concatenate([np.zeros((*factors.shape[:-1], 1)), factors], -1)

    def _quick(self, state: DiscordantState, counts: Floats, seconds: Floats) -> Floats:
        """Return the log wealth [..., 2, S, K] of the bets at the assumed dependence after a look."""
        pairs = counts.sum(-1).max(-1)
        bets: Bools = (state.assumed_s > 0) & (pairs > 0)
        if not bets.any():
            return state.quick
        times = 1.0 + pairs / np.maximum(seconds, 1e-9) * state.assumed_s
        factors = by_pair(*self._of_streams(counts), QUICK_STAKES) / times[..., None, None, None]
        moved = state.quick + np.concatenate([np.zeros((*factors.shape[:-1], 1)), factors], -1)
        dealt = np.clip(SWITCH * pairs / times, LEAST_SWITCH, MOST_SWITCH)[..., None, None, None]
        return np.where(bets[..., None, None, None], redistributed(moved, dealt), state.quick)

    def _of_streams(self, counts: Floats) -> tuple[Floats, Floats]:
        """Return the streams' counts [..., 2, S, 3], and what the two nulls allow of each [2, S]."""
        streams = len(self.weights)
        of_streams = counts[..., : 2 * streams, :].reshape(*counts.shape[:-2], 2, streams, 3)
        return of_streams, np.stack([np.zeros(streams), np.array(self.tolerances)])


def discordant(bad: Floats, pairs: Floats) -> Floats:
    """Return counts [..., 3] of pairs [...] of which `bad` [..., 2] were of (stable, candidate), each by itself.

    As few of them as possible are taken to be bad at both, which is the least evidence.
    """
    both = np.maximum(bad.sum(-1) - pairs, 0.0)[..., None]
    alone = np.maximum(bad[..., ::-1] - both, 0.0)
    return np.concatenate([alone, np.maximum(pairs[..., None] - alone.sum(-1, keepdims=True), 0.0)], -1)


def failures(failed: Floats) -> Floats:
    """Return counts [..., 3] of pairs `failed` [..., 2, 2]: the candidate alone, stable alone, neither or both."""
    return np.stack([failed[..., 0, 1], failed[..., 1, 0], failed[..., 0, 0] + failed[..., 1, 1]], -1)


def by_pair(counts: Floats, allowed: Floats, parts: tuple[float, ...]) -> Floats:
    """Return the log of the product of 1 + stake (x - allowed) over pairs, [..., parts]."""
    allowed = allowed[..., None]
    stakes = np.array(parts) / (1.0 + allowed)
    candidate, stable, neither = np.moveaxis(counts[..., None], -2, 0)
    factors: Floats = (
        candidate * np.log1p(stakes * (1.0 - allowed))
        + stable * np.log1p(-stakes * (1.0 + allowed))
        + neither * np.log1p(-stakes * allowed)
    )
    return factors


def _by_block(counts: Floats, allowed: Floats) -> Floats:
    """Return the log of 1 + stake (y - what is allowed of y) for each y of a block's sum, in -1 to 1, [..., bets]."""
    pairs = np.maximum(counts.sum(-1), 1.0)
    total = counts[..., CANDIDATE_ALONE] - counts[..., STABLE_ALONE]
    factors = []
    for scale in (np.ones_like(pairs), np.sqrt(pairs), pairs):
        # As many failures as are tolerated move the clipped sum by no more than their number.
        least = np.minimum(allowed * pairs / scale, 1.0)[..., None]
        stakes = np.array(BLOCK_STAKES) / (1.0 + least)
        factors.append(np.log1p(stakes * (np.clip(total / scale, -1.0, 1.0)[..., None] - least)))
    return np.concatenate(factors, -1)


def _harmless(counts: Floats) -> Floats:
    """Return the log factors [..., C, D, L] of bets on x being less than each level."""
    levels, stakes = np.array(CERTIFIED)[:, None], np.array(HARM_STAKES)
    candidate, stable, neither = np.moveaxis(counts[..., None, None], -3, 0)
    factors: Floats = (
        candidate * np.log1p(stakes * (levels - 1.0))
        + stable * np.log1p(stakes * (levels + 1.0))
        + neither * np.log1p(stakes * levels)
    )
    return factors
