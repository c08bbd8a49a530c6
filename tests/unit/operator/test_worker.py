"""The worker makes one pass at a time for each key, as often as it is needed and never more often."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from fakes.waiting import HANG_S
from segserve_operator.worker import DEBOUNCE_S, ReconcileResult, Worker


@dataclass
class PoolReconciler:
    """Counts passes, and does in each what a test says."""

    answers: list[ReconcileResult | Exception] = field(default_factory=list)
    made: list[str] = field(default_factory=list)
    running: set[str] = field(default_factory=set)
    outcomes: list[str] = field(default_factory=list)
    leader: bool = True
    wanted: bool = True

    async def run(self, key: str) -> ReconcileResult:
        assert key not in self.running, "two passes of one key at a time"
        self.running.add(key)
        await asyncio.sleep(0.01)
        self.running.discard(key)
        self.made.append(key)
        answer = self.answers.pop(0) if self.answers else ReconcileResult(writes=0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def passed(self, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)


@asynccontextmanager
async def working(passes: PoolReconciler) -> AsyncIterator[Worker[str]]:
    worker = Worker(passes.run, lambda _: passes.wanted, lambda: passes.leader, passes)
    try:
        yield worker
    finally:
        await worker.stop()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(HANG_S):
        while not what():
            await asyncio.sleep(0.01)


async def test_many_wakes_before_a_pass_are_one() -> None:
    passes = PoolReconciler()
    async with working(passes) as worker:
        for _ in range(50):
            worker.enqueue("pool")
        await until(lambda: len(passes.made) == 1)
        await asyncio.sleep(0.2)

    assert passes.made == ["pool"]


async def test_a_wake_during_a_pass_is_not_lost() -> None:
    passes = PoolReconciler()
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: bool(passes.running))
        worker.enqueue("pool")
        await until(lambda: len(passes.made) == 2)


async def test_a_pass_that_wrote_is_followed_by_another_until_nothing_is_left_to_write() -> None:
    passes = PoolReconciler(answers=[ReconcileResult(writes=3), ReconcileResult(writes=1), ReconcileResult(writes=0)])
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: len(passes.made) == 3)
        await asyncio.sleep(0.2)

    assert len(passes.made) == 3


@pytest.mark.parametrize(("pass_s", "later_s"), [(0.01, 1.0), (1.2, 1.2 + DEBOUNCE_S)])
async def test_a_key_that_writes_at_once_for_long_is_slowed_to_a_pass_a_second(pass_s: float, later_s: float) -> None:
    now_s = 0.0

    async def run(_: str) -> ReconcileResult:
        nonlocal now_s
        now_s += pass_s
        began_s.append(now_s)
        return ReconcileResult(writes=1)

    async def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        await asyncio.sleep(0)

    began_s: list[float] = []
    worker = Worker(run, lambda _: len(began_s) < 200, lambda: True, PoolReconciler(), clock=lambda: now_s, sleep=sleep)
    worker.enqueue("pool")
    await until(lambda: len(began_s) == 200)
    await worker.stop()

    assert began_s[19] - began_s[0] == pytest.approx(19 * (pass_s + DEBOUNCE_S))
    assert (began_s[-1] - began_s[99]) / 100 == pytest.approx(later_s, rel=0.1)


async def test_a_failed_pass_is_tried_again_without_being_asked() -> None:
    passes = PoolReconciler(answers=[RuntimeError("once"), ValueError("twice")])
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: passes.outcomes == ["RuntimeError", "ValueError", "ok"])


async def test_one_key_that_always_fails_does_not_hold_up_another() -> None:
    passes = PoolReconciler()

    async def run(key: str) -> ReconcileResult:
        if key == "poison":
            raise RuntimeError("always")
        return await passes.run(key)

    worker = Worker(run, lambda _: True, lambda: True, passes)
    worker.enqueue("poison")
    worker.enqueue("pool")
    await until(lambda: passes.made == ["pool"])
    await worker.stop()


async def test_what_is_due_by_itself_is_done_then() -> None:
    passes = PoolReconciler(answers=[ReconcileResult(writes=0, due_s=0.1)])
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: len(passes.made) == 2)


async def test_a_process_that_does_not_lead_makes_no_pass_until_it_does() -> None:
    passes = PoolReconciler(leader=False)
    async with working(passes) as worker:
        worker.enqueue("pool")
        await asyncio.sleep(0.2)
        assert passes.made == []

        passes.leader = True
        worker.enqueue("pool")
        await until(lambda: passes.made == ["pool"])


async def test_a_pool_of_which_nothing_is_left_is_let_go() -> None:
    passes = PoolReconciler()
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: len(passes.made) == 1)
        passes.wanted = False
        worker.enqueue("pool")
        await until(lambda: not worker._tasks)


async def test_a_key_at_rest_is_not_looked_at_again_when_others_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segserve_operator.worker.RESYNC_S", 0.05)
    passes = PoolReconciler(answers=[ReconcileResult(writes=0, due_s=math.inf, at_rest=True)])
    async with working(passes) as worker:
        worker.enqueue("pool")
        await until(lambda: len(passes.made) == 1)
        await asyncio.sleep(0.2)
        assert passes.made == ["pool"]

        worker.enqueue("pool")
        await until(lambda: len(passes.made) >= 3)
