"""The gate `maskAgreement`: how much the candidate's answers differ from stable's to the same images, without labels.

Agreement is no quality: a better revision differs too. A proof that the mean agreement is below `minimum` therefore
holds the rollout in Shadow and asks a person, unless `onBreach` says otherwise. Pairs are counted in bins, and each
counts as the least disagreement of its bin, which favours the candidate. The proof holds at any time if, given all
images before, the expected disagreement is at most 1 - minimum. Where that changes with the images (an hour of hard
ones), the mean over such an hour must be within the limit too, or a healthy candidate is held more often. A pass is
proved in the same way, with the most disagreement of each bin.

Only Shadow's pairs are evidence: later windows have none, and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from segserve_operator.api.rollout_policy import MaskAgreementGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import DISAGREEMENTS, EvidenceWindow, Floats, Judgement
from segserve_operator.core.gates.base import Edges, MeasuredGateType, OnBreach, Outcome, Verdict
from segserve_operator.core.statistics.bounded_mean import log_wealth
from segserve_operator.core.statistics.past import StablePast

NAME: Final = "maskAgreement"
MASKS_DIFFER: Final = "MasksDiffer"
"""The reason of a verdict whose proof there is, whatever follows from it."""
_LEAST: Final = np.array((0.0, *DISAGREEMENTS))
_MOST: Final = np.array((*DISAGREEMENTS, 1.0))
"""The least and the most disagreement of each bin."""
_ADVICE: Final = {
    OnBreach.HOLD: "; a person decides: `segserve rollout sheet` shows the images, resume goes on, abort stops it",
    OnBreach.ROLLBACK: "",
    OnBreach.NOTE: "; noted only",
}


@dataclass(frozen=True, slots=True)
class AgreementState:
    """answered [...]: pairs that both answered; disagreements [..., D + 1]: those compared, as in `Pairs`."""

    answered: Floats
    disagreements: Floats


@dataclass(frozen=True, slots=True)
class MaskAgreement:
    """Finds a mean agreement below `minimum` (0 to 1); `on_breach` says what its verdict calls it."""

    minimum: float
    on_breach: OnBreach = OnBreach.HOLD

    def start(self, shape: tuple[int, ...] = (), past: StablePast | None = None) -> AgreementState:
        """Return the state before any window; `past` changes nothing: it has no pairs."""
        return AgreementState(np.zeros(shape), np.zeros((*shape, len(_LEAST))))

    def again(self, former: AgreementState) -> AgreementState:
        """Return the state before any window of a rollout that begins as a former one did."""
        return self.start(former.answered.shape)

    def update(self, state: AgreementState, window: EvidenceWindow) -> AgreementState:
        """Return the state after one more window."""
        if window.pairs is None:
            return state
        return AgreementState(
            state.answered + window.pairs.failed[..., 0, 0], state.disagreements + window.pairs.disagreements
        )

    def after_shadow(self, state: AgreementState) -> AgreementState:
        """Return the state with which a rollout goes on to callers: all of it, as a record of what was compared."""
        return state

    def judge(self, state: AgreementState) -> Judgement:
        """Return the evidence; never that there is too little of it, as a rollout may have no pairs. Harm is none."""
        nothing = np.zeros(state.answered.shape)
        no = np.zeros(state.answered.shape, bool)
        return Judgement(
            breach=log_wealth(state.disagreements, _LEAST, 1.0 - self.minimum),
            incident=no,
            shared=no,
            enough=~no,
            harm=nothing,
            excess=nothing,
            doubtful=no,
            settling=no,
        )

    def explain(self, state: AgreementState, level: float) -> Verdict:
        """Return the verdict on one rollout, with the mean agreement that the bins leave possible."""
        answered, compared = float(state.answered), float(state.disagreements.sum())
        numbers = {"pairs": answered, "compared": compared, "minimum": self.minimum}
        if not compared:
            if answered:
                message = f"none of {answered:,.0f} pairs could be compared: their outputs or sizes differ"
                return Verdict(NAME, Outcome.UNDECIDED, "NotComparable", message, numbers=numbers)
            return Verdict(NAME, Outcome.UNDECIDED, "NoData", "no pairs yet that both answered", numbers=numbers)
        evidence = float(self.judge(state).breach)
        agreement = 1.0 - float(state.disagreements @ _LEAST) / compared
        low = float(state.disagreements[-1] / compared)
        numbers |= {"agreement": agreement, "half": low, "evidence": evidence}
        message = (
            f"masks agree by at most {agreement:.3f} on average in {compared:,.0f} pairs ({self.minimum:g} is required)"
        )
        if low:
            message = f"{message}; by half or less in {100 * low:.3g} % of them"
        bound = -np.log(level)
        if evidence >= bound:
            outcome = Outcome.BREACH if self.on_breach is OnBreach.ROLLBACK else Outcome.UNDECIDED
            return Verdict(NAME, outcome, MASKS_DIFFER, f"{message}{_ADVICE[self.on_breach]}", 1.0, numbers)
        if log_wealth(state.disagreements, 1.0 - _MOST, self.minimum) >= bound:
            return Verdict(NAME, Outcome.PASS, "MasksAgree", message, numbers=numbers)
        message = f"{message}; evidence against 1:{np.exp(max(evidence, 0.0)):,.0f} of 1:{1 / level:,.0f}"
        progress = float(np.clip(evidence / bound, 0.0, 1.0)) if self.on_breach is OnBreach.ROLLBACK else 0.0
        return Verdict(NAME, Outcome.UNDECIDED, "NotProved", message, progress, numbers)


def _build(spec: MaskAgreementGate, _slo: Slo, _policy: RolloutPolicy, _edges: Edges) -> MaskAgreement:
    return MaskAgreement(spec.minimum, _on_breach(spec))


def _on_breach(spec: MaskAgreementGate) -> OnBreach:
    return OnBreach(spec.on_breach)


# Without labels nobody knows what harm a difference does: the gate reports none.
GATE: Final = MeasuredGateType(MaskAgreementGate, _build, lambda _: 0.5, on_breach=_on_breach)
