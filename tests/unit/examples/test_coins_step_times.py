from __future__ import annotations

from typing import Any

import httpx
import pytest
from step_times import Counters

STEPS = ("segserve--pre--1", "segserve--net--2", "segserve--post--3")


def triton(requests: int, idle: tuple[str, ...] = ()) -> httpx.Client:
    """Return a client of a Triton whose steps took 1, 10 and 2 ms of each of so many requests."""

    def statistics(name: str, infer_ms: int) -> dict[str, Any]:
        parts = {"success": infer_ms + 1, "queue": 1, "compute_infer": infer_ms}
        parts |= {"compute_input": 0, "compute_output": 0}
        counters = {part: {"count": requests, "ns": ms * requests * 10**6} for part, ms in parts.items()}
        return {"name": name, "inference_stats": {} if name in idle else counters}

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/config"):
            steps = [{"model_name": step} for step in STEPS]
            return httpx.Response(200, json={"ensemble_scheduling": {"step": steps}})
        times = zip((*STEPS, "coins"), (1, 10, 2, 18), strict=True)
        return httpx.Response(200, json={"model_stats": [statistics(*pair) for pair in times]})

    return httpx.Client(base_url="http://triton", transport=httpx.MockTransport(answer))


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(triton(5), id="after earlier requests"),
        pytest.param(triton(0, idle=(*STEPS, "coins")), id="before the first request, without numbers"),
    ],
)
def test_only_the_requests_in_between_count(before: httpx.Client) -> None:
    times = Counters.read(before, "coins").until(Counters.read(triton(25), "coins"))

    assert times.compute_ms == pytest.approx({"decode + preprocess": 1, "network": 10, "postprocess": 2})
    assert times.queue_ms == pytest.approx(3)
    assert times.ensemble_ms == pytest.approx(19)
    assert times.around_ms == pytest.approx(6)
