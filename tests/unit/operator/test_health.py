"""When a new process of the operator would do better than the one that runs."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from fakes.kube import FakeKube
from segserve_common.api_errors import UnavailableError
from segserve_common.kube.kinds import MODELS, POOLS
from segserve_operator import main
from segserve_operator.adapters.kube.view import PoolKey, View, fill
from segserve_operator.main import SILENCE_S, Operator
from segserve_operator.metrics.registry import Metrics
from segserve_operator.settings import OperatorSettings


class UnreachableApi:
    """An API server that does not answer; `asked` is set once it was asked twice."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self._calls = 0

    async def versions(self, *_: Any, **__: Any) -> Any:
        self._calls += 1
        if self._calls > 1:
            self.asked.set()
        raise UnavailableError("no route to host")


def operator_with(api: object) -> Operator:
    """Return an operator that saw the cluster an hour ago."""
    nothing: Any = None
    long_ago_s = time.monotonic() - 3600
    view = View((MODELS, POOLS))
    parts = (OperatorSettings(), cast("Any", api), view, nothing, nothing, nothing, Metrics(), long_ago_s)
    return Operator(*parts, tried_at_s=long_ago_s)


async def test_an_api_server_that_does_not_answer_restarts_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "FIRST_AUDIT_S", 0)
    monkeypatch.setattr(main, "AUDIT_S", 0)
    api = UnreachableApi()
    operator = operator_with(api)
    task = asyncio.create_task(operator._audit())
    await api.asked.wait()
    task.cancel()

    assert operator._trouble() is None
    assert time.monotonic() - operator.audited_at_s > SILENCE_S  # an alert looks at this


async def test_what_is_deleted_before_the_watches_begin_is_noticed_soon_after_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(main, "FIRST_AUDIT_S", 0)
    kube = FakeKube()
    kube.put(POOLS, {"metadata": {"name": "default", "namespace": "ml"}})
    noticed: asyncio.Queue[PoolKey] = asyncio.Queue()
    operator = operator_with(kube)
    operator.worker = cast("Any", SimpleNamespace(enqueue=noticed.put_nowait))
    await fill(operator.view, kube, [None])
    kube.vanish(POOLS, "ml", "default")

    auditing = asyncio.create_task(operator._audit())
    assert await noticed.get() == PoolKey("ml", "default")
    assert operator.view.get(POOLS, "ml", "default") is None
    auditing.cancel()


async def test_an_operator_that_no_longer_tries_to_see_the_cluster_is_restarted() -> None:
    trouble = operator_with(UnreachableApi())._trouble()

    assert trouble.startswith("the last try to read the cluster ended 3600 s ago")
