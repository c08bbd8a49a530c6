"""The kinds of questions: by purpose, and of checks by the kind of gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.checks import golden, probe, promql, resource, webhook

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.checks.context import Ask
    from segserve_operator.core.gates.checks import Check

KINDS: Final[Mapping[str, Ask]] = {
    "golden": golden.ask,
    "probe": probe.ask,
    "resource": resource.ask,
    "webhook": webhook.ask,
    "promql": promql.ask,
}


def kind_of(order: Check) -> str:
    """Return the key of what answers an order."""
    if order.purpose != "check":
        return order.purpose
    return order.spec.gate if order.spec is not None else order.gate
