"""The sidecar's loop in front of the real Envoy."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fakes.gateway import RunningGateway
from fakes.gateway_clients import Load, ask, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.core.traffic import Endpoint, Route, Share, TrafficPlan
from segserve_operator.gateway_sync.follower import Follower
from segserve_operator.gateway_sync.plan_shards import ShardContent

pytestmark = [pytest.mark.platform, pytest.mark.core]


def told(plan: TrafficPlan, version: str, refused: dict[str, str] | None = None) -> ShardContent:
    return ShardContent(plan, {"0": version, "1": "b", "2": "c", "3": "d"}, refused or {})


class Following:
    """A follower that goes round, and the reports that it sent."""

    def __init__(self, gateway: RunningGateway) -> None:
        self.reports: list[dict[str, Any]] = []
        traffic = EnvoyTraffic(gateway.folder, gateway.gateway)
        self.follower = Follower(traffic, "uid-1", self.reports.append)
        self._task = asyncio.create_task(self.follower.run())

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])

    def version(self) -> str | None:
        return self.reports[-1]["shards"].get("0") if self.reports else None

    async def until(self, look: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        async def reported() -> dict[str, Any] | None:
            return self.reports[-1] if self.reports and look(self.reports[-1]) else None

        report = await eventually(reported, f"a report; the last one: {self.reports[-1:]}")
        return dict(report or {})

    async def passes(self, count: int) -> None:
        """Return after so many more rounds, whatever came of them."""
        for _ in range(count):
            former_s = self.follower.health.passed_s

            async def passed(former_s: float = former_s) -> bool:
                return self.follower.health.passed_s != former_s

            await eventually(passed, "a round of the follower")

    async def tell(self, news: ShardContent) -> dict[str, Any]:
        self.follower.follow(news)
        return await self.until(lambda report: report["shards"] == news.versions)


@pytest.fixture
async def following(gateway: RunningGateway) -> AsyncIterator[Following]:
    found = Following(gateway)
    yield found
    await found.end()


async def test_a_plan_is_followed_and_said_to_be(
    gateway: RunningGateway, following: Following, old: StubTriton
) -> None:
    report = await following.tell(told(served(old), "v1"))

    assert report == {
        "uid": "uid-1",
        "shards": {"0": "v1", "1": "b", "2": "c", "3": "d"},
        "draining": [],
        "refused": {},
    }
    assert (await gateway.traffic.observe()).plan == served(old)


async def test_news_without_a_change_are_said_to_be_followed(following: Following, old: StubTriton) -> None:
    await following.tell(told(served(old), "v1"))

    report = await following.tell(told(served(old), "v2", {"3": "no JSON"}))

    assert report["refused"] == {"3": "no JSON"}


async def test_what_has_no_weight_any_more_drains_and_its_end_is_said(
    gateway: RunningGateway, following: Following, old: StubTriton, new: StubTriton
) -> None:
    await following.tell(told(served(old, new, 0), "v1"))
    old.hold()
    slow = asyncio.create_task(ask(gateway, "/v2/models/coins/infer"))
    await gateway.in_flight({("coins", "main"): 1})

    report = await following.tell(told(served(old, new, 100), "v2"))
    old.release()
    answer = await slow
    await following.until(lambda said: said["draining"] == [])

    assert report["draining"] == [["coins", "main"]]
    assert answer.json()["model_version"] == "old"


async def test_a_refused_plan_is_said_and_the_one_before_stays(
    gateway: RunningGateway, following: Following, old: StubTriton, new: StubTriton
) -> None:
    await following.tell(told(served(old), "v1"))
    share = Share("main", "coins-old", 100, (Endpoint("not an address", 80, 81),))
    following.follower.follow(told(TrafficPlan((Route("coins", (share,)),)), "v2"))

    report = await following.until(lambda said: bool(said["refused"]))
    healed = await following.tell(told(served(old, new, 50), "v3"))

    assert report["shards"]["0"] == "v1"
    assert "refused" in report["refused"]["plan"]
    assert healed["refused"] == {}
    assert (await gateway.traffic.observe()).plan == served(old, new, 50)


async def test_a_refused_plan_that_is_taken_back_is_refused_no_more(following: Following, old: StubTriton) -> None:
    await following.tell(told(served(old), "v1"))
    share = Share("main", "coins-old", 100, (Endpoint("not an address", 80, 81),))
    following.follower.follow(told(TrafficPlan((Route("coins", (share,)),)), "v2"))
    await following.until(lambda said: bool(said["refused"]))

    following.follower.follow(told(served(old), "v3"))

    report = await following.until(lambda said: not said["refused"])
    assert report["shards"]["0"] == "v3"


async def test_an_envoy_that_starts_again_serves_at_once_and_follows_what_was_told_meanwhile(
    gateway: RunningGateway, following: Following, old: StubTriton, new: StubTriton
) -> None:
    await following.tell(told(served(old), "v1"))
    gateway.kill()
    following.follower.follow(told(served(old, new, 100), "v2"))
    await following.passes(2)  # the first may have begun before the plan was told
    assert following.version() == "v1"

    await gateway.resume()
    await following.until(lambda report: report["shards"].get("0") == "v2")

    assert (await ask(gateway, "/v2/models/coins/infer")).json()["model_version"] == "new"


async def test_a_follower_that_starts_again_disturbs_nobody(
    gateway: RunningGateway, following: Following, old: StubTriton, new: StubTriton
) -> None:
    await following.tell(told(served(old, new, 10), "v1"))
    await following.tell(told(served(old, new, 40), "v2"))
    await following.end()
    load = Load(gateway)

    async with load:
        for _ in range(3):
            successor = Following(gateway)
            await successor.tell(told(served(old, new, 40), "v2"))
            await successor.end()

    assert load.failures == []
    assert (await gateway.traffic.observe()).plan == served(old, new, 40)
