"""Makes Envoy follow the newest plan, and reports which one it follows and which models still drain."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from segserve_common.backoff import Backoff, Repeats, RetryDelays
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.adapters.traffic.envoy_auth import CREDENTIALS
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError
from segserve_operator.adapters.traffic.envoy_tls import CERTIFICATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
    from segserve_operator.gateway_sync.plan_shards import ShardContent

_RETRY: Final = Backoff(first_s=0.2, longest_s=5.0)
_SHIFT_AGAIN: Final = Backoff(first_s=2.0, longest_s=60.0)
"""Delay before Envoy is given a plan once more that it took and does not follow."""
_DRAIN_POLL_S: Final = 0.5
_PASS_S: Final = 5.0
_CALM_S: Final = 2.0
"""Time without a new plan before unused configuration is removed, which would delay the next weight."""
_PLAN: Final = "plan"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class FollowerHealth:
    """The state of the follower, for probes and metrics."""

    passed_s: float = field(default_factory=time.monotonic)
    followed: ShardContent | None = None
    followed_s: float = 0.0
    shifts: int = 0
    refusals: int = 0
    draining: int = 0


class Follower:
    """Runs in an event loop; plans come from any thread.

    `send` gets a report after every pass, also if nothing has changed.
    """

    def __init__(self, traffic: EnvoyTraffic, uid: str, send: Callable[[dict[str, Any]], None]) -> None:
        self.health = FollowerHealth()
        self._traffic = traffic
        self._uid = uid
        self._send = send
        self._newest: ShardContent | None = None
        self._refused: tuple[ShardContent, str] | None = None
        self._certificate_problem: str | None = None
        self._credential_problem: str | None = None
        self._gave_up = False
        self._shifted_s = 0.0
        self._shifts: Repeats[str] = Repeats(_SHIFT_AGAIN)
        self._retries = RetryDelays(_RETRY)
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def follow(self, content: ShardContent | None) -> None:
        """Make this the newest plan; safe to call from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._take, content)

    def _take(self, content: ShardContent | None) -> None:
        if content is not None and content != self._newest:
            self._newest = content
            self._changed.set()

    async def run(self) -> None:
        """Make one pass after another until this is cancelled."""
        while True:
            self._changed.clear()
            pause_s = await self.paused_pass()
            self.health.passed_s = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()

    async def paused_pass(self) -> float:
        """Make a pass, and return the seconds until the next one, which grow while passes fail."""
        try:
            pause_s = await self.one_pass()
        except (EnvoyUnreachableError, ConfigurationRejectedError) as error:
            _log.warning("%s", error)
            return self._retries.next_s()
        self._retries.reset()
        return pause_s

    async def one_pass(self) -> float:
        """Do what is due, and return the seconds until the next pass if no plan comes before."""
        self._certificate_problem = self._traffic.refresh_certificates()
        self._credential_problem = self._traffic.refresh_credentials()
        newest = self._newest
        if newest is None:
            return _PASS_S
        new, now_s = self._gave_up or self._is_new(newest), time.monotonic()
        if not new:
            lost = not await self._traffic.follows()
            self._shifts.follow((_PLAN,) if lost else (), now_s)
            new = lost and self._shifts.is_due(_PLAN, now_s, newest.plan)
            if lost and not new:  # nothing is reported of a plan that Envoy does not follow
                return min(self._shifts.wait_s(_PLAN, now_s), _PASS_S)
        if new and not await self._shift(newest):
            return 0.0
        followed = self.health.followed
        if followed is None:
            self._report([])
            return _PASS_S
        draining = await self._traffic.draining()
        self._report(draining)
        if draining:
            return _DRAIN_POLL_S
        calm_s = time.monotonic() - self._shifted_s
        if calm_s < _CALM_S:
            return _CALM_S - calm_s
        if not self._changed.is_set():
            await self._traffic.remove_unused()
        return _PASS_S

    def _is_new(self, content: ShardContent) -> bool:
        if self._refused is not None and self._refused[0].plan == content.plan:
            return False
        return self.health.followed is None or self.health.followed.plan != content.plan

    async def _shift(self, content: ShardContent) -> bool:
        """Make Envoy follow a plan, which it may refuse; return False if it was given up for a newer one."""
        began_s = time.monotonic()
        try:
            self._gave_up = not await self._traffic.shift(content.plan, superseded=partial(self._supersedes, content))
        except ConfigurationRejectedError as error:
            _log.error("%s", error)
            self._refused = (content, str(error))
            self.health.refusals += 1
            return True
        if self._gave_up:
            return False
        self._refused = None
        self._shifted_s = time.monotonic()
        self._shifts.record(_PLAN, self._shifted_s, content.plan)
        self.health.followed = content
        self.health.followed_s = time.monotonic() - began_s
        self.health.shifts += 1
        return True

    def _supersedes(self, content: ShardContent) -> bool:
        """Return whether a newer plan is to be followed instead of this one; of two in a row one is finished."""
        newest = self._newest
        if self._gave_up or newest is None or newest is content:
            return False
        return newest.plan != content.plan and self._is_new(newest)

    def _report(self, draining: list[tuple[str, str]]) -> None:
        newest, followed = self._newest, self.health.followed
        if newest is not None and followed is not None and newest.plan == followed.plan:
            self.health.followed = followed = newest  # other versions of equal content
            self._refused = None
        self.health.draining = len(draining)
        refused = dict(newest.refused) if newest is not None else {}
        if self._refused is not None:
            refused["plan"] = self._refused[1]
        if self._certificate_problem is not None:
            refused[CERTIFICATE] = self._certificate_problem
        if self._credential_problem is not None:
            refused[CREDENTIALS] = self._credential_problem
        self._send(
            {
                "uid": self._uid,
                "shards": dict(followed.versions) if followed is not None else {},
                "draining": [list(pair) for pair in draining],
                "refused": refused,
            }
        )
