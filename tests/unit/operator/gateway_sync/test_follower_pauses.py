"""A follower whose Envoy does nothing: it goes on, and ever more slowly."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_admin import EnvoyUnreachableError
from segserve_operator.core.traffic import TrafficPlan
from segserve_operator.gateway_sync import follower as module
from segserve_operator.gateway_sync.follower import Follower
from segserve_operator.gateway_sync.plan_shards import ShardContent

HOUR_S = 3600.0


class Envoy:
    """Accepts plans and follows none, or is not there."""

    def __init__(self, *, present: bool) -> None:
        self.present, self.shifts = present, 0

    async def shift(self, *_: Any, **__: Any) -> bool:
        self.shifts += 1
        if not self.present:
            raise EnvoyUnreachableError("nobody answers")
        return True

    async def follows(self) -> bool:
        return False

    async def draining(self) -> list[tuple[str, str]]:
        return []

    async def remove_unused(self) -> None:
        pass

    def refresh_certificates(self) -> str | None:
        return None

    def refresh_credentials(self) -> str | None:
        return None


@pytest.mark.parametrize("present", [True, False], ids=["it follows no plan", "nobody answers"])
async def test_a_plan_is_not_given_again_without_a_pause(present: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    envoy, now_s = Envoy(present=present), 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)
    follower = Follower(cast("EnvoyTraffic", envoy), "uid-1", lambda _: None)
    follower.follow(ShardContent(TrafficPlan(()), {"0": "a"}, {}))
    await asyncio.sleep(0)

    while now_s < HOUR_S:
        now_s += await follower.paused_pass()

    assert envoy.shifts < HOUR_S / 4
