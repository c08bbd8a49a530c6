"""When a supervisor passes: at rest seldom but at once after a change, and ever more seldom while passes fail."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import pytest

from segserve_builder.agent.protocol import HEARTBEAT_FILE, REPORT_FILE
from segserve_common.backoff import RetryDelays
from segserve_common.process_record import ProcessRecord
from segserve_operator.adapters.local.files import CONFIG_VARIABLE, StateFolder, config_folder
from segserve_operator.adapters.local.request_history import RequestHistory
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.core.failure import FailureReason
from segserve_operator.core.models.actions import Action
from segserve_operator.core.world.observed import EffectFailure
from segserve_operator.local_platform import supervisor as module
from segserve_operator.local_platform.supervisor import PASS_INTERVAL_S, REST_POLL_S, REST_S, RETRY_BACKOFF, Supervisor
from segserve_operator.service import ActionLog, RolloutCache

PASSES = 30


async def pass_times(
    state: StateFolder,
    monkeypatch: pytest.MonkeyPatch,
    run_once: Callable[[], tuple[Action, ...]] = tuple,
    *,
    passes: int = PASSES,
    between: Callable[[float], object] = lambda _: None,
    failures: Mapping[str, object] = MappingProxyType({}),
    **cached: Any,
) -> list[float]:
    """Run a supervisor for so many passes of a world at rest, and return when each began; nothing waits really.

    `cached` is what the passes leave otherwise in their cache.
    """
    supervisor, now_s, began_s = object.__new__(Supervisor), 0.0, list[float]()
    cache = RolloutCache(**{"at_rest": True, **cached})
    nothing: Any = SimpleNamespace(follow=lambda _: None, url="", ca_file=None, samples=_no_samples)
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)

    async def one() -> tuple[Action, ...]:
        nonlocal now_s
        began_s.append(now_s)
        now_s += 0.01
        if len(began_s) == passes:
            supervisor.stopping.set()
        return run_once()

    async def wait(_: object, timeout_s: float) -> None:
        nonlocal now_s
        cast(Any, _).close()
        now_s += timeout_s
        between(now_s)

    monkeypatch.setattr(module.asyncio, "wait_for", wait)
    closed: Any = SimpleNamespace(close=_nothing, aclose=_nothing, observe=lambda *_: None)
    supervisor.state, supervisor._store = state, LocalStore(state)
    supervisor.gateway, supervisor.action_log, supervisor.stopping = nothing, ActionLog(), asyncio.Event()
    supervisor.history = RequestHistory(state.root / "requests.jsonl")
    supervisor.service = cast(Any, SimpleNamespace(run_once=one, failures=failures, rollout_cache=cache))
    supervisor.check_runner = supervisor.notifier = supervisor.worker = supervisor.metrics = closed
    supervisor._pass_interval_s, supervisor._retries, supervisor._retry_s = 1.0, RetryDelays(RETRY_BACKOFF), 0.0
    supervisor._at_rest = False
    await supervisor._run()
    return began_s


async def test_a_pass_that_keeps_failing_is_repeated_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = count()
    monkeypatch.setattr(Supervisor, "_seen", lambda _: {REPORT_FILE: next(changes)})

    def fail() -> tuple[Action, ...]:
        raise RuntimeError("no")

    began_s = await pass_times(StateFolder(tmp_path), monkeypatch, fail)

    assert began_s[-1] > (PASSES - 6) * RETRY_BACKOFF.longest_s


async def test_at_rest_passes_are_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began_s = await pass_times(StateFolder(tmp_path), monkeypatch)

    assert began_s[-1] > (PASSES - 3) * REST_S


REFUSED = EffectFailure("Assign", "main", FailureReason("WriteFailed", "no"), attempts=1, retry_s=60.0, reported=False)


@pytest.mark.parametrize(
    "waiting",
    [
        pytest.param({"at_rest": False}, id="for a time"),
        pytest.param({"repeat_s": 60.0}, id="to repeat an action"),
        pytest.param({"failures": {("Assign", "main"): REFUSED}}, id="to try an action again"),
    ],
)
async def test_a_world_that_waits_for_something_is_not_at_rest(
    waiting: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began_s = await pass_times(StateFolder(tmp_path), monkeypatch, **waiting)

    assert began_s[-1] < PASSES * (PASS_INTERVAL_S + REST_POLL_S)


async def test_a_record_of_the_platform_that_is_lost_is_written_again_at_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, lost_s, back_s = StateFolder(tmp_path), list[float](), list[float]()

    def lose(now_s: float) -> None:
        if not lost_s and now_s > 3.5 * REST_S:
            lost_s.append(now_s)
            state.platform.unlink()
        elif lost_s and not back_s and state.platform.exists():
            back_s.append(now_s)

    await pass_times(state, monkeypatch, passes=8, between=lose)

    assert back_s[0] - lost_s[0] <= 2 * REST_POLL_S


@pytest.fixture
def ending(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """A server and an Envoy that run, for which nobody waits once they end."""
    records = {"server": tmp_path / "groups/main/triton", "Envoy": tmp_path / "gateway/envoy"}
    with ExitStack() as stack:
        command = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]
        running = {each: stack.enter_context(subprocess.Popen(command)) for each in records}
        for each, process in running.items():
            stack.callback(process.kill)
            records[each].parent.mkdir(parents=True)
            records[each].with_suffix(".process.json").write_text(ProcessRecord.of(process.pid).to_json())
        yield running


@pytest.mark.parametrize(
    "change", ["resource", "report", "Secret", "Secret of all platforms", "server", "Envoy", "heartbeat"]
)
async def test_what_concerns_a_pass_ends_the_rest_at_once(
    change: str, ending: dict[str, subprocess.Popen[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = StateFolder(tmp_path)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / "config"))
    files = {
        "resource": state.objects / "SegmentationModel/coins/spec.yaml",
        "report": state.groups / "main" / REPORT_FILE,
        "heartbeat": state.groups / "main" / HEARTBEAT_FILE,
        "Secret": state.secrets / "keys/callers",
        "Secret of all platforms": config_folder() / "secrets/keys/callers",
    }
    for file in files.values():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("before")
    changed_s = 0.0

    def alter(now_s: float) -> None:
        nonlocal changed_s
        if not changed_s and now_s > 3.5 * REST_S:
            changed_s = now_s
            if change in ending:
                ending[change].kill()
                os.waitid(os.P_PID, ending[change].pid, os.WEXITED | os.WNOWAIT)
            else:
                os.utime(files[change], (1, 1))

    began_s = await pass_times(state, monkeypatch, passes=8, between=alter)

    after_s = next(each for each in began_s if each >= changed_s) - changed_s
    assert (after_s < REST_POLL_S) is (change != "heartbeat")


async def _no_samples(_: object) -> dict[str, Any]:
    return {}


async def _nothing() -> None:
    pass
