"""What our own requests say of a quarantined candidate."""

from __future__ import annotations

import math
from typing import Final

from segserve_operator.core.gates.checks import CheckResult

ENOUGH_ANSWERS: Final = 20
DEVIATIONS: Final = 3.0
"""An incident that hits both is no proof: the candidate has to fail so many standard deviations more than stable."""
LONGEST_S: Final = 60.0


def probe_outcome(finding: CheckResult | None, seconds: float) -> int:
    """Return 1 where the candidate answers our requests, -1 where it fails them, and 0 while neither is known.

    `seconds` is for how long it has been asked. It fails with clearly more failures than stable, of as many requests:
    nine of them where stable has none; it also does where all of twenty or more fail while stable answers some. It
    answers once twenty requests came without a failure. A minute and twenty requests without any of these let it go
    on, also where stable fails as well: what remains is for the gates, which have a budget for mistakes. Requests that
    could not be sent say nothing.
    """
    if finding is None or finding.problem or not finding.asked[1]:
        return 0
    (asked_stable, asked), (failed_stable, failed) = finding.asked, finding.failed
    ratio = asked / max(asked_stable, 1)
    clearly = failed - ratio * failed_stable >= DEVIATIONS * math.sqrt(failed + ratio**2 * failed_stable)
    all_fail = failed == asked >= ENOUGH_ANSWERS and failed_stable < asked_stable
    if failed and (clearly or all_fail):
        return -1
    if failed == 0 and asked >= ENOUGH_ANSWERS:
        return 1
    # A new process asks anew: by then the minute may be over before the first answer.
    return 1 if seconds >= LONGEST_S and (finding.done or asked >= ENOUGH_ANSWERS) else 0
