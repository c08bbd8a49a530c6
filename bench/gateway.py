"""Time until a new weight takes effect, and Envoy's memory per model.

    python -m bench.gateway [models ...]

Writes bench/out/gateway.json. Measures a real Envoy with 1, 100 and 1,000 models, each in two groups: the time from the
call that applies a plan with another weight for one model to the end of the first response of the other group, and
until the call returns; then the time until a new group of one model is known, and until one of 100 servers of all
models has left, with the processors' time. Results are medians of many changes, while a client sends requests
continuously.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from bench.gateway_parts import RunningEnvoy, gateway, only_main, plan, rewritten_bytes, server
from bench.smoke import output, sized
from segserve_operator.adapters.traffic.envoy import EnvoyTraffic
from segserve_operator.core.traffic import Endpoint, TrafficPlan

SIZES: Final = sized((1, 100, 1000), (1, 2))
GOALS_MS: Final = {1: 100, 100: 150, 1000: 300}
FLIPS: Final = sized(20, 1)
SERVERS: Final = sized(100, 2)
OUT: Final = output("bench/out/gateway.json")


async def by_candidate(models: int, old: Endpoint, new: Endpoint) -> dict[str, float]:
    """Measure the time to add a group of one model, and Envoy's memory with one group for each model."""
    both = plan(models, old, new, 0)
    single = only_main(both)
    added = replace(single, routes=(both.routes[0], *single.routes[1:]))
    async with gateway(single) as running:
        rss_mib = running.rss_mib
        traffic = running.settings.traffic()
        await traffic.apply(single)
        changes = [await _change(running, traffic, next_plan) for next_plan in (added, single) * 3]
    return {**_medians("new_group", changes[::2]), "envoy_mib": round(rss_mib, 1)}


async def by_server(models: int, old: Endpoint) -> dict[str, float]:
    """Measure the time until one of many servers of all models has left or joined, and Envoy's memory with them."""
    servers = tuple(replace(old, host=f"10.0.0.{number + 1}") for number in range(SERVERS))

    def on(held: tuple[Endpoint, ...]) -> TrafficPlan:
        routes = only_main(plan(models, old, old, 0)).routes
        shares = ((replace(route.shares[0], endpoints=held),) for route in routes)
        return TrafficPlan(tuple(replace(route, shares=each) for route, each in zip(routes, shares, strict=True)), held)

    async with gateway(on(servers)) as running:
        rss_mib = running.rss_mib
        traffic = running.settings.traffic()
        await traffic.apply(on(servers))
        changes = [await _change(running, traffic, on(held)) for held in (servers[:-1], servers) * 2]
    rewritten = rewritten_bytes(on(servers), on(servers[:-1]))
    return {
        **_medians(f"server_of_{SERVERS}", changes),
        f"envoy_mib_{SERVERS}_servers": round(rss_mib, 1),
        **{f"server_of_{SERVERS}_{name}": size for name, size in rewritten.items()},
    }


async def _change(running: RunningEnvoy, traffic: EnvoyTraffic, next_plan: TrafficPlan) -> tuple[float, float, float]:
    """Return the seconds until a plan is followed, and those of the processors for Envoy and for this process."""
    began_s, envoy_s, own_s = time.perf_counter(), running.cpu_s, time.process_time()
    await traffic.shift(next_plan)
    spent = time.perf_counter() - began_s, running.cpu_s - envoy_s, time.process_time() - own_s
    await traffic.remove_unused()
    return spent


def _medians(name: str, changes: list[tuple[float, float, float]]) -> dict[str, float]:
    columns = zip(("ms", "envoy_cpu_ms", "own_cpu_ms"), zip(*changes, strict=True), strict=True)
    return {f"{name}_{unit}": round(1e3 * statistics.median(spent_s), 1) for unit, spent_s in columns}


def first_response_s(port: int, model: int, name: str, begin: Callable[[], object]) -> float:
    """Send requests continuously, and return the seconds from `begin` to the first response of the server `name`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def call() -> str:
        connection.request("POST", f"/v2/models/model-{model:04}/infer", body=b"image")
        with connection.getresponse() as response:
            answer = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {answer}")
        return answer

    call()
    begin()
    began_s = time.perf_counter()
    while call() != name:
        if time.perf_counter() - began_s > 30:
            raise RuntimeError(f"no response of {name!r} within 30 s")
        time.sleep(0.0005)
    connection.close()
    return time.perf_counter() - began_s


async def by_plan(models: int, old: Endpoint, new: Endpoint) -> dict[str, float]:
    """Measure the time from the call of `apply`."""
    first_s, apply_s = [], []
    async with gateway(plan(models, old, new, 0)) as running:
        rss_mib = running.rss_mib
        traffic = running.settings.traffic()
        await traffic.apply(plan(models, old, new, 0))
        loop = asyncio.get_running_loop()
        for flip in range(FLIPS):
            model = flip * 37 % models
            for weight, name in ((100, "new"), (0, "old")):
                begun = asyncio.Event()
                response = asyncio.create_task(
                    asyncio.to_thread(
                        first_response_s,
                        running.settings.gateway.port,
                        model,
                        name,
                        partial(loop.call_soon_threadsafe, begun.set),
                    )
                )
                next_plan = plan(models, old, new, weight, changed=model)
                await begun.wait()
                began_s = time.perf_counter()
                await traffic.apply(next_plan)
                apply_s.append(time.perf_counter() - began_s)
                first_s.append(await response)
    return {
        "first_request_ms": round(1e3 * statistics.median(first_s), 1),
        "first_request_worst_ms": round(1e3 * max(first_s), 1),
        "apply_ms": round(1e3 * statistics.median(apply_s), 1),
        "envoy_mib_two_groups": round(rss_mib, 1),
    }


async def measure(sizes: tuple[int, ...]) -> dict[int, dict[str, float]]:
    """Measure gateways with each number of models."""
    results: dict[int, dict[str, float]] = {}
    with server("old") as old, server("new") as new:
        for models in sizes:
            results[models] = await by_plan(models, old, new) | await by_candidate(models, old, new)
            results[models] |= await by_server(models, old)
    return results


def main(arguments: list[str]) -> None:
    """Measure, print the results, and merge them into the file."""
    results = asyncio.run(measure(tuple(map(int, arguments)) or SIZES))
    table = Table(title="From a weight to the first request on the new group")
    table.add_column("models")
    for models in results:
        table.add_column(str(models), justify="right")
    for name in dict.fromkeys(name for row in results.values() for name in row):
        table.add_row(name.replace("_", " "), *(str(row.get(name, "")) for row in results.values()))
    table.add_row("goal ms", *(str(GOALS_MS.get(models, "")) for models in results))
    Console().print(table)
    stored: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        stored = json.loads(OUT.read_text())
    OUT.write_text(json.dumps(stored | {str(models): row for models, row in results.items()}, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
