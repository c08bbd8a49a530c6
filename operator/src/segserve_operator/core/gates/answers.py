"""What the gates that ask have in common: no answer is no verdict, and how a user's own expressions decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segserve_operator.core.gates.base import Outcome, Verdict

if TYPE_CHECKING:
    from segserve_operator.core.gates.checks import CheckResult


def no_answer(gate: str, finding: CheckResult) -> Verdict:
    """Return the verdict where nothing was found out, with why not."""
    message = finding.problem or ("the answer says nothing" if finding.done else "nothing has been found out yet")
    return Verdict(gate, Outcome.UNDECIDED, "NoAnswer", message)


def by_expressions(gate: str, finding: CheckResult, passes: str, breaches: str) -> Verdict:
    """Judge by what two expressions say of an answer. A breach counts before a pass; neither is Undecided."""
    if finding.problem or finding.passes is None or finding.breaches is None:
        return no_answer(gate, finding)
    if finding.breaches:
        return Verdict(gate, Outcome.BREACH, "Breaches", f"{breaches} is true: {finding.shown}", progress=1.0)
    if finding.passes:
        return Verdict(gate, Outcome.PASS, "Passes", f"{passes} is true: {finding.shown}")
    return Verdict(gate, Outcome.UNDECIDED, "Neither", f"neither {passes} nor {breaches} is true: {finding.shown}")
