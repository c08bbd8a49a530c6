"""Replay: in Shadow, where callers bring no requests, the comparator gets the golden images instead of copies.

It asks both revisions and counts the answers itself; this only brings the images, one after the other.
"""

from __future__ import annotations

import asyncio
from itertools import cycle, islice
from typing import Final

from segserve_builder.golden.judging import builtin_image
from segserve_operator.adapters.checks.context import CheckContext, ReportResult
from segserve_operator.core.gates.checks import Check, CheckResult

FEWEST: Final = 8
"""Requests; fewer images are asked again."""
MOST: Final = 16
"""Images of a larger set."""
PERIOD_S: Final = 0.5
TIMEOUT_S: Final = 5.0
ATTEMPTS: Final = 120
"""Of all requests together, one every `PERIOD_S`: a comparator that has no room for so long takes no more."""


async def run(check: Check, context: CheckContext, report: ReportResult) -> CheckResult:
    """Give the comparator the images of the golden set, or the built-in one; the result counts those that it took."""
    images = await asyncio.to_thread(context.golden_images, check.golden, MOST) if check.golden else ()
    images = images or (builtin_image(),)
    waiting = list(islice(cycle(images), max(len(images), FEWEST)))
    taken = 0
    for _ in range(ATTEMPTS):
        if not waiting:
            break
        if await context.gateway.replay(check.model, waiting[-1], TIMEOUT_S):
            waiting.pop()
            taken += 1
            report(_result(check, taken, context.clock(), done=False))
        await asyncio.sleep(PERIOD_S)
    return _result(check, taken, context.clock(), done=True)


def _result(check: Check, taken: int, at_s: float, *, done: bool) -> CheckResult:
    return CheckResult(check.key, at_s, done=done, asked=(taken, taken))
