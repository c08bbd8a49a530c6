"""Resource check: a sample of what the candidate's servers use."""

from __future__ import annotations

from typing import Final

from segserve_operator.adapters.checks.context import CheckContext, ReportResult
from segserve_operator.core.gates.checks import Check, ResourceSamples
from segserve_operator.core.gates.resource import SAMPLES_IN_A_ROW

KEPT: Final = SAMPLES_IN_A_ROW + 1


async def run(check: Check, context: CheckContext, report: ReportResult) -> ResourceSamples:
    """Take a sample; the result has the first that this process took of the group, and the latest."""
    del report  # a sample has no partial result
    earlier = context.samples.get(check.candidate_group, ())
    taken = (*earlier, await context.resources.look(check.candidate_group))
    kept = taken if len(taken) <= KEPT else (taken[0], *taken[-SAMPLES_IN_A_ROW:])
    context.samples[check.candidate_group] = kept
    return ResourceSamples(kept)
