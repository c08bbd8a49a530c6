"""Rollouts, for asyncio."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from segserve.control.rollouts import ANSWER_S, WAIT_S, RolloutList, Rollouts, standing, succeeded
from segserve.control.typed import check_runs
from segserve.control.waiting import wait_for
from segserve.platforms.rollouts.actions import Answered, outcome, requested
from segserve.platforms.rollouts.rollout_view import Ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve.platforms.port import Platform
    from segserve_operator.api.rollout_status import RolloutStatus
    from segserve_operator.api.segmentation_rollout import SegmentationRollout


class AsyncRollouts:
    """`Rollouts` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform
        self._rollouts = Rollouts(platform)

    async def list(self, model: str | None = None) -> RolloutList:
        """Return the records of rollouts, of one model or all, the newest first."""
        return await asyncio.to_thread(self._rollouts.list, model)

    async def get(self, name: str) -> SegmentationRollout:
        """Return the record of a rollout; raises `NotFoundError`."""
        return await asyncio.to_thread(self._rollouts.get, name)

    async def status(self, model: str) -> RolloutStatus:
        """Return where a model's latest rollout stands; raises `NotFoundError` where it has had none."""
        return await asyncio.to_thread(self._rollouts.status, model)

    async def promote(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Send all requests to the new revision now, whatever gates still wait for."""
        return await self._ask(model, "promote", timeout_s)

    async def abort(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Send no requests to the new revision from now on, and fail it."""
        return await self._ask(model, "abort", timeout_s)

    async def pause(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Keep the weight where it is; a breach still rolls back."""
        return await self._ask(model, "pause", timeout_s)

    async def resume(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Go on after a pause, or after a step that waits for a person's word."""
        return await self._ask(model, "resume", timeout_s)

    async def retry(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Try the revision that failed once more, from the beginning."""
        return await self._ask(model, "retry", timeout_s)

    async def rollback(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Leave the stable revision for the one before it, which is still loaded."""
        return await self._ask(model, "rollback", timeout_s)

    async def skip_gate(self, model: str, gate: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Put a gate aside for this rollout: it neither holds the candidate nor rolls it back."""
        return await self._ask(model, "skip-gate", timeout_s, gate)

    async def wait(self, model: str, *, timeout_s: float = WAIT_S) -> RolloutStatus:
        """Return where a model's rollout stands once it is over and its revision serves, as `Rollouts.wait` does."""
        here = await asyncio.to_thread(self._platform)
        await asyncio.to_thread(check_runs, here, model)
        return succeeded(await wait_for(here, Ended(model), timeout_s))

    async def bundle(self, name: str) -> bytes:
        """Return what was kept of a rollout that was rolled back, as .tar.gz; raises `NotFoundError`."""
        return await asyncio.to_thread(self._rollouts.bundle, name)

    async def _ask(self, model: str, verb: str, timeout_s: float, gate: str = "") -> RolloutStatus:
        here = await asyncio.to_thread(self._platform)
        request = await asyncio.to_thread(requested, here, model, verb, gate)
        if timeout_s > 0:
            answered = await wait_for(here, Answered(model, request), timeout_s)
            assert answered is not None, "a model that is gone has answered nothing"
            await asyncio.to_thread(outcome, here, answered, request)
        return standing(await asyncio.to_thread(here.model, model))
