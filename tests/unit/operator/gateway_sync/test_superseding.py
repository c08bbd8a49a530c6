"""A follower that hears of newer plans while Envoy is given one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest

from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.adapters.traffic.envoy_files import ConfigurationRejectedError
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.gateway_sync.follower import Follower
from segserve_operator.gateway_sync.plan_shards import ShardContent

AT = (Endpoint("10.0.0.1", 8000, 8001),)


def content(name: str) -> ShardContent:
    return ShardContent(TrafficPlan((Route("coins", (Share(name, name, 100, AT),)),)), {"0": name}, {})


class SlowGateway:
    """Follows plans, of which `news` tells a newer one while each is being given."""

    def __init__(self, news: Callable[[], None]) -> None:
        self.news = news
        self.given: list[str] = []
        self.held: str | None = None
        self.refuses = ""

    async def shift(self, plan: TrafficPlan, *, superseded: Callable[[], bool]) -> bool:
        name = plan.routes[0].shares[0].group
        if name == self.refuses:
            raise ConfigurationRejectedError(name)
        self.given.append(name)
        self.held = None  # parts of two plans
        self.news()
        await asyncio.sleep(0)
        if superseded():
            return False
        self.held = name
        return True

    async def follows(self) -> bool:
        return True

    async def draining(self) -> list[tuple[str, str]]:
        return []

    async def remove_unused(self) -> None:
        pass

    def refresh_certificates(self) -> str | None:
        return None

    def refresh_credentials(self) -> str | None:
        return None


class Told:
    """A follower whose gateway is told these plans, one each time it is given any."""

    def __init__(self, *plans: str) -> None:
        self._plans: list[str] = []
        self.reports: list[dict[str, Any]] = []
        self.gateway = SlowGateway(self._next)
        self._follower = Follower(cast("EnvoyTraffic", self.gateway), "uid-1", self.reports.append)
        self.tell(*plans)

    def tell(self, *plans: str) -> None:
        self._plans += plans
        self._next()

    def _next(self) -> None:
        if self._plans:
            self._follower.follow(content(self._plans.pop(0)))

    async def passes(self, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)
            await self._follower.one_pass()


async def test_a_plan_is_given_up_for_a_newer_one() -> None:
    told = Told("a", "b")

    await told.passes(2)

    assert told.gateway.given == ["a", "b"]
    assert [report["shards"] for report in told.reports] == [{"0": "b"}]


async def test_of_plans_that_never_stop_coming_every_second_is_followed() -> None:
    told = Told(*"abcdefgh")

    await told.passes(8)

    assert [report["shards"]["0"] for report in told.reports] == ["b", "d", "f", "h"]


@pytest.mark.parametrize("last", ["a", "c"])
async def test_after_a_plan_that_was_given_up_and_one_that_was_refused_envoy_gets_the_next_whatever_it_is(
    last: str,
) -> None:
    told = Told("a")
    await told.passes(1)
    told.tell("b", "c")
    told.gateway.refuses = "c"
    await told.passes(2)
    told.gateway.refuses = ""

    told.tell(last)
    await told.passes(1)

    assert told.gateway.held == last
    assert told.reports[-1]["shards"] == {"0": last}
