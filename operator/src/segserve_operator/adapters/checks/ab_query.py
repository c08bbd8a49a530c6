"""Query of an A/B test: a PromQL query, asked for the value of each revision at the same moment."""

from __future__ import annotations

import asyncio

from segserve_operator.adapters.checks.context import CheckContext, ReportResult
from segserve_operator.adapters.checks.promql import SHOWN, query_question
from segserve_operator.api.ab_test import AbTestQuery
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Ask for both values; raises a group of `CheckError` if one of them is none, or several."""
    del report  # one value alone compares nothing
    query = check.query
    if query is None:
        raise CheckError("the A/B test has no query")
    at_s = context.clock()  # of the question: answers take a while, by which moments would seem closer or further
    async with asyncio.TaskGroup() as group:
        asked = [group.create_task(_value(check, query, revision, context)) for _, revision in check.sides]
    stable, candidate = (task.result() for task in asked)
    shown = f"stable {stable:.6g}, candidate {candidate:.6g}"
    return CheckResult(check.key, at_s, values=(stable, candidate), shown=shown)


async def _value(check: Check, query: AbTestQuery, revision: str, context: CheckContext) -> float:
    try:
        answer = await context.services.ask(query_question(check, context.pool, query, revision=revision))
    except CheckError as error:
        raise CheckError(f"{revision}: {error}") from error
    if (series := len(answer.numbers)) != 1:
        number = f"at least {series}" if series >= SHOWN else str(series)
        raise CheckError(
            f"the query has {number} series for {revision}, and a test needs one: "
            "aggregate them, as with sum() or avg()"
        )
    return answer.numbers[0]
