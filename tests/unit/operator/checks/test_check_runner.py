"""The check_runner asks in the background, once a key, and forgets what nobody orders."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from fakes.golden_pictures import CANDIDATE, STABLE, Pictures, check_of, context_of
from fakes.internal_gateway import internal_listener
from fakes.waiting import HANG_S, eventually
from segserve_operator.adapters.checks import probe, runner
from segserve_operator.adapters.checks.runner import KINDS, BackgroundCheckRunner
from segserve_operator.api.rollout_policy import ResourceGate
from segserve_operator.core.gates import GATES
from segserve_operator.core.gates.base import CheckedGateType
from segserve_operator.core.gates.checks import FailedCheck, ProbeCounts

CHECK: dict[str, Any] = {"spec": ResourceGate(), "gate": "resource"}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "PERIOD_S", 0.01)
    monkeypatch.setattr(runner, "RETRY_DELAYS_S", (0.01,))


async def until(check_runner: BackgroundCheckRunner, key: str, holds: Callable[[Any], bool] = lambda _: True) -> Any:
    async with asyncio.timeout(HANG_S):
        while (found := check_runner.check_results().get(key)) is None or not holds(found):
            await asyncio.sleep(0.005)
    return found


async def test_what_is_no_longer_ordered_is_given_up_and_forgotten(
    check_runner_of: Callable[..., BackgroundCheckRunner], pictures: Pictures
) -> None:
    async with internal_listener(main=pictures.answering(STABLE)) as listener:
        listener.hangs = {"own"}
        check_runner = check_runner_of(listener)
        check_runner.schedule([check_of("probe", seconds=60.0)])
        await until(check_runner, "coins-1/probe/0", lambda found: found.asked[0] > 0)
        check_runner.schedule([])

        async def nothing_is_asked() -> bool:
            return not [task for task in asyncio.all_tasks() if task.get_name().startswith("inquiry")]

        await eventually(nothing_is_asked, "its inquiry has ended")
        assert check_runner.check_results() == {}


async def test_a_problem_is_a_finding_and_is_asked_again_until_it_is_over(
    check_runner_of: Callable[..., BackgroundCheckRunner], pictures: Pictures
) -> None:
    async with internal_listener(main=pictures.answering(STABLE), own=pictures.answering(CANDIDATE)) as listener:
        url, listener.url = listener.url, None
        check_runner = check_runner_of(listener)
        wanted = check_of("probe", seconds=0.06)
        check_runner.schedule([wanted])
        problem = await until(check_runner, wanted.key, lambda found: isinstance(found, FailedCheck))
        listener.url = url
        found = await until(check_runner, wanted.key, lambda found: isinstance(found, ProbeCounts) and found.done)

    assert "no gateway" in problem.problem
    assert found.asked == (6, 6)


async def test_what_had_a_problem_is_asked_again_when_it_is_due_however_long_the_pause(
    check_runner_of: Callable[..., BackgroundCheckRunner], pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "RETRY_DELAYS_S", (3600.0,))
    async with internal_listener(main=pictures.answering(STABLE), own=pictures.answering(CANDIDATE)) as listener:
        url, listener.url = listener.url, None
        check_runner = check_runner_of(listener)
        wanted = check_of("probe", seconds=0.06, interval_s=0.5)
        check_runner.schedule([wanted])
        await until(check_runner, wanted.key, lambda found: isinstance(found, FailedCheck))
        listener.url = url

        found = await until(check_runner, wanted.key, lambda found: isinstance(found, ProbeCounts) and found.done)
        check_runner.schedule([])

    assert found.asked == (6, 6)


async def test_a_fault_of_our_own_is_a_problem_and_no_error_of_the_pass(
    check_runner_of: Callable[..., BackgroundCheckRunner],
) -> None:
    check_runner = check_runner_of()  # its source of samples is empty, and raises IndexError
    check_runner.schedule([check_of("check", **CHECK)])

    assert "IndexError" in (await until(check_runner, "coins-1/probe/0")).problem


async def test_a_kind_that_nothing_asks_for_is_a_problem(check_runner_of: Callable[..., BackgroundCheckRunner]) -> None:
    check_runner = check_runner_of()
    check_runner.schedule([check_of("check", gate="horoscope")])

    assert "'horoscope'" in (await until(check_runner, "coins-1/probe/0")).problem


async def test_samples_keep_the_first_and_the_latest_of_a_group(
    check_runner_of: Callable[..., BackgroundCheckRunner],
) -> None:
    check_runner = check_runner_of(memory=[1, 2, 3, 4, 5, 6, 7])
    for number in range(6):
        check_runner.schedule([check_of("check", key=f"coins-1/resource/{number}", **CHECK)])
        found = await until(check_runner, f"coins-1/resource/{number}")

    assert [sample.memory_bytes["own"] for sample in found.samples] == [1, 4, 5, 6]

    check_runner.schedule([])
    check_runner.schedule([check_of("check", key="coins-2/resource/0", **CHECK)])
    assert len((await until(check_runner, "coins-2/resource/0")).samples) == 1


async def test_closing_ends_everything() -> None:
    async with internal_listener() as listener:
        listener.hangs = {"main", "own"}
        check_runner = BackgroundCheckRunner(context_of(listener))
        check_runner.schedule([check_of("probe", seconds=60.0)])
        await asyncio.sleep(0.05)
        await check_runner.close()

        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("inquiry")]


def test_every_gate_that_asks_has_something_that_asks_for_it() -> None:
    checked = {name for name, gate in GATES.items() if isinstance(gate, CheckedGateType) and gate.purpose == "check"}

    assert {"probe", *checked} == set(KINDS)


def test_every_kind_of_check_is_registered() -> None:
    files = {Path(str(inspect.getfile(cast("Any", run)))).stem for run in KINDS.values()}
    modules = Path(runner.__file__).parent.glob("*.py")
    kinds = {path.stem for path in modules if "async def run(check: Check" in path.read_text()}

    assert files == kinds
