"""Webhook check: a POST to a service of the user, whose status is judged."""

from __future__ import annotations

from segserve_operator.adapters.checks.context import CheckContext, Question, ReportResult
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import Check, CheckError, ServiceStatus


async def run(check: Check, context: CheckContext, report: ReportResult) -> ServiceStatus:
    """Post the state of the rollout."""
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
        timeout_s=check.spec.timeout.total_seconds(),
    )
    answer = await context.services.ask(question)
    return ServiceStatus(answer.status)
