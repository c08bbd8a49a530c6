"""A group whose requests are counted in two halves: what would tell apart a stable revision from itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from fakes.gateway_clients import Load, ask, served
from segserve_operator.core.rollout.counters import Series
from segserve_operator.core.rollout.windows import window_between
from segserve_operator.core.traffic import TrafficPlan, shadow_of

if TYPE_CHECKING:
    from fakes.gateway import RunningGateway
    from fakes.triton import StubTriton

pytestmark = pytest.mark.platform


def with_shadow(plan: TrafficPlan) -> TrafficPlan:
    """Return the plan with the first share counted in halves."""
    (route,) = plan.routes
    first, *others = route.shares
    return replace(plan, routes=(replace(route, shares=(replace(first, shadow=True), *others)),))


async def attempts(gateway: RunningGateway) -> dict[str, int]:
    found = (await gateway.traffic.count(["coins"]))["coins"].by_series
    return {group: sum(t.attempts for s, t in found.items() if s.group == group) for group in {s.group for s in found}}


async def test_a_shadow_has_half_of_its_groups_requests_and_callers_see_none_of_it(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    await gateway.traffic.apply(with_shadow(served(old, new, 20)))

    answers = [await ask(gateway, "/v2/models/coins/infer", content=b"image") for _ in range(300)]

    told = [answer.headers["x-segserve-group"] for answer in answers]
    found = await attempts(gateway)
    assert set(told) == {"main", "coins-new"}
    assert found["coins-new"] == told.count("coins-new")
    assert found["main"] + found[shadow_of("main")] == told.count("main")
    assert 60 <= found[shadow_of("main")] <= 180  # 120 are expected, and the deviation is 8.5
    await gateway.in_flight({})


async def test_a_shadow_comes_changes_and_goes_without_a_failed_request(
    gateway: RunningGateway, old: StubTriton, new: StubTriton
) -> None:
    load = Load(gateway)
    await gateway.traffic.apply(served(old, new, 0))
    async with load:
        for told in (served(old, new, 0), served(old, new, 40), served(old, new, 10)):
            await gateway.traffic.apply(with_shadow(told))
            await load.goes_on()
            await gateway.traffic.apply(told)
            await load.goes_on()

    assert load.failures == []
    assert load.answers["new"] > 0


async def test_a_look_at_a_group_has_its_shadow_and_one_at_both_has_them_apart(
    serving: RunningGateway, old: StubTriton
) -> None:
    plan = with_shadow(served(old))
    await serving.traffic.apply(plan)
    await ask(serving, "/v2/models/coins/infer", content=b"image")
    before = await serving.traffic.count(["coins"])
    for _ in range(40):
        await ask(serving, "/v2/models/coins/infer", content=b"image")
    after = await serving.traffic.count(["coins"])
    samples = {"local": before["coins"]}, {"local": after["coins"]}

    whole = window_between(*samples, "main", "coins-new").window
    halves = window_between(*samples, "main", shadow_of("main")).window

    assert whole.requests.tolist() == [40, 0]
    assert halves.requests.sum() == 40
    assert (halves.requests > 0).all()
    assert Series(shadow_of("main"), "http") in after["coins"].by_series
