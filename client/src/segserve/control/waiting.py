"""Waiting without a thread: a cancelled task leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from segserve.platforms.port import Json, Platform
    from segserve.platforms.waiting import Goal

LOOK_S: Final = 0.5


async def wait_for(here: Platform, goal: Goal, timeout_s: float) -> Json | None:
    """Return the resource as soon as it is as wanted; raises what the goal raises, and `WaitTimeoutError`."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        manifest = await asyncio.to_thread(here.find, goal.kind, goal.name)
        if goal.reached(manifest):
            return manifest
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise goal.late(manifest, f"{timeout_s:g} s")
        await asyncio.sleep(min(LOOK_S, left_s))
