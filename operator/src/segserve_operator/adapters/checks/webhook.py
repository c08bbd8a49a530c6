"""Webhook check: a POST to a service of the user, and the gate's expressions over its answer."""

from __future__ import annotations

from segserve_operator.adapters.checks.context import CheckContext, Question, ReportResult
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Post the state of the rollout, and evaluate the gate's expressions over the answer."""
    del report
    if not isinstance(check.spec, WebhookGate):
        raise CheckError(f"the gate {check.gate!r} is not a webhook")
    question = Question(
        kind="webhook",
        pool=context.pool,
        url=check.spec.url,
        fields={
            "model": check.model,
            "gate": check.gate,
            "candidate": check.candidate,
            "stable": check.stable,
            "phase": check.phase,
            "weight": check.weight,
        },
        pass_condition=check.spec.pass_condition,
        breach_condition=check.spec.breach_condition,
        timeout_s=check.spec.timeout.total_seconds(),
    )
    verdict = await context.services.ask(question)
    return CheckResult(
        check.key, context.clock(), passes=verdict.passes, breaches=verdict.breaches, shown=verdict.shown
    )
