"""segserve's own requests to a quarantined candidate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from segserve_operator.core.advance.case import RolloutCase, VerdictSource
from segserve_operator.core.gates.checks import Check, CheckResult, ProbeCounts
from segserve_operator.core.rollout.engine import Signals
from segserve_operator.core.rollout.phases import Phase

ENOUGH_ANSWERS: Final = 20
DEVIATIONS: Final = 3.0
"""Standard deviations by which the candidate must fail more than stable: an incident of both is not proof."""
LONGEST_S: Final = 60.0


def _checks(case: RolloutCase) -> Iterator[Check]:
    if case.state.phase is Phase.QUARANTINED:
        yield replace(case.check, key=case.key(_name(case)), purpose="probe", seconds=LONGEST_S)


def _signal(case: RolloutCase) -> Signals:
    return Signals(probes=probe_outcome(case.result(_name(case)), case.world.now_s - case.state.since_s))


def _name(case: RolloutCase) -> str:
    return f"probe/{case.state.quarantines}"


SOURCE: Final = VerdictSource(checks=_checks, signal=_signal)


def probe_outcome(counts: CheckResult | None, seconds: float) -> int:
    """Return 1 if the candidate answers the requests, -1 if it fails them, and 0 while undecided.

    `seconds` is the time since probing began. The candidate fails with clearly more failures than stable for as many
    requests (nine if stable has none), or if all of twenty or more fail while stable answers some. It answers after
    twenty requests without a failure. After a minute and twenty requests without either outcome it continues, even if
    stable fails as well: the gates decide the rest, with their budget for mistakes. Requests that could not be sent are
    ignored.
    """
    if not isinstance(counts, ProbeCounts) or not counts.asked[1]:
        return 0
    (asked_stable, asked), (failed_stable, failed) = counts.asked, counts.failed
    ratio = asked / max(asked_stable, 1)
    clearly = failed - ratio * failed_stable >= DEVIATIONS * math.sqrt(failed + ratio**2 * failed_stable)
    all_fail = failed == asked >= ENOUGH_ANSWERS and failed_stable < asked_stable
    if failed and (clearly or all_fail):
        return -1
    if failed == 0 and asked >= ENOUGH_ANSWERS:
        return 1
    # A new process probes anew: the minute may then be over before its first answer.
    return 1 if seconds >= LONGEST_S and (counts.done or asked >= ENOUGH_ANSWERS) else 0
