"""Registry of the kinds of checks, and the runner that executes a pool's checks in the background."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping
from functools import partial
from typing import Final

from segserve_operator.adapters.checks import probe, promql, resource, webhook
from segserve_operator.adapters.checks.context import CheckContext, RunCheck
from segserve_operator.core.gates.checks import Check, CheckError, CheckResult, FailedCheck

KINDS: Final[Mapping[str, RunCheck]] = {
    "probe": probe.run,
    "resource": resource.run,
    "webhook": webhook.run,
    "promql": promql.run,
}
RETRY_DELAYS_S: Final = (2.0, 5.0, 15.0, 60.0)
"""Delays after a check without a result; the last repeats. None is longer than the interval of the check."""
log = logging.getLogger("segserve")


def kind_of(check: Check) -> str:
    """Return the kind of a check."""
    if check.purpose != "check":
        return check.purpose
    return check.spec.gate if check.spec is not None else check.gate


class BackgroundCheckRunner:
    """Runs one task for each check. A pass only schedules checks and reads results: nothing here waits or raises.

    A check without a result runs again for as long as it is scheduled, and its result then replaces the problem. A
    check with an interval starts at multiples of it, but never while it is still running.
    """

    def __init__(self, context: CheckContext) -> None:
        self._context = context
        self._checks: dict[str, Check] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._cancelled: set[asyncio.Task[None]] = set()
        self._results: dict[str, CheckResult] = {}

    def schedule(self, checks: Collection[Check]) -> None:
        """Start the new ones of these checks, and cancel and forget all others.

        The key identifies a check; a change of its other fields counts from its next run. Must be called within a
        running event loop.
        """
        self._checks = {check.key: check for check in checks}
        for key in self._tasks.keys() - self._checks.keys():
            task = self._tasks.pop(key)
            self._cancelled.add(task)
            task.add_done_callback(self._cancelled.discard)
            task.cancel()
            self._results.pop(key, None)
        groups = {check.candidate_group for check in checks}
        for group in self._context.samples.keys() - groups:
            del self._context.samples[group]
        for key in self._checks.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._run(key), name=f"check {key}")

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return the results by key; a running check's result may be partial."""
        return dict(self._results)

    async def close(self) -> None:
        """Cancel all checks, and close the connections."""
        self.schedule(())
        await asyncio.gather(*self._cancelled, return_exceptions=True)
        await self._context.gateway.close()

    async def _run(self, key: str) -> None:
        clock, failures = asyncio.get_running_loop().time, 0
        while True:
            check, started_s = self._checks[key], clock()
            result = await self._attempt(check)
            self._keep(key, result)
            if isinstance(result, FailedCheck):
                wait_s = min(RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S) - 1)], check.interval_s)
                failures += 1
            elif math.isinf(check.interval_s):
                return
            else:
                wait_s, failures = check.interval_s - (clock() - started_s) % check.interval_s, 0
            await asyncio.sleep(wait_s)

    async def _attempt(self, check: Check) -> CheckResult:
        kind = kind_of(check)
        try:
            if kind not in KINDS:
                raise CheckError(f"there is no check of the kind {kind!r}; known: {', '.join(KINDS)}")
            return await KINDS[kind](check, self._context, partial(self._keep, check.key))
        except* CheckError as errors:
            problem = str(_first(errors))
        except* Exception as errors:
            log.exception("check %s", check.key)
            problem = f"{type(_first(errors)).__name__}: {_first(errors)}"
        return FailedCheck(problem)

    def _keep(self, key: str, result: CheckResult) -> None:
        if key in self._tasks:
            self._results[key] = result


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one error of a group, which may hold groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
