"""The query of an A/B test: when it is asked, the values that it had, and why there are none."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.evidence import MetricValues
from segserve_operator.core.gates.base import Outcome, Verdict
from segserve_operator.core.gates.checks import Check
from segserve_operator.core.rollout.phases import Phase

QUERY: Final = "abTestQuery"
"""Name of the verdict, which only says whether there are values."""


def metric_values(case: RolloutCase) -> MetricValues | None:
    """Return the latest values of the query, None if there are none."""
    found = case.result(QUERY)
    if found is None or found.values is None or case.state.phase is not Phase.PROGRESSING:
        return None
    # A run without an answer keeps the values before it, and has a later time.
    return None if found.problem else MetricValues(np.array(found.at_s), np.array(found.values))


def _checks(case: RolloutCase) -> Iterator[Check]:
    test = case.record.policy.ab_test
    if test is not None and test.promql is not None and case.state.phase is Phase.PROGRESSING:
        interval_s = test.promql.interval.total_seconds()
        yield replace(case.check, key=case.key(QUERY), purpose="abTest", query=test.promql, interval_s=interval_s)


def _verdicts(case: RolloutCase) -> Iterator[Verdict]:
    """Yield whether the query has values, for the record; nothing if it was not asked."""
    found = case.result(QUERY)
    if found is not None and found.problem:
        yield Verdict(QUERY, Outcome.UNDECIDED, "NoAnswer", found.problem)
    elif found is not None:
        yield Verdict(QUERY, Outcome.PASS, "Answers", found.shown)


SOURCE: Final = VerdictSource(checks=_checks, verdicts=_verdicts)
