"""Asks in the background what passes order, and keeps what was found out."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from segserve_operator.adapters.checks.context import CheckContext
from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.checks.kinds import KINDS, kind_of
from segserve_operator.core.gates.checks import Check, CheckResult

PAUSES_S: Final = (2.0, 5.0, 15.0, 60.0)
"""Before what had a problem is asked again; the last goes on. It is never later than it is due anyway."""

log = logging.getLogger("segserve")


class BackgroundCheckRunner:
    """Holds one task an order. Passes only leave orders and read findings: nothing here waits, and nothing raises.

    What had a problem is asked again for as long as it is ordered, and an answer then takes the problem's place. What
    is to be asked at intervals is begun at multiples of them, but never while it is under way.
    """

    def __init__(self, context: CheckContext) -> None:
        self._context = tools
        self._orders: dict[str, Check] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._findings: dict[str, CheckResult] = {}

    def ask(self, orders: Collection[Check]) -> None:
        """Begin with what is new of these, and give up and forget what is no longer among them.

        An order is known by its key; what else it says counts from the next time it is asked. Must be called within a
        running event loop.
        """
        wanted = self._orders = {check.key: order for check in orders}
        for key in self._tasks.keys() - wanted.keys():
            self._end(self._tasks.pop(key))
            self._findings.pop(key, None)
        groups = {check.candidate_group for check in orders}
        for group in self._context.samples.keys() - groups:
            del self._context.samples[group]
        for key in wanted.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._find_out(key), name=f"check {key}")

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return what is known now, by key; of what is still asked it may be part."""
        return dict(self._findings)

    async def close(self) -> None:
        """Give up what is under way, and close the connections."""
        self.ask(())
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._context.gateway.close()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _find_out(self, key: str) -> None:
        clock, problems = asyncio.get_running_loop().time, 0
        while True:
            check, began_s = self._orders[key], clock()
            finding = await self._attempt(check)
            self._keep(finding)
            if finding.problem:
                pause_s = min(PAUSES_S[min(problems, len(PAUSES_S) - 1)], check.interval_s)
                problems += 1
            elif math.isinf(check.interval_s):
                return
            else:
                pause_s, problems = check.interval_s - (clock() - began_s) % check.interval_s, 0
            await asyncio.sleep(pause_s)

    async def _attempt(self, check: Check) -> CheckResult:
        kind = kind_of(check)
        try:
            if kind not in KINDS:
                raise CheckError(f"nothing asks for {kind!r}; known: {', '.join(KINDS)}")
            return await KINDS[kind](check, self._context, self._keep)
        except* CheckError as errors:
            problem = str(_first(errors))
        except* Exception as errors:
            log.exception("check %s", check.key)
            problem = f"{type(_first(errors)).__name__}: {_first(errors)}"
        return self._failed(check, problem)

    def _failed(self, check: Check, problem: str) -> CheckResult:
        known = self._findings.get(check.key, CheckResult(check.key, 0.0))
        return replace(known, at_s=self._context.clock(), done=True, problem=problem)

    def _keep(self, finding: CheckResult) -> None:
        if finding.key in self._tasks:
            self._findings[finding.key] = finding


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one error of a group that may hold groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
