"""Cost check: CPU time for each request of both revisions, from what the agents of their servers count."""

from __future__ import annotations

from segserve_operator.adapters.checks.context import CheckContext, ReportResult
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult
from segserve_operator.core.gates.cost import CostBlocks


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Look at both revisions' servers; the result has all blocks since the first look of this process."""
    del report  # a look has no partial result
    found = [(await context.resources.look(group)).costs.get(revision) for group, revision in check.sides]
    counts = tuple(count for count in found if count is not None)
    blocks = context.costs.setdefault(check.key, CostBlocks())
    if len(counts) == len(check.sides):
        blocks.add(counts)
    elif not blocks.blocks and check.weight > 0:
        raise CheckError("the servers' agents count no costs of both revisions yet")
    return CheckResult(check.key, context.clock(), cost=blocks.evidence(check.weight))
