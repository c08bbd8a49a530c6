"""From the label of a caller's request, through the real gateway and comparator, to a verdict that names the camera."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import numpy as np
import pytest

from fakes.compared_groups import at_full_rate, compare_nothing
from fakes.gateway import running_gateway
from fakes.gateway_clients import served
from fakes.triton import StubTriton
from fakes.waiting import eventually
from segserve_builder.comparator.service import Comparator
from segserve_builder.copies.groups import GroupClient
from segserve_builder.copies.http_server import ByteBudget, serving
from segserve_operator.adapters.traffic.envoy_config import EnvoyFiles
from segserve_operator.api.rollout_policy import RolloutPolicy, SlicesGate, Slo
from segserve_operator.core.evidence import EvidenceWindow
from segserve_operator.core.gates import measured_gates
from segserve_operator.core.gates.base import Outcome
from segserve_operator.core.rollout.counters import Counters
from segserve_operator.core.rollout.pairs import pairs_between
from segserve_operator.core.traffic import Mirror

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.platform

INFER = "/v2/models/coins/infer"
ALL = Mirror("main", "coins-new", percent=100, requests_per_s=1000.0)


def pairs_of(counts: Counters, label: str) -> int:
    slices = counts.pairs.slices if counts.pairs is not None else ()
    return sum(sum(each.failed) for each in slices if each.name == label)


async def test_a_candidate_that_fails_for_one_camera_is_judged_worse_for_it_by_the_labels_of_requests(
    tmp_path: Path,
) -> None:
    async with AsyncExitStack() as stack:
        old, new = (stack.enter_context(StubTriton(version)) for version in ("old", "new"))
        gateway = await stack.enter_async_context(running_gateway(tmp_path, max_request_bytes=2**20))
        folder, budget = EnvoyFiles(gateway.folder).comparator, ByteBudget(2**24)
        folder.path.mkdir(parents=True, exist_ok=True)
        groups = GroupClient(f"http://{gateway.internal}")
        stack.push_async_callback(groups.close)
        comparator = Comparator(folder, groups.ask, compare_nothing, budget, pace=at_full_rate)
        stack.push_async_callback(comparator.close)
        for path, handler in ((folder.copies, comparator.take), (folder.control, comparator.control)):
            await stack.enter_async_context(serving(path, handler, max_body=2**20, budget=budget))
        plan = served(old, new)
        await gateway.traffic.apply(replace(plan, routes=(replace(plan.routes[0], mirror=ALL),)))
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{gateway.authority}", trust_env=False)
        )

        async def ask(headers: dict[str, str], label: str, pairs: int) -> Counters:
            async def are_counted() -> bool:
                assert (await client.post(INFER, content=b"image", headers=headers)).status_code == 200
                return pairs_of((await gateway.traffic.count(["coins"]))["coins"], label) >= pairs

            await eventually(are_counted, f"{pairs} pairs of {label}")
            return (await gateway.traffic.count(["coins"]))["coins"]

        before = await ask({"x-segserve-slice": "camera-1"}, "camera-1", 1)
        new.status = 503
        await ask({"X-Segserve-Slice": "camera-7"}, "camera-7", 30)
        new.status = 200
        known = pairs_of(before, "camera-1")
        after = await ask({"baggage": "segserve.slice=camera-1"}, "camera-1", known + 10)

    callers = replace(EvidenceWindow.nothing(), seconds=np.array(300.0))
    window = pairs_between({"a": before}, {"a": after}, "main", "coins-new", callers)
    gate = measured_gates(RolloutPolicy().model_copy(update={"gates": (SlicesGate(),)}), Slo())["slices"]
    verdict = gate.explain(gate.update(gate.start(), window), 0.01)

    assert (verdict.outcome, verdict.reason, verdict.numbers["worse"]) == (Outcome.BREACH, "SliceWorse", 1)
    assert re.fullmatch(
        r"worse for camera-7: the candidate alone failed on (\d+) of \1, stable alone on 0", verdict.message
    )
