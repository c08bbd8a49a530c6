"""What revisions cost on the real Triton, and one text of metrics at the gateway that a real Prometheus takes."""

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
from fakes.credentials import api_key, key_line
from fakes.mounted_secret import MountedSecret
from fakes.prometheus import ask, prometheus
from fakes.waiting import until
from segserve import Client

pytestmark = pytest.mark.platform

POOL = """\
apiVersion: segserve.dev/v1alpha1
kind: TritonPool
metadata: {name: default}
spec:
  cost: {cpuHour: 0.04, memoryGiBHour: 0.005, currency: EUR, monthlyBudget: 30}
  gateway:
    callerMetrics: {}
    auth: {apiKeys: [{secretRef: {name: callers, key: htpasswd}}], anonymous: true}
"""
CALLERS = ("team-a", "team-b")


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


def records(running: Running) -> list[Path]:
    """Return the records of the gateway's processes."""
    return sorted((running.state / "gateway").glob("*.process.json"))


def next_look(running: Running) -> dict[str, Any]:
    """Return the ledger after its next look."""
    before = costs_of(running)["last"]["at_s"]
    return until(lambda: found if (found := costs_of(running))["last"]["at_s"] > before else None, "a further look")


@pytest.fixture(scope="module")
def priced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The example's networks in a pool with prices, whose gateway knows two callers and counts by them."""
    folder: Path = tmp_path_factory.mktemp("pool")
    (folder / "pool.yaml").write_text(POOL)
    keys = b"\n".join(key_line(name, "s").encode() for name in CALLERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGSERVE_CONFIG", str(folder / "config"))
        (folder / "config/secrets").mkdir(parents=True)
        MountedSecret(folder / "config/secrets/callers", {"htpasswd": keys})
        with platform(MODELS, folder / "pool.yaml") as running:
            yield running


def test_the_shares_of_all_revisions_add_up_to_what_the_servers_processes_used(priced: Running, photo: bytes) -> None:
    running = priced
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


def test_two_callers_share_what_their_requests_used(priced: Running, photo: bytes) -> None:
    """One sends three times as many requests as the other, from another camera."""

    def cost(*arguments: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(priced.segserve("cost", "coins", "-o", "json", *arguments))
        return found

    for name, camera, count in (("team-a", "east", 10), ("team-b", "west", 30)):
        headers = {"x-segserve-slice": camera}
        with Client(priced.url, api_key=api_key(name, "s"), headers=headers) as client:
            for _ in range(count):
                client.segment(photo, model="coins")
    next_look(priced)
    for by, (one, other) in {"caller": ("key:team-a", "key:team-b"), "slice": ("east", "west")}.items():
        before = cost()[0]
        listed = cost("--by", by)
        after = cost()[0]
        rows = {row["name"]: row for row in listed}

        assert rows.keys() - {"(none)"} == {one, other}
        assert rows[other]["requests"] == pytest.approx(3 * rows[one]["requests"])
        assert rows[other]["bytes"] == pytest.approx(3 * rows[one]["bytes"], rel=0.05)
        assert min(rows[name][amount] for name in (one, other) for amount in ("cpuSeconds", "money")) > 0
        for amount in ("cpuSeconds", "requests", "money"):
            total = sum(row[amount] for row in listed)
            assert 0.999 * before[amount] <= total <= 1.001 * after[amount], amount


def test_the_shares_add_up_to_what_servers_and_gateway_used(priced: Running, photo: bytes) -> None:
    """Both go on working while the command reads: what they had used before and after it are bounds."""
    with Client(priced.url) as client:
        for _ in range(20):
            client.segment(photo, model="coins")
    costs = next_look(priced)
    began_s = sum(use[1] for use in costs["last"]["processes"].values())
    spent_s = sum(each["step_cpu_s"] + each["server_cpu_s"] for each in costs["costs"])
    services = [f"gateway/{path.name.removesuffix('.process.json')}" for path in records(priced)]

    def used_s() -> tuple[float, float]:
        return cpu_s(priced, *services), cpu_s(priced, "groups/main/triton", "groups/main/agent") - began_s

    next_look(priced)
    before = used_s()
    rows = json.loads(priced.segserve("cost", "-o", "json"))
    after = used_s()
    gateway_s = sum(row["gatewayCpuSeconds"] for row in rows)
    shares_s = sum(row["cpuSeconds"] for row in rows) - spent_s

    assert "gateway/envoy" in services
    assert 0.98 * before[0] <= gateway_s <= 1.02 * after[0]
    assert 0.98 * sum(before) <= shares_s <= 1.02 * sum(after)
    by_model = {row.get("model", ""): row["gatewayCpuSeconds"] for row in rows}
    assert by_model["coins"] > by_model.get("coins-twostage", 0.0)


@pytest.mark.needs("prometheus")
def test_the_gateway_has_all_metrics_in_one_text_that_prometheus_takes(
    priced: Running, photo: bytes, tmp_path: Path
) -> None:
    with Client(priced.url) as client:
        for _ in range(5):
            client.segment(photo, model="coins")
    next_look(priced)
    text = httpx.get(f"{priced.url}/metrics").raise_for_status().text
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

    with prometheus(tmp_path, {priced.url.removeprefix("http://"): {}}) as url:

        def reached(query: str) -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = until(
                lambda: answer if isinstance(answer := ask(url, query), list) and answer else None, query
            )
            return found

        assert float(reached('segserve_cost_cpu_seconds_total{model="coins",part="steps"}')[0]["value"][1]) > 0
        by_hour = reached('segserve:cost_per_hour:rate5m{model="coins"} > 0')[0]
        assert by_hour["metric"]["currency"] == "EUR"
        assert reached("segserve:pool_cost:forecast30d > 0")
        # Where a scrape failed, Prometheus has nothing until the next one.
        listed = until(lambda: json.loads(priced.segserve("cost", "coins", "--prometheus", url, "-o", "json")), "a row")
        assert listed[0]["requests"] >= 5
        assert listed[0]["per1000Requests"] > 0


def test_the_cost_says_what_callers_do(priced: Running, photo: bytes) -> None:
    with Client(priced.url) as client:
        client.segment(photo, model="coins")
    next_look(priced)

    cost = json.loads(priced.segserve("cost", "coins", "-o", "json"))[0]
    assert cost["cpuSecondsPerRequest"] > 0
    assert cost["megapixels"] > 0
    assert cost["bytes"] > len(photo)
