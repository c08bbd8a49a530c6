"""The query of an A/B test: when it is asked, the values that it had, and why there are none."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from segserve_operator.core.evidence import MetricValues
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Check, CheckResult
from segserve_operator.core.models.observed import Observed
from segserve_operator.core.rollout.phases import Phase
from segserve_operator.core.rollout.record import Record, RolloutState

QUERY: Final = "abTestQuery"
"""Name of the verdict, which only says whether there are values."""


def query_check(state: RolloutState, record: Record, template: Check) -> Check | None:
    """Return the check that asks the query, None unless a test by a query is under way."""
    test = record.policy.ab_test
    if test is None or test.promql is None or state.phase is not Phase.PROGRESSING:
        return None
    interval_s = test.promql.interval.total_seconds()
    return replace(template, key=_key(state), purpose="abTest", query=test.promql, interval_s=interval_s)


def metric_values(state: RolloutState, world: Observed) -> MetricValues | None:
    """Return the latest values of the query, None if there are none."""
    found = _found(state, world)
    if found is None or found.values is None or state.phase is not Phase.PROGRESSING:
        return None
    # A run without an answer keeps the values before it, and has a later time.
    return None if found.problem else MetricValues(np.array(found.at_s), np.array(found.values))


def query_verdict(state: RolloutState, world: Observed) -> Verdict | None:
    """Return whether the query has values, for the record; None if it was not asked."""
    found = _found(state, world)
    if found is None:
        return None
    if found.problem:
        return Verdict(QUERY, Outcome.UNDECIDED, "NoAnswer", found.problem)
    return Verdict(QUERY, Outcome.PASS, "Answers", found.shown)


def _found(state: RolloutState, world: Observed) -> CheckResult | None:
    return world.check_results.get(_key(state))


def _key(state: RolloutState) -> str:
    return f"{state.rollout}/{QUERY}"
