"""What measured gates say of their evidence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from segserve_operator.core.gates.base import Outcome

if TYPE_CHECKING:
    from segserve_operator.core.evidence import Judgement


def outcome_of(judged: Judgement, level: float) -> tuple[Outcome, str, float]:
    """Return outcome, reason, and the evidence's share (0 to 1) of its bound; of one rollout."""
    progress = float(np.clip(judged.breach / -np.log(level), 0.0, 1.0))
    if progress >= 1.0:
        return Outcome.BREACH, "WorseThanStable", progress
    if bool(judged.shared):
        return Outcome.UNDECIDED, "Incident", progress
    if not bool(judged.enough):
        return Outcome.UNDECIDED, "NoData", progress
    if float(judged.harm) >= 1.0:
        return Outcome.UNDECIDED, "TooFewRequests", progress
    return Outcome.PASS, "NoWorse", progress


def compared(candidate: str, stable: str, judged: Judgement, level: float) -> str:
    """Say how both do, the odds against the candidate and those that are needed, and how bad it may be at most."""
    if not bool(judged.enough):
        return "no requests yet that both revisions had at the same time"
    odds = f"evidence {_odds(float(judged.breach))} of 1:{1 / level:,.0f}"
    harm = f"at most {100 * float(judged.harm):.3g} % of its requests are worse off" if judged.harm < 1 else ""
    said = [f"{candidate}, stable {stable}", odds, harm]
    if bool(judged.incident):
        said.append("both miss the SLO: an incident" if judged.shared else "stable misses the SLO")
    return "; ".join(part for part in said if part)


def _odds(log_evidence: float) -> str:
    return f"1:{np.exp(np.clip(log_evidence, 0.0, 25.0)):,.0f}"
