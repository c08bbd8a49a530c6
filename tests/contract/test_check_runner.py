"""What whoever finds things out promises to the reconcile loop, the fake of the convergence tests included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from fakes.golden_pictures import check_of, context_of
from fakes.platform import Found
from fakes.waiting import HANG_S
from segserve_operator.adapters.checks.runner import KINDS, BackgroundCheckRunner
from segserve_operator.api.rollout_policy import WebhookGate
from segserve_operator.core.gates.checks import Check, CheckResult, ServiceStatus

EVERY_S = 0.02
GATE = WebhookGate(name="latency-budget", url="http://service.example/")
CHECK = check_of("check", "coins-1/latency-budget", gate="latency-budget", spec=GATE, interval_s=EVERY_S)
OTHER = replace(CHECK, key="coins-2/latency-budget", candidate="coins-cccccccccc")


@dataclass
class InMemory:
    """The fake, with a clock of its own."""

    check_runner: Found
    now_s: float = 1000.0

    @property
    def begun(self) -> list[Check]:
        return self.check_runner.begun

    async def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    async def answer(self, *, passes: bool) -> None:
        self.check_runner.answers["check"] = lambda _: ServiceStatus(200 if passes else 404)
        self.check_runner.check_results()
        del self.check_runner.answers["check"]


@dataclass
class InBackground:
    """The real one, which asks a service that takes its time."""

    check_runner: BackgroundCheckRunner
    begun: list[Check] = field(default_factory=list)
    under_way: list[asyncio.Future[bool]] = field(default_factory=list)

    async def ask(self, asked: Check, tools: Any, tell: Any) -> CheckResult:
        self.begun.append(asked)
        self.under_way.append(asyncio.get_running_loop().create_future())
        return ServiceStatus(200 if await self.under_way[-1] else 404)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def answer(self, *, passes: bool) -> None:
        waiting = [future for future in self.under_way if not future.done()]
        for future in waiting:
            future.set_result(passes)
        await asyncio.sleep(0)


Asked: TypeAlias = InMemory | InBackground


@pytest.fixture(params=["memory", "background"])
async def asked(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Asked]:
    if request.param == "memory":
        found = InMemory(Found())
        found.check_runner.clock = lambda: found.now_s
        yield found
        return
    real = InBackground(BackgroundCheckRunner(context_of()))
    monkeypatch.setitem(KINDS, "webhook", real.ask)
    yield real
    await real.check_runner.close()


async def pass_until(asked: Asked, holds: Any, *orders: Check) -> None:
    """Make passes that order these things until it holds."""
    async with asyncio.timeout(HANG_S):
        while not holds():
            asked.check_runner.schedule(orders)
            await asked.pass_time(EVERY_S / 4)


def finding_of(asked: Asked, key: str = CHECK.key) -> CheckResult | None:
    return asked.check_runner.check_results().get(key)


async def test_nothing_is_known_before_it_is_answered(asked: Asked) -> None:
    await pass_until(asked, lambda: asked.begun, CHECK)

    assert finding_of(asked) is None


async def test_an_answer_is_known_for_as_long_as_it_is_ordered(asked: Asked) -> None:
    once = replace(CHECK, interval_s=float("inf"))
    await pass_until(asked, lambda: asked.begun, once)
    await asked.answer(passes=True)
    for _ in range(8):
        await pass_until(asked, lambda: finding_of(asked) is not None, once)
        await asked.pass_time(EVERY_S)

    assert asked.begun == [once]
    asked.check_runner.schedule(())
    assert finding_of(asked) is None


async def test_what_takes_longer_than_its_interval_is_begun_once_and_its_answer_counts(asked: Asked) -> None:
    for _ in range(8):
        asked.check_runner.schedule([CHECK])
        await asked.pass_time(EVERY_S)
    begun = list(asked.begun)
    await asked.answer(passes=True)
    await pass_until(asked, lambda: finding_of(asked) is not None, CHECK)

    assert begun == [CHECK]
    assert finding_of(asked) == ServiceStatus(200)


async def test_it_is_asked_anew_when_it_is_due_with_what_is_true_by_then(asked: Asked) -> None:
    later = replace(CHECK, phase="Progressing", weight=25)
    await pass_until(asked, lambda: asked.begun, CHECK)
    await asked.answer(passes=True)
    await pass_until(asked, lambda: len(asked.begun) == 2, later)

    assert asked.begun == [CHECK, later]
    known = finding_of(asked)
    assert known.status == 200
    await asked.answer(passes=False)
    await pass_until(asked, lambda: (found := finding_of(asked)) is not None and found.status == 404, later)


async def test_what_is_no_longer_ordered_is_given_up_and_its_answer_is_nobodys(asked: Asked) -> None:
    await pass_until(asked, lambda: asked.begun, CHECK)
    asked.check_runner.schedule([OTHER])
    await pass_until(asked, lambda: OTHER in asked.begun, OTHER)
    await asked.answer(passes=True)
    await pass_until(asked, lambda: finding_of(asked, OTHER.key) is not None, OTHER)

    assert set(asked.check_runner.check_results()) == {OTHER.key}


async def test_what_is_ordered_again_after_it_was_not_is_asked_anew(asked: Asked) -> None:
    await pass_until(asked, lambda: asked.begun, CHECK)
    asked.check_runner.schedule(())
    await pass_until(asked, lambda: len(asked.begun) == 2, CHECK)
    await asked.answer(passes=True)
    await pass_until(asked, lambda: finding_of(asked) is not None, CHECK)

    assert asked.begun == [CHECK, CHECK]
