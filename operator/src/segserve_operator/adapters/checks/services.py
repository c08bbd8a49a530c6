"""Tenants' services asked by this process: a worker without credentials, and tests."""

from __future__ import annotations

import asyncio
from typing import Any
from weakref import WeakValueDictionary

from segserve_common.http.urls import AddressCheck
from segserve_operator.adapters.checks.context import Question, ServiceVerdict
from segserve_operator.adapters.checks.expressions import evaluate
from segserve_operator.adapters.checks.http import Reply, call
from segserve_operator.adapters.checks.promql import SHOWN, numbers_of


class DirectServices:
    """Asks services at the addresses that `check_address` allows.

    A pool's expressions are evaluated one after the other, so that no pool holds up all others.
    """

    def __init__(self, check_address: AddressCheck) -> None:
        self._check_address = check_address
        self._evaluations: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def ask(self, question: Question) -> ServiceVerdict:
        """Send a question and evaluate its expressions; raises `CheckError` if that is no verdict."""
        is_query = question.kind == "promql"
        reply = await call(
            "POST",
            question.url,
            check_address=self._check_address,
            timeout_s=question.timeout_s,
            parameters={name: str(value) for name, value in question.fields.items()} if is_query else None,
            payload=None if is_query else question.fields,
        )
        variables, shown = _numbers(reply) if is_query else _answer(reply)
        expressions = {"passCondition": question.pass_condition, "breachCondition": question.breach_condition}
        evaluation = self._evaluations.setdefault(question.pool, asyncio.Lock())
        async with evaluation:
            values = await evaluate(expressions, variables)
        numbers = tuple(variables.get("result", ())[:SHOWN])
        return ServiceVerdict(values["passCondition"], values["breachCondition"], shown, numbers)


def _numbers(reply: Reply) -> tuple[dict[str, Any], str]:
    numbers = numbers_of(reply.status, reply.body)
    return {"result": numbers}, f"result {', '.join(f'{number:.6g}' for number in numbers[:SHOWN])}"


def _answer(reply: Reply) -> tuple[dict[str, Any], str]:
    # Nothing of the body: whoever configures a gate need not be allowed to read what answers it.
    return {"status": reply.status, "body": reply.body}, f"status {reply.status}"
