"""Of all operators at most one may write, whatever stops, hangs or jumps."""

from __future__ import annotations

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import pytest

from fakes.kube import FakeKube
from fakes.kube_faults import Fault, Faulty, refusal
from segserve_common.api_errors import ConflictError, InvalidError, ThrottledError, UnavailableError
from segserve_common.kube.kinds import CONFIG_MAPS, LEASES, Json
from segserve_operator.adapters.kube.api import Api, NotLeaderError
from segserve_operator.adapters.kube.lease import ATTEMPT_S, DURATION_S, HELD_S, FencedApi, LeaderLease

NAMESPACE = "segserve"


class World:
    """Simulated time that passes when everybody sleeps; a process can be stopped, and sleeps on until it goes on."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall_offset_s = 0.0
        self.kube = FakeKube(lambda: self.now)
        self._order = 0
        self._sleepers: list[tuple[float, int, str, asyncio.Future[None]]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._stopped: set[str] = set()

    def clock(self) -> float:
        return self.now

    def wall(self) -> datetime:
        return datetime.fromtimestamp(1.8e9 + self.now + self.wall_offset_s, UTC)

    def lease(
        self,
        identity: str,
        api: Api | None = None,
        wall: Callable[[], datetime] | None = None,
        on_acquired: Callable[[], None] = lambda: None,
    ) -> LeaderLease:
        return LeaderLease(
            api or self.kube,
            NAMESPACE,
            "operator",
            identity,
            clock=self.clock,
            sleep=self.sleeper(identity),
            wall=wall or self.wall,
            jitter=lambda: 0.5,
            on_acquired=on_acquired,
        )

    def start(self, lease: LeaderLease) -> asyncio.Task[None]:
        self._tasks.append(asyncio.create_task(lease.run()))
        return self._tasks[-1]

    def sleeper(self, process: str) -> Callable[[float], Awaitable[None]]:
        async def sleep(seconds: float) -> None:
            self._order += 1
            woken = asyncio.get_running_loop().create_future()
            heapq.heappush(self._sleepers, (self.now + seconds, self._order, process, woken))
            await woken

        return sleep

    @contextmanager
    def stopped(self, process: str) -> Iterator[None]:
        """Keep a process from running, as SIGSTOP does."""
        self._stopped.add(process)
        yield
        self._stopped.discard(process)

    async def until(self, time: float, check: Callable[[], None] = lambda: None) -> None:
        """Let time pass; check after every step."""
        while True:
            await _settle()
            check()
            ready = [entry for entry in self._sleepers if entry[2] not in self._stopped]
            at = min((entry[0] for entry in ready), default=time)
            if max(at, self.now) >= time:
                break
            self.now = max(at, self.now)
            due = min(entry for entry in ready if entry[0] == at)
            self._sleepers.remove(due)
            if not due[3].done():
                due[3].set_result(None)
        self.now = time
        check()

    async def pass_s(self, seconds: float, check: Callable[[], None] = lambda: None) -> None:
        await self.until(self.now + seconds, check)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def holder(self) -> str:
        record = self.kube.peek(LEASES, NAMESPACE, "operator")
        return str(record["spec"]["holderIdentity"])


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.fixture
async def world() -> object:
    world = World()
    yield world
    await world.close()


def at_most_one(*leases: LeaderLease) -> Callable[[], None]:
    def check() -> None:
        assert sum(lease.is_held() for lease in leases) <= 1

    return check


async def test_the_first_operator_leads_and_goes_on_to_lead(world: World) -> None:
    lease = world.lease("a")
    world.start(lease)

    for _ in range(100):
        await world.pass_s(1)
        assert lease.is_held()

    record = world.kube.peek(LEASES, NAMESPACE, "operator")
    assert record["spec"]["leaseTransitions"] == 0


async def test_a_second_operator_waits_for_as_long_as_the_first_renews(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    world.start(first)
    await world.pass_s(1)
    world.start(second)

    await world.pass_s(600, at_most_one(first, second))

    assert first.is_held()
    assert not second.is_held()


async def test_an_operator_that_died_is_followed_once_its_lease_has_run_out(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    task = world.start(first)
    world.start(second)
    await world.pass_s(7)

    task.cancel()
    await world.pass_s(HELD_S)
    assert not first.is_held()
    assert not second.is_held()
    await world.pass_s(DURATION_S)

    assert second.is_held()
    assert world.holder() == "b"


async def test_a_stopped_operator_knows_that_it_holds_nothing_before_it_writes(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    world.start(first)
    world.start(second)
    await world.pass_s(7, at_most_one(first, second))
    fenced = FencedApi(world.kube, first)
    with world.stopped("a"):
        await world.pass_s(90, at_most_one(first, second))
        assert second.is_held()

    with pytest.raises(NotLeaderError, match="does not hold"):
        await fenced.create(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "late"}})
    await world.pass_s(60, at_most_one(first, second))

    assert second.is_held()
    assert world.kube.peek(CONFIG_MAPS, NAMESPACE, "late") is None


async def test_an_operator_that_was_stopped_alone_leads_again(world: World) -> None:
    lease = world.lease("a")
    world.start(lease)
    await world.pass_s(7)
    with world.stopped("a"):
        await world.pass_s(90)
        assert not lease.is_held()

    await world.pass_s(1)

    assert lease.is_held()


async def test_after_a_release_the_successor_starts_within_one_retry(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    task = world.start(first)
    await world.pass_s(1)
    world.start(second)
    await world.pass_s(6)

    task.cancel()
    await first.release()
    assert not first.is_held()
    await world.pass_s(2.5, at_most_one(first, second))

    assert second.is_held()


async def test_a_release_takes_nothing_from_a_successor(world: World) -> None:
    first, second = world.lease("a"), world.lease("b")
    task = world.start(first)
    world.start(second)
    await world.pass_s(7)
    task.cancel()
    await world.pass_s(30)
    assert second.is_held()

    await first.release()
    await world.pass_s(30)

    assert second.is_held()
    assert world.holder() == "b"


async def test_a_restarted_operator_of_the_same_name_goes_on_at_once(world: World) -> None:
    task = world.start(world.lease("a"))
    await world.pass_s(7)
    task.cancel()

    again = world.lease("a")
    world.start(again)
    await world.pass_s(0.1)

    assert again.is_held()


@pytest.mark.parametrize("jump_s", [3600, -86400, 0.001])
async def test_jumps_of_the_wall_clock_change_nothing(world: World, jump_s: float) -> None:
    first, second = world.lease("a"), world.lease("b")
    world.start(first)
    await world.pass_s(1)
    world.start(second)
    for _ in range(20):
        await world.pass_s(9, at_most_one(first, second))
        world.wall_offset_s += jump_s

    assert first.is_held()
    assert not second.is_held()


async def test_clocks_that_differ_by_years_or_stand_still_change_nothing(world: World) -> None:
    still = world.wall() - timedelta(days=4000)
    first = world.lease("a", wall=lambda: still)
    second = world.lease("b")
    world.start(first)
    await world.pass_s(1)
    world.start(second)

    await world.pass_s(600, at_most_one(first, second))

    assert first.is_held()


@pytest.mark.parametrize("landed", [False, True], ids=["before it took place", "after it took place"])
@pytest.mark.parametrize("error", [UnavailableError, ConflictError, ThrottledError, InvalidError])
@pytest.mark.parametrize("nth", range(1, 7))
async def test_an_error_of_any_write_delays_but_never_doubles_the_leader(
    world: World, nth: int, error: type[ConflictError], landed: bool
) -> None:
    faulty = Faulty(world.kube, Fault(refusal(error), verb="write", nth=nth, landed=landed))
    first, second = world.lease("a", faulty), world.lease("b")
    world.start(first)
    await world.pass_s(0.5)
    world.start(second)

    await world.pass_s(60, at_most_one(first, second))

    assert first.is_held() or second.is_held()


async def test_a_server_that_is_away_ends_the_lead_and_gives_it_back(world: World) -> None:
    faulty = Faulty(world.kube, clock=world.clock)
    lease = world.lease("a", faulty)
    world.start(lease)
    await world.pass_s(7)

    faulty.add(Fault(times=None, until=world.now + 60))
    await world.pass_s(HELD_S + 0.1)
    assert not lease.is_held()
    await world.pass_s(55)

    assert lease.is_held()


class Slow(Faulty):
    """Answers after so many seconds of the simulated time."""

    def __init__(self, world: World, process: str, seconds: float, *, reads: bool = True) -> None:
        super().__init__(world.kube)
        self.seconds, self._sleep, self._reads = seconds, world.sleeper(process), reads

    async def _do(self, verb, kind, name, make):  # type: ignore[no-untyped-def]
        if self._reads or verb != "get":
            await self._sleep(self.seconds)
        return await make()


async def test_a_server_that_takes_5_s_for_each_answer_keeps_its_leader(world: World) -> None:
    first, second = world.lease("a", Slow(world, "a", 5.0)), world.lease("b", Slow(world, "b", 5.0))
    world.start(first)
    await world.pass_s(60.5)
    world.start(second)

    for _ in range(600):
        await world.pass_s(1)
        assert first.is_held()
        assert not second.is_held()


async def test_attempts_wait_longer_for_a_slow_server_and_as_before_once_it_is_quick(world: World) -> None:
    api = Slow(world, "a", 5.0)
    lease = world.lease("a", api)

    async def attempt(seconds: float) -> bool | None:
        """Return what an attempt says after so many seconds, None while it waits."""
        task = asyncio.create_task(lease.attempt())
        await world.pass_s(seconds)
        return task.result() if task.done() else None

    assert [await attempt(13), await attempt(13), await attempt(13)] == [False, False, True]
    api.seconds = 0.0
    assert await attempt(1)
    api.seconds = 3600.0
    assert await attempt(ATTEMPT_S + 0.1) is False


async def test_a_write_that_takes_longer_than_the_lease_is_held_makes_no_leader_until_the_next(world: World) -> None:
    api, told = Slow(world, "a", 11.0, reads=False), list[float]()
    lease = world.lease("a", api, on_acquired=lambda: told.append(world.now))

    async def attempt(seconds: float) -> bool | None:
        """Return what an attempt says after so many seconds, None while it waits."""
        task = asyncio.create_task(lease.attempt())
        await world.pass_s(seconds)
        return task.result() if task.done() else None

    assert [await attempt(25) for _ in range(4)] == [False] * 4
    assert (lease.is_held(), told) == (False, [])
    api.seconds = 0.0
    assert await attempt(1)
    assert (lease.is_held(), len(told)) == (True, 1)


@pytest.mark.parametrize("seed", range(8))
async def test_no_order_of_stops_and_failures_makes_two_leaders(world: World, seed: int) -> None:
    chance = random.Random(seed)
    apis = [Faulty(world.kube, clock=world.clock) for _ in range(3)]
    leases = [world.lease(str(index), api) for index, api in enumerate(apis)]
    for lease in leases:
        world.start(lease)
    for _ in range(30):
        victim = chance.randrange(3)
        landed = chance.random() < 0.5
        apis[victim].add(Fault(landed=landed, verb="write", times=None, until=world.now + chance.uniform(0, 30)))
        with world.stopped(str(chance.randrange(3))):
            await world.pass_s(chance.uniform(0, 40), at_most_one(*leases))
    await world.pass_s(60, at_most_one(*leases))

    assert sum(lease.is_held() for lease in leases) == 1


async def test_the_leader_writes_and_everybody_reads(world: World) -> None:
    lease = world.lease("a")
    fenced = FencedApi(world.kube, lease)
    manifest: Json = {"metadata": {"name": "a"}, "data": {"key": "value"}}
    writes: list[Callable[[], Awaitable[object]]] = [
        lambda: fenced.create(CONFIG_MAPS, NAMESPACE, manifest),
        lambda: fenced.apply(CONFIG_MAPS, NAMESPACE, manifest),
        lambda: fenced.patch(CONFIG_MAPS, NAMESPACE, "a", {"data": {"key": "other"}}),
        lambda: fenced.delete(CONFIG_MAPS, NAMESPACE, "a"),
    ]
    for write in writes:
        with pytest.raises(NotLeaderError):
            await write()
    assert await fenced.list(CONFIG_MAPS, None, {}) == []

    assert await lease.attempt()
    for write in writes:
        await write()

    assert await fenced.versions(CONFIG_MAPS, None, {}) == {}


async def test_a_write_without_an_answer_ends_before_another_could_lead(world: World) -> None:
    class Hanging(FakeKube):
        async def apply(self, *_: object) -> Json:
            await asyncio.Event().wait()
            raise AssertionError

    lease = world.lease("a")
    await lease.attempt()
    world.now += HELD_S - 0.01
    assert 0 < lease.remaining_s() <= DURATION_S - HELD_S + 0.01
    world.now += DURATION_S - HELD_S  # so that the test waits a hundredth of a second and not five
    lease.is_held = lambda: True  # type: ignore[method-assign]

    with pytest.raises(UnavailableError, match="no answer"):
        await FencedApi(Hanging(), lease).apply(CONFIG_MAPS, NAMESPACE, {"metadata": {"name": "a"}})


async def test_who_takes_the_lead_is_told_once(world: World) -> None:
    told: list[float] = []
    lease = world.lease("a", on_acquired=lambda: told.append(world.now))
    world.start(lease)

    await world.pass_s(100)

    assert told == [1000.0]
