"""Asks a service of the user's own what it makes of a candidate."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.checks.expressions import truth_of
from segserve_operator.adapters.checks.http import call
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import CheckResult

if TYPE_CHECKING:
    from segserve_operator.adapters.checks.context import CheckContext, Tell
    from segserve_operator.core.gates.checks import Check

SHOWN: Final = 200


async def ask(order: Check, tools: CheckContext, tell: Tell) -> CheckResult:
    """Tell it of the rollout, and find out what the gate's expressions say of its answer."""
    del tell
    if not isinstance(order.spec, WebhookGate):
        raise CheckError(f"the gate {order.gate!r} is no webhook")
    reply = await call(
        "POST",
        order.spec.url,
        loopback=tools.local,
        timeout_s=order.spec.timeout.total_seconds(),
        payload={
            "model": order.model,
            "gate": order.gate,
            "candidate": order.candidate,
            "stable": order.stable,
            "phase": order.phase,
            "weight": order.weight,
        },
    )
    expressions = {"passCondition": order.spec.pass_condition, "breachCondition": order.spec.breach_condition}
    found = await truth_of(expressions, {"status": reply.status, "body": reply.body})
    shown = f"status {reply.status}, body {json.dumps(reply.body)[:SHOWN]}"
    return CheckResult(
        order.key, tools.clock(), passes=found["passCondition"], breaches=found["breachCondition"], shown=shown
    )
