"""What revisions use on the real Triton, and one text of metrics at the gateway that a real Prometheus takes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench.platform import MODELS, Running, platform
from fakes.prometheus import ask, prometheus
from fakes.waiting import until
from segserve import Client

pytestmark = pytest.mark.platform


def costs_of(running: Running) -> dict[str, Any]:
    """Return the ledger of the main group's agent, once there is one."""
    file = running.state / "groups/main/costs.json"
    found: dict[str, Any] = until(lambda: json.loads(file.read_text()) if file.exists() else None, "costs are counted")
    return found


def cpu_s(running: Running, *names: str) -> float:
    """Return the CPU time of processes and their descendants, which are named as in the folder of the platform."""
    total = 0.0
    for name in names:
        process = psutil.Process(json.loads((running.state / f"{name}.process.json").read_text())["pid"])
        members = [process, *(process.children(recursive=True) if name.endswith("triton") else [])]
        total += sum(each.cpu_times().user + each.cpu_times().system for each in members)
    return total


def next_look(running: Running) -> dict[str, Any]:
    """Return the ledger after its next look."""
    before = costs_of(running)["last"]["at_s"]
    return until(lambda: found if (found := costs_of(running))["last"]["at_s"] > before else None, "a further look")


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    with platform(MODELS) as found:
        yield found


def test_the_shares_of_all_revisions_add_up_to_what_the_servers_processes_used(running: Running, photo: bytes) -> None:
    first = costs_of(running)
    began_s = sum(use[1] for use in first["last"]["processes"].values())
    spent_s = sum(each["step_cpu_s"] + each["server_cpu_s"] for each in first["costs"])
    with Client(running.url) as client, ThreadPoolExecutor(2) as threads:
        for model, count in (("coins", 150), ("coins-instances", 50)):
            list(threads.map(lambda _, model=model: client.segment(photo, model=model), range(count)))
    next_look(running)
    found = next_look(running)["costs"]
    used_s = cpu_s(running, "groups/main/triton", "groups/main/agent") - began_s
    shares = {each["model"]: each["step_cpu_s"] + each["server_cpu_s"] for each in found}
    requests = {each["model"]: each["requests"] for each in found}

    assert sum(shares.values()) - spent_s == pytest.approx(used_s, rel=0.02)
    assert requests["coins"] >= 150
    assert requests["coins-instances"] >= 50
    assert shares["coins"] > shares["coins-twostage"]


@pytest.mark.needs("prometheus")
def test_the_gateway_has_all_metrics_in_one_text_that_prometheus_takes(
    running: Running, photo: bytes, tmp_path: Path
) -> None:
    with Client(running.url) as client:
        for _ in range(5):
            client.segment(photo, model="coins")
    next_look(running)
    text = httpx.get(f"{running.url}/metrics").raise_for_status().text
    types = Counter(line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE "))
    samples = Counter(
        (sample.name, *sorted(sample.labels.items()))
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    )
    names = {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")}

    assert set(types.values()) == {1}
    assert set(samples.values()) == {1}
    assert {
        "envoy_cluster_upstream_rq_completed",
        "nv_inference_count",
        "segserve_answers_total",
        "segserve_cost_cpu_seconds_total",
        "segserve_agent_server_memory_bytes",
        "segserve_process_cpu_seconds_total",
    } <= {name.partition(" ")[0] for name in names}

    with prometheus(tmp_path, {running.url.removeprefix("http://"): {}}) as url:
        for name in ("cpu_seconds", "memory_byte_seconds", "requests"):
            query = f'segserve_cost_{name}_total{{model="coins"}} > 0'
            until(lambda query=query: isinstance(found := ask(url, query), list) and found, query)
