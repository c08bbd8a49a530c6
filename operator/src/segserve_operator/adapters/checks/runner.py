"""Asks in the background what passes order, and keeps what was found out."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from segserve_operator.adapters.checks.errors import CheckError
from segserve_operator.adapters.checks.kinds import KINDS, kind_of
from segserve_operator.core.gates.checks import CheckResult

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from segserve_operator.adapters.checks.context import CheckContext
    from segserve_operator.core.gates.checks import Check

PAUSES_S: Final = (2.0, 5.0, 15.0, 60.0)
"""Before what had a problem is asked again; the last goes on. It is never later than it is due anyway."""

log = logging.getLogger("segserve")


class BackgroundCheckRunner:
    """Holds one task an order. Passes only leave orders and read findings: nothing here waits, and nothing raises.

    What had a problem is asked again for as long as it is ordered, and an answer then takes the problem's place. What
    is to be asked at intervals is begun at multiples of them, but never while it is under way.
    """

    def __init__(self, tools: CheckContext) -> None:
        self._tools = tools
        self._orders: dict[str, Check] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._findings: dict[str, CheckResult] = {}

    def ask(self, orders: Collection[Check]) -> None:
        """Begin with what is new of these, and give up and forget what is no longer among them.

        An order is known by its key; what else it says counts from the next time it is asked. Must be called within a
        running event loop.
        """
        wanted = self._orders = {order.key: order for order in orders}
        for key in self._tasks.keys() - wanted.keys():
            self._end(self._tasks.pop(key))
            self._findings.pop(key, None)
        groups = {order.candidate_group for order in orders}
        for group in self._tools.samples.keys() - groups:
            del self._tools.samples[group]
        for key in wanted.keys() - self._tasks.keys():
            self._tasks[key] = asyncio.create_task(self._find_out(key), name=f"check {key}")

    def check_results(self) -> Mapping[str, CheckResult]:
        """Return what is known now, by key; of what is still asked it may be part."""
        return dict(self._findings)

    async def close(self) -> None:
        """Give up what is under way, and close the connections."""
        self.ask(())
        await asyncio.gather(*self._ending, return_exceptions=True)
        await self._tools.gateway.close()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _find_out(self, key: str) -> None:
        clock, problems = asyncio.get_running_loop().time, 0
        while True:
            order, began_s = self._orders[key], clock()
            finding = await self._attempt(order)
            self._keep(finding)
            if finding.problem:
                pause_s = min(PAUSES_S[min(problems, len(PAUSES_S) - 1)], order.interval_s)
                problems += 1
            elif math.isinf(order.interval_s):
                return
            else:
                pause_s, problems = order.interval_s - (clock() - began_s) % order.interval_s, 0
            await asyncio.sleep(pause_s)

    async def _attempt(self, order: Check) -> CheckResult:
        kind = kind_of(order)
        try:
            if kind not in KINDS:
                raise CheckError(f"nothing asks for {kind!r}; known: {', '.join(KINDS)}")
            return await KINDS[kind](order, self._tools, self._keep)
        except* CheckError as errors:
            problem = str(_first(errors))
        except* Exception as errors:
            log.exception("check %s", order.key)
            problem = f"{type(_first(errors)).__name__}: {_first(errors)}"
        return self._failed(order, problem)

    def _failed(self, order: Check, problem: str) -> CheckResult:
        known = self._findings.get(order.key, CheckResult(order.key, 0.0))
        return replace(known, at_s=self._tools.clock(), done=True, problem=problem)

    def _keep(self, finding: CheckResult) -> None:
        if finding.key in self._tasks:
            self._findings[finding.key] = finding


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return one error of a group that may hold groups."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
