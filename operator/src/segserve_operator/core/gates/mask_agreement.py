"""The gate `maskAgreement`: how much the candidate's answers differ from stable's to the same images, without labels.

Agreement is not quality: a better revision also differs. A proof that the mean agreement is below `minimum` therefore
holds the rollout in Shadow and asks a person, unless `onBreach` says otherwise. Pairs are counted in bins, and each
counts as the least disagreement of its bin, which favours the candidate. The proof holds at any time if, given all
images before, the expected disagreement is at most 1 - minimum. Where that changes with the images (an hour of hard
ones), the mean over such an hour must also be within the limit, or a healthy candidate is held more often. A pass is
proved in the same way, with the most disagreement of each bin.

Without a `minimum` the limit is learnt: comparators send stable some requests twice, and the candidate may differ from
stable by `tolerance` more than stable does from itself. How much that is cannot be known exactly. For every mean m that
it might have, there is a bet that it is less, and one that the candidate's is more than m + tolerance, on other images:
under the null the product of both for the true m is a supermartingale, so the least product over all m is evidence at
any time. Before stable got requests twice, m is taken to be 0.

Confidence, if it is bounded: the mean shift of scores is tested in both directions, and the evidence is the mean of
that and the masks'.

Only Shadow's pairs are evidence: later windows have no pairs, and change nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import MaskAgreementGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import (
    DISAGREEMENTS,
    LEAST_DISAGREEMENTS,
    SHIFTS,
    EvidenceWindow,
    Floats,
    Judgement,
)
from segserve_operator.core.gates.base import Edges, MeasuredGate, MeasuredGateType, OnBreach, Outcome, Verdict
from segserve_operator.core.statistics.bounded_mean import log_wealth
from segserve_operator.core.statistics.past import StablePast

NAME: Final = "maskAgreement"
MASKS_DIFFER: Final = "MasksDiffer"
CONFIDENCE_SHIFTED: Final = "ConfidenceShifted"
"""The reasons of verdicts whose proof there is, whatever follows from it."""
_MOST: Final = np.array((*DISAGREEMENTS, 1.0))
"""The most disagreement of each bin."""
_LOWEST: Final = np.array((-1.0, *SHIFTS))
_HIGHEST: Final = np.array((*SHIFTS, 1.0))
"""The lowest and the highest shift of each bin."""
_OWN: Final = (0.0, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.12, 0.15, 0.2, 0.25, 0.3, 0.4, 0.6, 0.8)
"""Mean disagreements of stable with itself between which the least product is sought."""
FEWEST: Final = 20.0
"""Pairs that must have been compared before Shadow goes on; of fewer that both answered, half."""
_ADVICE: Final = {
    OnBreach.HOLD: "; a person decides: `segserve rollout sheet` shows the images, resume goes on, abort stops it",
    OnBreach.ROLLBACK: "",
    OnBreach.NOTE: "; noted only",
}


@dataclass(frozen=True, slots=True)
class AgreementState:
    """The pairs so far.

    answered [...]: those that both answered. awaited [...]: 1 while too few of them have been compared. The rest
    [..., D + 1 or S + 1]: those compared, as in `Pairs`.
    """

    answered: Floats
    awaited: Floats
    disagreements: Floats
    baseline: Floats
    shifts: Floats


@dataclass(frozen=True, slots=True)
class MaskAgreement(MeasuredGate[AgreementState]):
    """Finds a mean agreement below `minimum` (0 to 1), or by `tolerance` below stable's with itself if it is None.

    It also finds a mean shift of confidence of more than `max_shift`. `on_breach` says what its verdict calls it.
    """

    minimum: float | None
    on_breach: OnBreach = OnBreach.HOLD
    tolerance: float = 0.1
    max_shift: float | None = None

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> AgreementState:
        """Return the state before any window; `past` changes nothing: it has no pairs."""
        none, bins = np.zeros(shape), np.zeros((*shape, len(LEAST_DISAGREEMENTS)))
        return AgreementState(none, none, bins, bins, np.zeros((*shape, len(_LOWEST))))

    def update(self, state: AgreementState, window: EvidenceWindow) -> AgreementState:
        """Return the state after one more window. Requests of callers end all waiting: Shadow is over."""
        if window.pairs is None:
            return self.after_shadow(state)
        answered = state.answered + window.pairs.failed[..., 0, 0]
        disagreements = state.disagreements + window.pairs.disagreements
        # Masks are compared after the answers were counted, and later where processors are short.
        awaited = disagreements.sum(-1) < np.minimum(FEWEST, answered / 2)
        return AgreementState(
            answered,
            np.where(awaited, 1.0, 0.0),
            disagreements,
            state.baseline + window.pairs.baseline,
            state.shifts + window.pairs.shifts,
        )

    def after_shadow(self, state: AgreementState) -> AgreementState:
        """Return the state with which a rollout goes on to callers: what was compared, as a record."""
        return replace(state, awaited=np.zeros(state.awaited.shape))

    def judge(self, state: AgreementState) -> Judgement:
        """Return the evidence, which is too little only while pairs wait to be compared. Harm is 0."""
        return Judgement.of_evidence(self._evidence(state), enough=state.awaited == 0)

    def explain(self, state: AgreementState, level: float) -> Verdict:
        """Return the verdict on one rollout, with the mean agreement that the bins leave possible."""
        answered, compared = float(state.answered), float(state.disagreements.sum())
        own = _mean(state.baseline, LEAST_DISAGREEMENTS)
        minimum = 1.0 - own - self.tolerance if self.minimum is None else self.minimum
        numbers = {"pairs": answered, "compared": compared, "minimum": minimum}
        if not compared:
            if answered:
                message = f"none of {answered:,.0f} pairs could be compared: their outputs or sizes differ"
                return Verdict(NAME, Outcome.UNDECIDED, "NotComparable", message, numbers=numbers)
            return Verdict(NAME, Outcome.UNDECIDED, "NoData", "no pairs yet that both answered", numbers=numbers)
        evidence = float(self.judge(state).breach)
        agreement = 1.0 - float(state.disagreements @ LEAST_DISAGREEMENTS) / compared
        low = float(state.disagreements[-1] / compared)
        numbers |= {"agreement": agreement, "half": low, "evidence": evidence}
        message = (
            f"masks agree by at most {agreement:.3f} on average in {compared:,.0f} pairs ({minimum:.4g} is required)"
        )
        if self.minimum is None:
            numbers["stable_twice"] = twice = float(state.baseline.sum())
            message = f"{message}; stable agrees with itself by {1.0 - own:.3f} in {twice:,.0f}" if twice else message
        if low:
            message = f"{message}; by half or less in {100 * low:.3g} % of them"
        bound = -np.log(level)
        if self.max_shift is not None and state.shifts.any():
            shift = _mean_shift(state.shifts)
            numbers["confidence_shift"] = shift
            towards = "higher" if shift > 0 else "lower"
            message = (
                f"{message}; its scores are {abs(shift):.3f} {towards} than stable's on average "
                f"({self.max_shift:g} is allowed)"
            )
            if evidence >= bound and self._shifts(state, self.max_shift) > self._differs(state):
                return self._proof(CONFIDENCE_SHIFTED, message, numbers)
        if evidence >= bound:
            return self._proof(MASKS_DIFFER, message, numbers)
        certain = 1.0 - self.tolerance if self.minimum is None else self.minimum
        if log_wealth(state.disagreements, 1.0 - _MOST, certain) >= bound:
            return Verdict(NAME, Outcome.PASS, "MasksAgree", message, numbers=numbers)
        message = f"{message}; evidence against 1:{np.exp(max(evidence, 0.0)):,.0f} of 1:{1 / level:,.0f}"
        progress = float(np.clip(evidence / bound, 0.0, 1.0)) if self.on_breach is OnBreach.ROLLBACK else 0.0
        return Verdict(NAME, Outcome.UNDECIDED, "NotProved", message, progress, numbers)

    def _proof(self, reason: str, message: str, numbers: Mapping[str, float]) -> Verdict:
        outcome = Outcome.BREACH if self.on_breach is OnBreach.ROLLBACK else Outcome.UNDECIDED
        return Verdict(NAME, outcome, reason, f"{message}{_ADVICE[self.on_breach]}", 1.0, numbers)

    def _evidence(self, state: AgreementState) -> Floats:
        masks = self._differs(state)
        if self.max_shift is None:
            return masks
        both: Floats = np.logaddexp(masks, self._shifts(state, self.max_shift)) - np.log(2.0)
        return both

    def _differs(self, state: AgreementState) -> Floats:
        """Return the log evidence [...] that the masks differ by more than is allowed."""
        if self.minimum is not None:
            return log_wealth(state.disagreements, LEAST_DISAGREEMENTS, 1.0 - self.minimum)
        # Between two values of m the product is at least this: the first grows with m, and the second falls.
        limits = [min(own + self.tolerance, 1.0) for own in (*_OWN[1:], 1.0)]
        products = [
            log_wealth(state.baseline, 1.0 - _MOST, 1.0 - own)
            + log_wealth(state.disagreements, LEAST_DISAGREEMENTS, limit)
            for own, limit in zip(_OWN, limits, strict=True)
        ]
        known = state.baseline.sum(-1) > 0
        return np.where(
            known, np.min(products, 0), log_wealth(state.disagreements, LEAST_DISAGREEMENTS, self.tolerance)
        )

    def _shifts(self, state: AgreementState, most: float) -> Floats:
        """Return the log evidence [...] that the mean shift is more than `most` in one direction."""
        limit = (1.0 + most) / 2.0
        up = log_wealth(state.shifts, (1.0 + _LOWEST) / 2.0, limit)
        down = log_wealth(state.shifts, (1.0 - _HIGHEST) / 2.0, limit)
        either: Floats = np.logaddexp(up, down) - np.log(2.0)
        return either


def _mean(counts: Floats, values: Floats) -> float:
    return float(counts @ values / max(counts.sum(), 1.0))


def _mean_shift(shifts: Floats) -> float:
    """Return the mean shift that the bins prove: the nearest to zero that they leave possible."""
    lowest, highest = _mean(shifts, _LOWEST), _mean(shifts, _HIGHEST)
    return lowest if lowest > 0 else min(highest, 0.0)


def _build(spec: MaskAgreementGate, _slo: Slo, policy: RolloutPolicy, _edges: Edges) -> MaskAgreement:
    return MaskAgreement(spec.minimum, _on_breach(spec), policy.tolerance.agreement, spec.max_confidence_shift)


def _on_breach(spec: MaskAgreementGate) -> OnBreach:
    return OnBreach(spec.on_breach)


# Without labels the harm of a difference is unknown: the gate reports none.
GATE: Final = MeasuredGateType(MaskAgreementGate, _build, lambda _: 0.5, on_breach=_on_breach)
