"""Webhook check: a POST to a service of the user, and the gate's expressions over its answer."""

from __future__ import annotations

from segserve_operator.adapters.checks.context import CheckContext, ReportResult
from segserve_operator.adapters.checks.expressions import evaluate
from segserve_operator.adapters.checks.http import call
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Post the state of the rollout, and evaluate the gate's expressions over the answer."""
    del report
    if not isinstance(check.spec, WebhookGate):
        raise CheckError(f"the gate {check.gate!r} is not a webhook")
    reply = await call(
        "POST",
        check.spec.url,
        check_address=context.check_address,
        timeout_s=check.spec.timeout.total_seconds(),
        payload={
            "model": check.model,
            "gate": check.gate,
            "candidate": check.candidate,
            "stable": check.stable,
            "phase": check.phase,
            "weight": check.weight,
        },
    )
    expressions = {"passCondition": check.spec.pass_condition, "breachCondition": check.spec.breach_condition}
    async with context.evaluation:
        values = await evaluate(expressions, {"status": reply.status, "body": reply.body})
    # Nothing of the body: whoever configures a gate need not be allowed to read what answers it.
    shown = f"status {reply.status}"
    return CheckResult(
        check.key, context.clock(), passes=values["passCondition"], breaches=values["breachCondition"], shown=shown
    )
