"""What the API server in memory can do beyond a real one's contract: lateness, silence, the past, faults."""

from __future__ import annotations

import pytest

from fakes.kube import FakeKube
from fakes.kube_faults import Crash, Fault, Faulty, crash_at, refusal
from segserve_common.api_errors import ConflictError, NotFoundError, ThrottledError, UnavailableError
from segserve_common.kube.kinds import CONFIG_MAPS, MODELS, PODS, Json

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


async def test_listing_drops_what_is_older(kube: FakeKube, clock: Clock) -> None:
    told: list[str] = []
    watch = kube.subscribe(lambda type_, kind, item: told.append(item["metadata"]["name"]), delay_s=5)
    await write(kube, "a")
    watch.relist()
    clock.now += 10
    kube.deliver()

    assert told == []


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


async def test_a_refused_write_changes_nothing_and_nobody_owns_more(kube: FakeKube) -> None:
    await write(kube, "a")
    stale = {"metadata": {"name": "a", "resourceVersion": "77"}, "data": {"other": "1"}}
    with pytest.raises(ConflictError):
        await kube.apply(CONFIG_MAPS, NAMESPACE, stale)

    applied = await kube.apply(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "a"}})

    assert "data" not in applied


async def test_what_callers_do_with_objects_changes_nothing_here(kube: FakeKube) -> None:
    manifest = config("a", key="1")
    made = await kube.apply(CONFIG_MAPS, NAMESPACE, manifest)
    manifest["data"]["key"] = made["data"]["key"] = "2"
    kube.all(CONFIG_MAPS)[0]["data"]["key"] = "3"

    assert (await kube.get(CONFIG_MAPS, NAMESPACE, "a"))["data"] == {"key": "1"}


async def test_a_pod_on_a_node_ends_when_its_kubelet_says_so(kube: FakeKube) -> None:
    for name, spec in (("waiting", {}), ("running", {"nodeName": "node"})):
        kube.put(PODS, {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec})
        await kube.delete(PODS, NAMESPACE, name)

    [running] = kube.all(PODS)
    assert running["metadata"]["deletionTimestamp"]
    kube.vanish(PODS, NAMESPACE, "running")
    assert kube.all(PODS) == []


@pytest.mark.parametrize("after", [False, True])
async def test_a_process_dies_at_its_nth_write(kube: FakeKube, after: bool) -> None:
    faulty = Faulty(kube, crash_at(2, after=after))

    await faulty.list(CONFIG_MAPS, None, {})
    await faulty.apply(CONFIG_MAPS, NAMESPACE, config("a"))
    with pytest.raises(Crash):
        await faulty.apply(CONFIG_MAPS, NAMESPACE, config("b"))
    await faulty.apply(CONFIG_MAPS, NAMESPACE, config("c"))

    names = [item["metadata"]["name"] for item in kube.all(CONFIG_MAPS)]
    assert names == (["a", "b", "c"] if after else ["a", "c"])
    assert faulty.writes == 3
    assert [(call.verb, call.name) for call in faulty.calls][:2] == [("list", ""), ("apply", "a")]


async def test_faults_strike_the_chosen_calls_alone(kube: FakeKube, clock: Clock) -> None:
    error = refusal(ThrottledError, retry_after_s=7)
    faulty = Faulty(kube, Fault(error, verb="status", kind=MODELS, nth=2, times=2), clock=clock)
    kube.put(MODELS, {"metadata": {"name": "m", "namespace": NAMESPACE}, "spec": {}})
    failed = []
    for value in range(5):
        try:
            await faulty.patch(MODELS, NAMESPACE, "m", {"metadata": {"labels": {"n": str(value)}}})
            await faulty.patch(MODELS, NAMESPACE, "m", {"status": {"n": value}}, status=True)
        except ThrottledError as told:
            failed.append((value, told.retry_after_s))

    assert failed == [(1, 7), (2, 7)]


async def test_a_fault_lasts_until_its_time_and_can_be_healed(kube: FakeKube, clock: Clock) -> None:
    faulty = Faulty(kube, Fault(verb="read", times=None, hang_s=30, until=200), sleep=clock.sleep, clock=clock)
    with pytest.raises(UnavailableError):
        await faulty.has(CONFIG_MAPS)
    assert clock.now == 130
    clock.now = 200
    assert await faulty.has(CONFIG_MAPS)

    faulty.add(Fault(times=None))
    with pytest.raises(UnavailableError):
        await faulty.has(CONFIG_MAPS)
    faulty.heal()
    assert await faulty.has(CONFIG_MAPS)
