"""Looks at what the candidate's servers use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_operator.core.gates.checks import CheckResult
from segserve_operator.core.gates.resource import LOOKS

if TYPE_CHECKING:
    from segserve_operator.adapters.checks.context import CheckContext, Tell
    from segserve_operator.core.gates.checks import Check

KEPT: Final = LOOKS + 1


async def ask(order: Check, tools: CheckContext, tell: Tell) -> CheckResult:
    """Take one more sample; the finding has the first that this process took of the group, and the latest."""
    del tell  # one look is over at once
    known = tools.samples.get(order.candidate_group, ())
    taken = (*known, await tools.resources.look(order.candidate_group))
    kept = taken if len(taken) <= KEPT else (taken[0], *taken[-LOOKS:])
    tools.samples[order.candidate_group] = kept
    return CheckResult(order.key, tools.clock(), samples=kept)
