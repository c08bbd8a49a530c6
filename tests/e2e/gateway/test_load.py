"""The load test through the real gateway: a candidate that answers one request after the other is found by its rate."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest

from fakes.compared_groups import compare_nothing
from fakes.gateway import running_gateway
from fakes.gateway_clients import ask, served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_builder.comparator.groups import GroupClient
from segserve_builder.comparator.http_server import ByteBudget, serving
from segserve_builder.comparator.load import LoadTiming
from segserve_builder.comparator.service import Comparator
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.api.rollout_policy import LoadTestGate, RolloutPolicy, Slo
from segserve_operator.core.evidence import EDGES_MS, EvidenceWindow
from segserve_operator.core.gates.load import GATE
from segserve_operator.core.rollout.pairs import pairs_between
from segserve_operator.core.traffic import Mirror

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.platform

INFER = "/v2/models/coins/infer"
TIMING = LoadTiming(ramp_s=0.05, full_s=1.0, late_s=2.0)
FEW = Mirror("main", "coins-new", percent=100, requests_per_s=1000.0)


async def test_a_candidate_that_is_fine_alone_and_slow_at_the_rate_of_its_first_step_is_held_with_its_figures(
    tmp_path: Path,
) -> None:
    """It answers in 40 ms, one after the other: 25 a second; its first step brings 120."""
    async with AsyncExitStack() as stack:
        old = stack.enter_context(StubTriton("old", delay_s=0.04))
        new = stack.enter_context(StubTriton("new", delay_s=0.04, serial=True))
        gateway = await stack.enter_async_context(running_gateway(tmp_path, max_request_bytes=2**20))
        folder, budget = EnvoyFiles(gateway.folder).comparator, ByteBudget(2**24)
        folder.path.mkdir(parents=True, exist_ok=True)
        groups = GroupClient(f"http://{gateway.internal}")
        stack.push_async_callback(groups.close)
        comparator = Comparator(folder, groups.ask, compare_nothing, budget, load_timing=TIMING)
        stack.push_async_callback(comparator.close)
        for path, handler in ((folder.copies, comparator.take), (folder.control, comparator.control)):
            await stack.enter_async_context(serving(path, handler, max_body=2**20, budget=budget))
        plan = served(old, new)
        told = replace(plan, routes=(replace(plan.routes[0], mirror=replace(FEW, load_per_s=120.0)),))
        await gateway.traffic.apply(told)
        before = await gateway.traffic.count(["coins"])

        async def has_ended() -> bool:
            answer = await ask(gateway, INFER, content=b"image")
            assert answer.json()["model_version"] == "old"
            return (pairs := (await gateway.traffic.count(["coins"]))["coins"].pairs) is not None and pairs.load.ended

        await eventually(has_ended, "the load test has ended")
        after = await gateway.traffic.count(["coins"])

    callers = replace(EvidenceWindow.nothing(), seconds=np.array(1.0))
    window = pairs_between({"a": before["coins"]}, {"a": after["coins"]}, "main", "coins-new", callers)
    gate = GATE.build(LoadTestGate(), Slo(p95_milliseconds=250), RolloutPolicy(), EDGES_MS)
    verdict = gate.explain(gate.update(gate.start(), window), 1e-12)

    assert verdict.reason in ("SlowUnderLoad", "FailsUnderLoad")
    assert "the SLO is 250 ms" in verdict.message
    assert verdict.numbers["answered_per_s"] < 60
    assert "times as many servers" in verdict.message
    callers_of = {series.group for series, counts in after["coins"].by_series.items() if counts.attempts}
    assert callers_of == {"main"}, "the test is in no count of callers' requests"
