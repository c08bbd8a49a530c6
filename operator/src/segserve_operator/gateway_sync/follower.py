"""Makes Envoy follow the newest plan that it is told, and says what it follows and what still drains."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from segserve_operator.adapters.traffic.envoy_admin import GatewayUnreachableError
from segserve_operator.adapters.traffic.envoy_files import GatewayRefusedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
    from segserve_operator.gateway_sync.plan_shards import Told

_RETRY_S: Final = 0.2
_DRAIN_POLL_S: Final = 0.5
_LOOK_S: Final = 5.0
_CALM_S: Final = 2.0
"""For so long no change of plan is to come before tidying: Envoy takes its time over it, and a weight would wait."""
_LOG = logging.getLogger(__name__)


@dataclass(slots=True)
class Pulse:
    """How the follower is: read by the probes."""

    passed_s: float = field(default_factory=time.monotonic)
    followed: Told | None = None
    followed_s: float = 0.0
    shifts: int = 0
    refusals: int = 0
    draining: int = 0


class Follower:
    """Goes round in an event loop; what it is told comes from any thread.

    `send` gets a report after every pass, also one that says nothing new.
    """

    def __init__(self, traffic: EnvoyTraffic, uid: str, send: Callable[[dict[str, Any]], None]) -> None:
        self.pulse = Pulse()
        self._traffic = traffic
        self._uid = uid
        self._send = send
        self._newest: Told | None = None
        self._refused: tuple[Told, str] | None = None
        self._shifted_s = 0.0
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def tell(self, told: Told | None) -> None:
        """Make this the newest plan; from any thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._take, told)

    def _take(self, told: Told | None) -> None:
        if told is not None and told != self._newest:
            self._newest = told
            self._news.set()

    async def run(self) -> None:
        """Go round until this is cancelled."""
        while True:
            self._news.clear()
            try:
                pause_s = await self.one_pass()
            except (GatewayUnreachableError, GatewayRefusedError) as error:
                _LOG.warning("%s", error)
                pause_s = _RETRY_S
            self.pulse.passed_s = time.monotonic()
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._news.wait()

    async def one_pass(self) -> float:
        """Do what is to be done now, and return after how many seconds to look again where nothing is told."""
        told = self._newest
        if told is None:
            return _LOOK_S
        if self._is_new(told) or not await self._traffic.follows():
            await self._shift(told)
        followed = self.pulse.followed
        if followed is None:
            self._report([])
            return _LOOK_S
        draining = await self._traffic.draining()
        self._report(draining)
        if draining:
            return _DRAIN_POLL_S
        calm_s = time.monotonic() - self._shifted_s
        if calm_s < _CALM_S:
            return _CALM_S - calm_s
        if not self._news.is_set():
            await self._traffic.tidy()
        return _LOOK_S

    def _is_new(self, told: Told) -> bool:
        if self._refused is not None and self._refused[0].plan == told.plan:
            return False
        return self.pulse.followed is None or self.pulse.followed.plan != told.plan

    async def _shift(self, told: Told) -> None:
        began_s = time.monotonic()
        try:
            await self._traffic.shift(told.plan)
        except GatewayRefusedError as error:
            _LOG.error("%s", error)
            self._refused = (told, str(error))
            self.pulse.refusals += 1
            return
        self._refused = None
        self._shifted_s = time.monotonic()
        self.pulse.followed = told
        self.pulse.followed_s = time.monotonic() - began_s
        self.pulse.shifts += 1

    def _report(self, draining: list[tuple[str, str]]) -> None:
        newest, followed = self._newest, self.pulse.followed
        if newest is not None and followed is not None and newest.plan == followed.plan:
            self.pulse.followed = followed = newest  # other versions of equal content
            self._refused = None
        self.pulse.draining = len(draining)
        refused = dict(newest.refused) if newest is not None else {}
        if self._refused is not None:
            refused["plan"] = self._refused[1]
        self._send(
            {
                "uid": self._uid,
                "shards": dict(followed.versions) if followed is not None else {},
                "draining": [list(pair) for pair in draining],
                "refused": refused,
            }
        )
