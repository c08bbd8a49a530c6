"""A supervisor whose passes fail goes on, and ever more slowly, however often files change."""

from __future__ import annotations

import asyncio
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from segserve_common.backoff import RetryDelays
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.request_history import RequestHistory
from segserve_operator.adapters.local.store import LocalStore
from segserve_operator.local_platform import supervisor as module
from segserve_operator.local_platform.supervisor import RETRY_BACKOFF, Supervisor
from segserve_operator.service import ActionLog

PASSES = 30


async def test_a_pass_that_keeps_failing_is_repeated_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor, now_s, began_s = object.__new__(Supervisor), 0.0, list[float]()
    nothing: Any = SimpleNamespace(follow=lambda _: None, url="", ca_file=None, samples=_no_samples)
    monkeypatch.setattr(module.time, "monotonic", lambda: now_s)

    async def fail() -> None:
        nonlocal now_s
        began_s.append(now_s)
        now_s += 0.01
        if len(began_s) == PASSES:
            supervisor.stopping.set()
        raise RuntimeError("no")

    async def wait(_: object, timeout_s: float) -> None:
        nonlocal now_s
        cast(Any, _).close()
        now_s += timeout_s

    monkeypatch.setattr(module.asyncio, "wait_for", wait)
    closed: Any = SimpleNamespace(close=_nothing, aclose=_nothing)
    supervisor.state, supervisor._store = StateFolder(tmp_path), LocalStore(StateFolder(tmp_path))
    supervisor.gateway, supervisor.action_log, supervisor.stopping = nothing, ActionLog(), asyncio.Event()
    supervisor.history = RequestHistory(tmp_path / "requests.jsonl")
    supervisor.service = cast(Any, SimpleNamespace(run_once=fail, failures={}))
    supervisor.check_runner = supervisor.notifier = supervisor.worker = closed
    supervisor._pass_interval_s, supervisor._retries, supervisor._retry_s = 1.0, RetryDelays(RETRY_BACKOFF), 0.0
    changes = count()
    monkeypatch.setattr(Supervisor, "_mtimes", lambda _: {"report.json": next(changes)})

    await supervisor._run()

    assert began_s[-1] > (PASSES - 6) * RETRY_BACKOFF.longest_s


async def _no_samples(_: object) -> dict[str, Any]:
    return {}


async def _nothing() -> None:
    pass
