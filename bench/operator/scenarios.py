"""What it takes to serve many models: each measurement has a server of its own, and first sees that all is right."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections import Counter, defaultdict
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from bench.operator.api_server import ApiServer, api_server, call
from bench.operator.running import (
    AT_ONCE,
    agents,
    apply_all,
    edited,
    make_namespaces,
    model_manifest,
    model_name,
    namespace_of,
    operator,
    pool_manifest,
    user_api,
    wait_until,
)
from bench.operator.running import LEASES as LEASE_NAMESPACE
from bench.operator.watching import until_answered
from bench.smoke import sized
from segserve_common.kube.kinds import (
    CHILDREN,
    CONFIG_MAPS,
    EVENTS,
    MODELS,
    ROLLOUTS,
)
from segserve_common.kube.kinds import POOLS as POOL_KIND
from segserve_common.kube.names import SHARDS, plan_name
from segserve_common.kube.shards import content_of, unpack
from segserve_operator.adapters.kube.view import PoolKey, fill
from segserve_operator.adapters.traffic.plans import load_plan
from segserve_operator.core.advance.advance import WRITE_INTERVAL_S
from segserve_operator.main import assemble, outbound_of
from segserve_operator.metrics.registry import Metrics
from segserve_operator.settings import OperatorSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from segserve_common.kube.async_client import AsyncKubeClient
    from segserve_common.kube.kinds import Json, Kind
    from segserve_operator.core.traffic import Route

READS: Final = frozenset({"get", "list", "watch"})
LEASES: Final = "leases"
PASSES: Final = 30
APPLIES: Final = sized(7, 1)
QUIET_S: Final = 2.0
START_S: Final = 20.0
"""Time after the first passes in which a start is over: watches begin, and what they list has been handled."""
SAMPLED_POOLS: Final = 10


def applying(times: int = APPLIES) -> dict[str, Any]:
    """Return the seconds from an apply to Ready: of a pool with one model, and of one more model in it."""
    with api_server() as server, agents(server), operator(server) as running:
        make_namespaces(server, times)
        wait_until("the operator answers", running.metrics, 0.1)
        pools = [asyncio.run(_apply_one(server, number)) for number in range(times)]
    first_s, second_s = zip(*pools, strict=True)
    return {"pool_and_model_s": _median(first_s), "second_model_s": _median(second_s), "times": times}


async def _apply_one(server: ApiServer, number: int) -> tuple[float, float]:
    namespace = namespace_of(number)
    async with user_api(server) as api:
        began_s = time.perf_counter()
        await api.create(POOL_KIND, namespace, pool_manifest(namespace))
        first_s = await _until_ready(api, namespace, 0, began_s)
        return first_s, await _until_ready(api, namespace, 1, time.perf_counter())


async def _until_ready(api: AsyncKubeClient, namespace: str, number: int, began_s: float) -> float:
    await api.create(MODELS, namespace, model_manifest(namespace, number))
    while not _is_ready(await api.get(MODELS, namespace, model_name(number))):
        await asyncio.sleep(0.005)
    return time.perf_counter() - began_s


def _is_ready(model: Json) -> bool:
    said = (model.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in said)


def many(models: int, a_pool: int, rest_s: float = 0.0) -> dict[str, Any]:
    """Return what so many models cost: until all are Ready, a new operator's start, its passes, an hour at rest."""
    pools = max(1, models // a_pool)
    found: dict[str, Any] = {"models": models, "pools": pools}
    with api_server() as server:
        make_namespaces(server, pools)
        with agents(server):
            found["first_start"] = _first_start(server, models, pools)
        asyncio.run(_check(server, models, pools))
        found["rest_pass"] = asyncio.run(_passes_at_rest(server, namespace_of(0)))
        found["cold_start"] = _cold_start(server, models, pools)
        if rest_s:
            found["rest_hour"] = _rest(server, pools, rest_s)
    return found


def fleet(
    models: int, a_pool: int, rollouts: int, seconds: float, kept: Path, found: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """Measure what a fleet of such pools costs: at rest, and while so many models of each are rolled out at once.

    Yields after each part all that is known; parts that are in `found` are not measured again. The cluster's objects
    are in `kept`.
    """
    pools = models // a_pool
    found |= {"models": models, "pools": pools, "rollouts": rollouts * pools, "watched_s": seconds}
    parts: dict[str, Callable[[ApiServer], dict[str, Any]]] = {
        "first_start": lambda server: _first_start(server, models, pools),
        "stored": lambda server: _stored(server, pools),
        "cold_start": lambda server: _cold_start(server, models, pools),
        "rest": lambda server: _rest(server, pools, seconds),
        "rolling": lambda server: _rolling(server, models, pools, rollouts, seconds),
        "stored_rolling": lambda server: _stored(server, pools),
    }
    with api_server(kept) as server:
        make_namespaces(server, pools)
        with agents(server, counts=True):
            for part in [each for each in parts if each not in found]:
                found[part] = {**parts[part](server), "load": round(os.getloadavg()[0], 1)}
                yield found


def _stored(server: ApiServer, pools: int) -> dict[str, Any]:
    return {"mib": round(server.stored_mib()), "objects_mb": round(_objects_mb(server, pools), 1)}


def _rolling(server: ApiServer, models: int, pools: int, rollouts: int, seconds: float) -> dict[str, Any]:
    """Edit models of every pool at once, and watch their rollouts once all have their weight."""
    edits = [(namespace_of(each % pools), each) for each in range(pools * rollouts)]
    with operator(server) as running:
        wait_until("all models are Ready", lambda: running.ready_models() == models, 0.5)
        began_s = time.time()
        asyncio.run(_edit_all(server, edits))
        wait_until("all rollouts have their weight", lambda: running.rolling() == len(edits), 2)
        started_s = time.time() - began_s
        time.sleep(2 * WRITE_INTERVAL_S)  # what is written late because of the start
        began_s, cpu_s, passes = time.time(), running.cpu_s(), running.passes()
        time.sleep(seconds)
        cpu_s, passes, peak_mib = running.cpu_s() - cpu_s, running.passes() - passes, running.peak_mib()
        time.sleep(0.5)  # the log is written behind the answers
        written: dict[str, list[float]] = defaultdict(list)
        for request in server.requests(began_s):
            if request.resource.startswith(ROLLOUTS.plural) and request.verb not in READS:
                written[request.name].append(request.ended_s)
        gaps_s = sorted(later - sooner for times in written.values() for sooner, later in pairwise(times))
        sizes = _objects(server, ROLLOUTS, pools)
    return {
        "started_s": round(started_s, 1),
        "cpu_percent": round(100 * cpu_s / seconds, 1),
        "pass_every_s": round(pools * seconds / passes, 2),
        "records_written": len(written),
        "record_every_s": round(statistics.median(gaps_s), 1) if gaps_s else None,
        "record_every_p99_s": round(gaps_s[int(0.99 * len(gaps_s))], 1) if gaps_s else None,
        "peak_mib": round(peak_mib),
        "record_kb": round(statistics.mean(sizes) / 1e3, 1),
    }


async def _edit_all(server: ApiServer, edits: list[tuple[str, int]]) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    async def edit(api: AsyncKubeClient, namespace: str, number: int) -> None:
        async with turns:
            await until_answered(partial(api.patch, MODELS, namespace, model_name(number), edited(number)))

    async with user_api(server) as api:
        await asyncio.gather(*(edit(api, namespace, number) for namespace, number in edits))


def _objects(server: ApiServer, kind: Kind, pools: int) -> list[int]:
    """Return the bytes, as JSON, of the objects of a kind in some pools, fields that only the server reads included."""
    return [
        len(json.dumps(each, separators=(",", ":")))
        for number in range(min(pools, SAMPLED_POOLS))
        for each in json.loads(call(server, "GET", kind.path(namespace_of(number))))["items"]
    ]


def _objects_mb(server: ApiServer, pools: int) -> float:
    """Return the size of all objects, without what they were earlier, scaled from some pools.

    etcd holds them so after each compaction; kinds of Kubernetes are smaller there, since they are no JSON.
    """
    kinds = (MODELS, POOL_KIND, *CHILDREN, ROLLOUTS, EVENTS)
    size = sum(sum(_objects(server, kind, pools)) for kind in kinds)
    return size * pools / min(pools, SAMPLED_POOLS) / 1e6


def _first_start(server: ApiServer, models: int, pools: int) -> dict[str, Any]:
    """Start an operator on models that were just applied, and wait until all are Ready."""
    spaces = [namespace_of(number) for number in range(pools)]
    asyncio.run(apply_all(server, [pool_manifest(namespace) for namespace in spaces]))
    asyncio.run(apply_all(server, [model_manifest(spaces[each % pools], each) for each in range(models)]))
    began_s = time.time()
    with operator(server) as running:
        wait_until("all models are Ready", lambda: running.ready_models() == models, 0.2 if models < 5000 else 2)
        return {
            "ready_s": round(time.time() - began_s, 1),
            "cpu_s": round(running.cpu_s(), 1),
            "peak_mib": round(running.peak_mib()),
            "requests": server.counted(began_s),
        }


def _cold_start(server: ApiServer, models: int, pools: int) -> dict[str, Any]:
    """Start an operator on models that are served already: until every pool had a pass, and none had to write."""
    began_s = time.time()
    with operator(server) as running:
        ended_s, passes = began_s, 0
        while passes < pools or time.time() - ended_s < QUIET_S:
            now = running.passes()
            if now != passes:
                ended_s, passes = time.time(), now
            time.sleep(0.1)
        requests = server.counted(began_s)
        writes = {
            what: count for what, count in requests.items() if what.split()[0] not in READS and LEASES not in what
        }
        if writes or running.ready_models() != models:
            raise RuntimeError(f"a start on what is served already wrote {writes}")
        return {
            "seconds": round(ended_s - began_s, 1),
            "passes": passes,
            "cpu_s": round(running.cpu_s(), 1),
            "peak_mib": round(running.peak_mib()),
            "requests": requests,
        }


def _rest(server: ApiServer, pools: int, seconds: float) -> dict[str, Any]:
    """Watch an operator do nothing; what comes in rounds is scaled to an hour."""
    with operator(server) as running:
        wait_until("the first pass of each pool", lambda: running.passes() >= pools, 0.1)
        time.sleep(START_S)
        began_s, cpu_s, passes = time.time(), running.cpu_s(), running.passes()
        time.sleep(seconds)
        cpu_s, passes = running.cpu_s() - cpu_s, running.passes() - passes
        requests = server.requests(began_s)
        per_hour = 3600 / seconds
        counts = Counter(_sort_of(request.verb, request.resource) for request in requests)
        return {
            "watched_s": seconds,
            **{name: round(counts[name] * per_hour) for name in ("writes", "lease_renewals", "reads")},
            "passes": passes,
            "cpu_percent": round(100 * cpu_s / seconds, 2),
        }


def _sort_of(verb: str, resource: str) -> str:
    if resource == LEASES:
        return "lease_renewals"
    return "reads" if verb in READS else "writes"


async def _check(server: ApiServer, models: int, pools: int) -> None:
    """Every model is Ready and has one route, with all requests on its pool's main group; else RuntimeError."""
    ready, routed = 0, 0
    async with user_api(server) as api:
        for number in range(pools):
            namespace = namespace_of(number)
            ready += sum(map(_is_ready, await api.list(MODELS, namespace, {})))
            pool = await api.get(POOL_KIND, namespace, "default")
            routed += _routed(await _routes(api, namespace), pool["status"]["mainGroup"])
    if (ready, routed) != (models, models):
        raise RuntimeError(f"of {models} models {ready} are Ready and {routed} have their route")


async def _routes(api: AsyncKubeClient, namespace: str) -> list[Route]:
    shards = [await api.get(CONFIG_MAPS, namespace, plan_name("default", shard)) for shard in range(SHARDS)]
    return [route for shard in shards for route in load_plan(unpack(content_of(shard) or "")).routes]


def _routed(routes: list[Route], main: str) -> int:
    return sum(
        [(share.group, share.weight) for share in route.shares] == [(main, 100)] and bool(route.shares[0].endpoints)
        for route in routes
    )


async def _passes_at_rest(server: ApiServer, namespace: str) -> dict[str, float]:
    """Make passes over one pool of what is served, in this process; it leads nothing, so that a write would fail."""
    settings = OperatorSettings.from_environment({"SEGSERVE_LEASE_NAMESPACE": LEASE_NAMESPACE})
    async with user_api(server) as api, outbound_of(settings) as outbound:
        assembled = await assemble(settings, api, Metrics(), outbound)
        await fill(assembled.view, api, [namespace])
        spent_s = []
        for _ in range(PASSES + 1):
            began_s = time.perf_counter()
            outcome = await assembled.worker.run_pass(PoolKey(namespace, "default"))
            spent_s.append(time.perf_counter() - began_s)
            if outcome.writes:
                raise RuntimeError(f"a pass at rest wrote {outcome.writes} times")
    first_s, *others_s = spent_s
    pass_s = statistics.median(others_s)
    return {"first_ms": _ms(first_s), "ms": _ms(pass_s), "per_s": round(1 / pass_s, 1)}


def _median(seconds: tuple[float, ...]) -> float:
    return round(statistics.median(seconds), 2)


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 2)
