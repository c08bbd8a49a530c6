"""What the API server in memory can do beyond a real one's contract: lateness, silence, the past, faults."""

from __future__ import annotations

import pytest

from fakes.kube import FakeKube
from segserve_common.api_errors import ConflictError, NotFoundError
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, Json

NAMESPACE = "here"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def kube(clock: Clock) -> FakeKube:
    return FakeKube(clock)


def config(name: str, **data: str) -> Json:
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "data": data}


async def write(kube: FakeKube, *names: str) -> None:
    for name in names:
        await kube.apply(CONFIG_MAPS, NAMESPACE, config(name, key="1"))


async def test_watchers_hear_of_changes_in_order(kube: FakeKube) -> None:
    told: list[tuple[str, str]] = []
    kube.subscribe(lambda type_, kind, item: told.append((type_, item["metadata"]["resourceVersion"])), [CONFIG_MAPS])

    await write(kube, "a")
    await write(kube, "a")
    await kube.patch(CONFIG_MAPS, NAMESPACE, "a", {"data": {"key": "2"}})
    kube.put(MODELS, {"metadata": {"name": "another kind", "namespace": NAMESPACE}, "spec": {}})
    await kube.delete(CONFIG_MAPS, NAMESPACE, "a")

    assert told == [("ADDED", "1"), ("MODIFIED", "2"), ("DELETED", "4")]


async def test_a_late_watcher_hears_each_change_when_it_is_due(kube: FakeKube, clock: Clock) -> None:
    told: list[str] = []
    kube.subscribe(lambda type_, kind, item: told.append(item["metadata"]["name"]), delay_s=5)

    await write(kube, "a")
    clock.now += 3
    await write(kube, "b")
    kube.deliver()
    assert told == []
    clock.now += 2
    kube.deliver()
    assert told == ["a"]
    clock.now += 3
    kube.deliver()
    assert told == ["a", "b"]


async def test_a_watcher_in_silence_hears_of_what_it_missed_by_listing_alone(kube: FakeKube) -> None:
    told: list[str] = []
    watch = kube.subscribe(lambda type_, kind, item: told.append(item["metadata"]["name"]))
    watch.silent = True
    await write(kube, "a")
    watch.silent = False
    await write(kube, "b")

    assert told == ["b"]
    assert [item["metadata"]["name"] for _, item in watch.relist()] == ["a", "b"]


async def test_a_lagging_server_shows_the_past_and_writes_the_present(kube: FakeKube, clock: Clock) -> None:
    await write(kube, "gone")
    clock.now += 10
    await kube.delete(CONFIG_MAPS, NAMESPACE, "gone")
    await write(kube, "new")
    lagging = kube.lagging(5)

    assert [item["metadata"]["name"] for item in await lagging.list(CONFIG_MAPS, None, {})] == ["gone"]
    assert await lagging.versions(CONFIG_MAPS, NAMESPACE, {}) == {(NAMESPACE, "gone"): "1"}
    with pytest.raises(NotFoundError):
        await lagging.get(CONFIG_MAPS, NAMESPACE, "new")
    with pytest.raises(ConflictError):
        await lagging.create(CONFIG_MAPS, NAMESPACE, config("new"))
    clock.now += 5
    assert [item["metadata"]["name"] for item in await lagging.list(CONFIG_MAPS, None, {})] == ["new"]
