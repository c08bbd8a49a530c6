"""PromQL check: an instant query, whose numbers the gate bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from segserve_operator.adapters.checks.context import CheckContext, Question, ReportResult
from segserve_operator.api.rollout_policy import PromqlGate
from segserve_operator.core.gates.checks import Check, CheckError, QueryRange

_PLACES: Final = re.compile(r"\{(model|candidate|stable)\}")
_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "'": "\\'", "\n": "\\n"})
_ERRORS: Final = ("bad_data", "execution", "timeout", "canceled", "unavailable", "not_found", "internal")
"""Kinds of errors in Prometheus' answers; the rest of an answer is shown nowhere."""

SHOWN: Final = 8


async def run(check: Check, context: CheckContext, report: ReportResult) -> QueryRange:
    """Run the query."""
    del report
    if not isinstance(check.spec, PromqlGate):
        raise CheckError(f"the gate {check.gate!r} is not a query")
    names = {"model": check.model, "candidate": check.candidate, "stable": check.stable}
    answer = await context.services.ask(
        Question(
            kind="promql",
            pool=context.pool,
            url=f"{check.spec.address.rstrip('/')}/api/v1/query",
            fields={"query": filled(check.spec.query, names)},
            timeout_s=check.spec.timeout.total_seconds(),
        )
    )
    if answer.values is None:
        raise CheckError("the answer contains nothing to judge")
    return QueryRange(*answer.values)


def filled(query: str, names: Mapping[str, str]) -> str:
    """Return the query with the names in place of {model} and the like, as in a quoted label value."""
    return _PLACES.sub(lambda place: names.get(place[1], place[0]).translate(_ESCAPES), query)


def numbers_of(status: int, body: Any) -> list[float]:
    """Return the numbers of an instant query's response, one for each series.

    Raises `CheckError` if it is not one, is empty, or has a value that is not a finite number: that is not a verdict.
    """
    match body:
        case {"status": "success", "data": {"resultType": "scalar", "result": [_, str(text)]}}:
            texts = [text]
        case {"status": "success", "data": {"resultType": "vector", "result": list(series)}}:
            texts = [_value(one) for one in series]
        case {"status": "error", "errorType": str(kind)}:
            raise CheckError(f"Prometheus refuses the query: {kind if kind in _ERRORS else status}")
        case _:
            raise CheckError(f"Prometheus answers {status} without a vector or a scalar")
    try:
        numbers = [float(text) for text in texts]
    except ValueError:
        raise CheckError("the result is not a number") from None
    if not numbers:
        raise CheckError("the query has no result")
    if not all(map(math.isfinite, numbers)):
        raise CheckError(f"the result is not finite: {', '.join(map(str, numbers[:SHOWN]))}")
    return numbers


def _value(series: Any) -> str:
    match series:
        case {"value": [_, str(text)]}:
            return text
    raise CheckError("a series of the result has no value")
