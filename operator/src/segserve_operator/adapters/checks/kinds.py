"""Registry of the kinds of checks: by purpose, and for purpose `check` by the kind of gate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from segserve_operator.adapters.checks import golden, probe, promql, resource, webhook
from segserve_operator.adapters.checks.context import RunCheck
from segserve_operator.core.gates.checks import Check

KINDS: Final[Mapping[str, RunCheck]] = {
    "golden": golden.run,
    "probe": probe.run,
    "resource": resource.run,
    "webhook": webhook.run,
    "promql": promql.run,
}


def kind_of(check: Check) -> str:
    """Return the kind of a check."""
    if check.purpose != "check":
        return check.purpose
    return check.spec.gate if check.spec is not None else check.gate
