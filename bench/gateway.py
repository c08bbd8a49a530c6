"""How soon a weight takes effect, and what a model costs Envoy in memory.

    python -m bench.gateway [models ...]

Writes bench/out/gateway.json. The real Envoy with 1, 100 and 1,000 models, each in two groups: from the call that
applies a plan with another weight for one model to the end of the first request that the other group answers, and
until the call returns. Where KUBECONFIG names a cluster, the same from the write of the plan's ConfigMap, which the
sidecar of a gateway pod, run here as a process, follows. Medians of many; a client calls all the time.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import statistics
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.table import Table

from bench.gateway_parts import Plans, gateway, only_main, packed_shard, plan, server, sidecar
from bench.platform import ROOT
from segserve_common.kube.names import SHARDS
from segserve_common.kube.shards import shard_of, version_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from segserve_operator.core.traffic import Endpoint

SIZES: Final = (1, 100, 1000)
GOALS_MS: Final = {1: 100, 100: 150, 1000: 300}
FLIPS: Final = 20
OUT: Final = ROOT / "bench/out/gateway.json"


async def by_candidate(models: int, old: Endpoint, new: Endpoint) -> dict[str, float]:
    """Measure what one more group of one model takes, and Envoy's memory where each has one group."""
    both = plan(models, old, new, 0)
    calm = only_main(both)
    changed = replace(calm, routes=(both.routes[0], *calm.routes[1:]))
    taken_s = []
    async with gateway(calm) as running:
        rss_mib = running.rss_mib
        traffic = running.settings.traffic()
        await traffic.apply(calm)
        for told in (changed, calm) * 3:
            began_s = time.perf_counter()
            await traffic.shift(told)
            taken_s.append(time.perf_counter() - began_s)
            await traffic.remove_unused()
    return {
        "new_group_ms": round(1e3 * statistics.median(taken_s[::2]), 1),
        "envoy_mib": round(rss_mib, 1),
    }


def first_answer_s(port: int, model: int, wanted: str, begin: Callable[[], object]) -> float:
    """Return the seconds from `begin` to the first answer of `wanted`, in a thread that calls all the time."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def ask() -> str:
        connection.request("POST", f"/v2/models/model-{model:04}/infer", body=b"image")
        with connection.getresponse() as response:
            answer = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        return answer

    ask()
    begin()
    began_s = time.perf_counter()
    while ask() != wanted:
        if time.perf_counter() - began_s > 30:
            raise RuntimeError(f"{wanted} did not answer within 30 s")
        time.sleep(0.0005)
    connection.close()
    return time.perf_counter() - began_s


async def by_plan(models: int, old: Endpoint, new: Endpoint) -> dict[str, float]:
    """Measure from `shift` on, in a process that has no other model to talk about."""
    first_s, whole_s = [], []
    async with gateway(plan(models, old, new, 0)) as running:
        rss_mib = running.rss_mib
        traffic = running.settings.traffic()
        await traffic.apply(plan(models, old, new, 0))
        loop = asyncio.get_running_loop()
        for flip in range(FLIPS):
            model = flip * 37 % models
            for weight, wanted in ((100, "new"), (0, "old")):
                begun = asyncio.Event()
                asking = asyncio.create_task(
                    asyncio.to_thread(
                        first_answer_s,
                        running.settings.gateway.port,
                        model,
                        wanted,
                        partial(loop.call_soon_threadsafe, begun.set),
                    )
                )
                told = plan(models, old, new, weight, changed=model)
                await begun.wait()
                began_s = time.perf_counter()
                await traffic.apply(told)
                whole_s.append(time.perf_counter() - began_s)
                first_s.append(await asking)
    return {
        "first_request_ms": round(1e3 * statistics.median(first_s), 1),
        "first_request_worst_ms": round(1e3 * max(first_s), 1),
        "apply_ms": round(1e3 * statistics.median(whole_s), 1),
        "envoy_mib_two_groups": round(rss_mib, 1),
    }


async def by_config_map(plans: Plans, models: int, old: Endpoint, new: Endpoint) -> dict[str, float]:
    """Measure from the write of a ConfigMap on, through the sidecar."""
    told = plan(models, old, new, 0)
    plans.write(told)
    wanted = {str(shard): version_of(packed_shard(told, shard)) for shard in range(SHARDS)}
    found_s, written_s = [], []
    async with gateway(told) as running:
        with sidecar(running.settings) as sync:
            while await asyncio.to_thread(plans.followed) != wanted:
                await asyncio.sleep(0.2)
            for flip in range(FLIPS // 2):
                model = flip * 37 % models
                shard = shard_of(f"model-{model:04}")
                for weight, answers in ((100, "new"), (0, "old")):
                    content = packed_shard(plan(models, old, new, weight, changed=model), shard)

                    def write(shard: int = shard, content: str = content) -> None:
                        threading.Thread(target=send, args=(shard, content)).start()

                    def send(shard: int, content: str) -> None:
                        began_s = time.perf_counter()
                        plans.send(shard, content)
                        written_s.append(time.perf_counter() - began_s)

                    port = running.settings.gateway.port
                    found_s.append(await asyncio.to_thread(first_answer_s, port, model, answers, write))
                    await asyncio.sleep(1)
            sync_mib = sync.memory_info().rss / 2**20
    return {
        "api_first_request_ms": round(1e3 * statistics.median(found_s), 1),
        "api_first_request_worst_ms": round(1e3 * max(found_s), 1),
        "api_write_ms": round(1e3 * statistics.median(written_s), 1),
        "sync_mib": round(sync_mib, 1),
    }


async def measure(sizes: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Measure gateways of all sizes."""
    found: dict[int, dict[str, float]] = {}
    plans = Plans() if os.environ.get("KUBECONFIG") else None
    try:
        with server("old") as old, server("new") as new:
            for models in sizes:
                found[models] = await by_plan(models, old, new) | await by_candidate(models, old, new)
                if plans is not None:
                    found[models] |= await by_config_map(plans, models, old, new)
    finally:
        if plans is not None:
            plans.close()
    return found


def main(arguments: list[str]) -> None:
    """Measure, print, and write the file."""
    found = asyncio.run(measure(tuple(map(int, arguments)) or SIZES))
    table = Table(title="From a weight to the first request on the new group")
    table.add_column("models")
    for models in found:
        table.add_column(str(models), justify="right")
    for name in dict.fromkeys(name for row in found.values() for name in row):
        table.add_row(name.replace("_", " "), *(str(row.get(name, "")) for row in found.values()))
    table.add_row("goal ms", *(str(GOALS_MS.get(models, "")) for models in found))
    Console().print(table)
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(OUT.read_text())
    OUT.write_text(json.dumps(known | {str(models): row for models, row in found.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
