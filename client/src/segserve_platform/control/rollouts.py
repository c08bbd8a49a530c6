"""Rollouts as typed resources: `client.rollouts`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Final, TypeAlias, cast

from segserve_operator.api.segmentation_model import SegmentationModel
from segserve_operator.api.segmentation_rollout import RolloutPhase, RolloutStatus, SegmentationRollout
from segserve_platform.control.typed import P, check_runs, in_thread, record, typed, wait_for_async
from segserve_platform.platforms.errors import NotServingError
from segserve_platform.platforms.port import Json, Platform
from segserve_platform.platforms.rollouts.actions import outcome, request_action, run_action
from segserve_platform.platforms.rollouts.rollout_view import Ended, is_written, no_rollout
from segserve_platform.platforms.waiting import wait_for

RolloutList: TypeAlias = list[SegmentationRollout]

ANSWER_S: Final = 10.0
WAIT_S: Final = 3600.0


class Rollouts:
    """The rollouts of new revisions: `client.rollouts`.

    An action names the model and applies to its current rollout. It returns the state of the rollout once the platform
    has handled the action. It raises `ConflictError` if the action is not possible (any more), and `WaitTimeoutError`
    if it was not handled within `timeout_s`; the request then stays in place. `timeout_s=0` does not wait.
    """

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform

    def list(self, model: str | None = None) -> RolloutList:
        """Return the records of rollouts of one model or all, newest first."""
        records = [typed(each, SegmentationRollout) for each in self._platform().rollouts() if is_written(each)]
        return sorted((each for each in records if model in (None, each.spec.model)), key=_begun, reverse=True)

    def get(self, name: str) -> SegmentationRollout:
        """Return the record of a rollout, whose name is `status(model).name`. Raises `NotFoundError`."""
        return record(self._platform(), name)

    def status(self, model: str) -> RolloutStatus:
        """Return the state of a model's latest rollout; raises `NotFoundError` if it has had no rollout."""
        return standing(self._platform().model(model))

    def promote(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Send all requests to the new revision now, regardless of its gates; roll out one that was only judged."""
        return self._ask(model, "promote", timeout_s)

    def abort(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Stop sending requests to the new revision, and mark it as failed."""
        return self._ask(model, "abort", timeout_s)

    def pause(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Keep the current weight; a breach still rolls back."""
        return self._ask(model, "pause", timeout_s)

    def resume(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Continue after a pause, or after a step that needs approval."""
        return self._ask(model, "resume", timeout_s)

    def retry(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Roll out the failed revision again from the start; returns the state of the new rollout."""
        return self._ask(model, "retry", timeout_s)

    def rollback(self, model: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Return from the stable revision to the previous one, which is still loaded."""
        return self._ask(model, "rollback", timeout_s)

    def skip_gate(self, model: str, gate: str, *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        """Ignore a gate for this rollout: it neither blocks the candidate nor rolls it back."""
        return self._ask(model, "skip-gate", timeout_s, gate)

    def wait(self, model: str, *, timeout_s: float = WAIT_S) -> RolloutStatus:
        """Return the state of a model's rollout once it has ended with its revision in service, or only judged it.

        Also waits for a rollout that is about to start. Raises `NotServingError` with the cause if it ended otherwise,
        `NotFoundError` if none is to come, `NoPlatformError` if no platform runs, and `WaitTimeoutError`.
        """
        platform, deadline_s = self._platform(), time.monotonic() + timeout_s
        check_runs(platform, model)
        return succeeded(wait_for(platform, Ended(model), deadline_s, f"{timeout_s:g} s"))

    def _ask(self, model: str, verb: str, timeout_s: float, gate: str = "") -> RolloutStatus:
        platform = self._platform()
        run_action(platform, model, verb, gate=gate, timeout_s=timeout_s)
        return standing(platform.model(model))


def standing(model: Json) -> RolloutStatus:
    """Return the state of a model's latest rollout; raises `NotFoundError` if it has had no rollout."""
    status = typed(model, SegmentationModel).status
    if status is None or status.rollout is None:
        raise no_rollout(model)
    return status.rollout


def succeeded(model: Json | None) -> RolloutStatus:
    """Return the state of a model's ended rollout; raises `NotServingError` if it was rolled back or cancelled."""
    assert model is not None, "`reached` raises for a deleted model"
    rollout = standing(model)
    if rollout.phase not in (RolloutPhase.SUCCEEDED, RolloutPhase.JUDGED):
        cause = ": ".join(filter(None, (rollout.reason, rollout.message)))
        name = model["metadata"]["name"]
        raise NotServingError(
            f"{name}: {rollout.revision} is {rollout.phase}: {cause}", model=name, revision=rollout.revision
        )
    return rollout


def _begun(found: SegmentationRollout) -> tuple[float, str]:
    began = found.status.started_at
    return 0.0 if began is None else began.timestamp(), found.metadata.name


def _asking(
    method: Callable[Concatenate[Any, P], RolloutStatus],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, RolloutStatus]]:
    """Return an action for asyncio; it polls in threads, so that a cancelled task leaves nothing behind."""

    @wraps(method)
    async def ask(self: AsyncRollouts, model: str, gate: str = "", *, timeout_s: float = ANSWER_S) -> RolloutStatus:
        platform = await asyncio.to_thread(self._platform)
        goal = await asyncio.to_thread(request_action, platform, model, method.__name__.replace("_", "-"), gate)
        if timeout_s > 0:
            answered = await wait_for_async(platform, goal, timeout_s)
            assert answered is not None, "`reached` raises for a deleted model"
            await asyncio.to_thread(outcome, platform, answered, goal.request)
        return standing(await asyncio.to_thread(platform.model, model))

    return cast("Callable[Concatenate[Any, P], Coroutine[Any, Any, RolloutStatus]]", ask)


class AsyncRollouts:
    """`Rollouts` for asyncio; see there."""

    def __init__(self, platform: Callable[[], Platform]) -> None:
        self._platform = platform
        self.blocking = Rollouts(platform)

    list = in_thread(Rollouts.list)
    get = in_thread(Rollouts.get)
    status = in_thread(Rollouts.status)
    promote = _asking(Rollouts.promote)
    abort = _asking(Rollouts.abort)
    pause = _asking(Rollouts.pause)
    resume = _asking(Rollouts.resume)
    retry = _asking(Rollouts.retry)
    rollback = _asking(Rollouts.rollback)
    skip_gate = _asking(Rollouts.skip_gate)

    async def wait(self, model: str, *, timeout_s: float = WAIT_S) -> RolloutStatus:
        """Return the state of a model's rollout once it has ended, as `Rollouts.wait` does."""
        platform = await asyncio.to_thread(self._platform)
        await asyncio.to_thread(check_runs, platform, model)
        return succeeded(await wait_for_async(platform, Ended(model), timeout_s))
