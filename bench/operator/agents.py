"""What a cluster does around the operator: pods that run at once, agents that load in no time, gateways that follow.

    python -m bench.operator.agents [--real-gateways NAMESPACE] [--counts]

Everything goes through the API server that KUBECONFIG names. Each pod has an address below 127; in the namespace of
real gateways the servers really listen there, answer every request with the name of their group, and the gateways
are left to somebody else. With `--counts` the gateways' sidecars answer too: they count a steady load without failures.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from bench.operator.watching import RETRY_S, until_answered, watched
from segserve_builder.agent.protocol import ModelReport, ModelState
from segserve_common.api_errors import ApiError, ConflictError, NotFoundError
from segserve_common.kube.async_client import AsyncKubeClient
from segserve_common.kube.kinds import CONFIG_MAPS, DEPLOYMENTS, PODS, Json
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    GATEWAY,
    GROUP_LABEL,
    HTTP_PORT,
    MANAGED_LABELS,
    POOL_LABEL,
    SHARDS,
    SYNC_PORT,
    assignment_name,
    plan_name,
    reports_name,
)
from segserve_common.kube.shards import CONTENT_KEY, pack, shard_of, unpack, version_of
from segserve_operator.adapters.samples import wire
from segserve_operator.core.rollout.counters import Counters, Series, SeriesCounts

if TYPE_CHECKING:
    from collections.abc import Coroutine

REPORTS_S: Final = 0.2
"""Agents and sidecars write at most so often."""
STARTED_S: Final = time.time()
CALLS_PER_S: Final = 20
"""The load of each model whose counts are asked for."""

log = logging.getLogger("agents")


@dataclass(frozen=True, slots=True)
class Group:
    """The pods of one Deployment; the gateways are a group too."""

    namespace: str
    pool: str
    name: str


@dataclass(slots=True)
class Members:
    """What is known of a group: its pods' uids by name, the contents of its shards, and whether it has news."""

    pods: dict[str, str] = field(default_factory=dict)
    shards: dict[int, str] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)

    def route(self, model: str, known: dict[str, dict[str, Json]]) -> Json:
        """Return a model's route; `known` caches routes by the text of their shard."""
        text = self.shards.get(shard_of(model), "")
        if text not in known:
            known[text] = {route["model"]: route for route in unpack(text)["routes"]} if text else {}
        return known[text].get(model, {"shares": []})


@dataclass(slots=True)
class Around:
    """The world around the operator."""

    api: AsyncKubeClient
    kubeconfig: Path
    real_gateways: str | None
    _groups: dict[Group, Members] = field(default_factory=lambda: defaultdict(Members))
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _addresses: dict[tuple[str, str], str] = field(default_factory=dict)
    _sites: dict[str, web.AppRunner] = field(default_factory=dict)
    _gateways: dict[str, Members] = field(default_factory=dict)
    _routes: dict[str, dict[str, Json]] = field(default_factory=dict)

    async def count(self) -> None:
        """Answer for all gateways what they have counted."""
        application = web.Application()
        application.router.add_get(wire.PATH, self._counts)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "0.0.0.0", SYNC_PORT).start()

    async def _counts(self, request: web.Request) -> web.Response:
        members = self._gateways.get(request.transport.get_extra_info("sockname")[0] if request.transport else "")
        if members is None:
            return web.Response(status=503)
        served_s = time.time() - STARTED_S
        asked = request.query.getall(wire.MODEL, [])
        counts = {name: _load(members.route(name, self._routes), served_s) for name in asked}
        return web.Response(body=wire.encode(counts, uid=next(iter(members.pods.values()))))

    async def run(self) -> None:
        """Go on until cancelled, with the pods that an earlier process has left."""
        for pod in await self.api.list(PODS, None, MANAGED_LABELS):
            if address := (pod.get("status") or {}).get("podIP"):
                self._addresses[pod["metadata"]["namespace"], pod["metadata"]["name"]] = address
        await asyncio.gather(self._follow_deployments(), self._follow_config_maps())

    async def _follow_deployments(self) -> None:
        async for event, found in watched(self.kubeconfig, DEPLOYMENTS, None, MANAGED_LABELS):
            group = _group(found)
            if group is None:
                continue
            if event == "DELETED":
                await self._end(group)
            else:
                self._start(self._run_pods(group, found))

    async def _follow_config_maps(self) -> None:
        async for event, found in watched(self.kubeconfig, CONFIG_MAPS, None, MANAGED_LABELS):
            group = _group(found)
            shard = _shard(group, found["metadata"]["name"]) if group is not None else None
            if group is None or shard is None:
                continue
            content = (found.get("binaryData") or {}).get(CONTENT_KEY)
            if event == "DELETED" or content is None:
                self._groups[group].shards.pop(shard, None)
            elif self._groups[group].shards.get(shard) != content:
                self._groups[group].shards[shard] = content
                self._groups[group].news.set()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_pods(self, group: Group, deployment: Json) -> None:
        members = self._groups[group]
        new = not members.pods
        template, name = deployment["spec"]["template"], deployment["metadata"]["name"]
        for index in range(deployment["spec"]["replicas"]):
            pod = f"{name}-{index}"
            if pod not in members.pods:
                members.pods[pod] = ""
                members.pods[pod] = await self._run_pod(group, pod, name, template)
                members.news.set()
        if new and not self._is_real(group):
            self._start(self._report_on(group, members))

    def _is_real(self, group: Group) -> bool:
        return group.name == GATEWAY and group.namespace == self.real_gateways

    async def _run_pod(self, group: Group, name: str, deployment: str, template: Json) -> str:
        used = {*self._addresses.values()}
        free = (f"127.1.{number // 250}.{number % 250 + 1}" for number in range(1, 62_500))
        address = self._addresses.get((group.namespace, name)) or next(each for each in free if each not in used)
        self._addresses[group.namespace, name] = address
        if group.name == GATEWAY:
            self._gateways[address] = self._groups[group]
        elif group.namespace == self.real_gateways:
            self._sites[name] = await _listen(group.name, address)
        # Nothing collects garbage here: the ReplicaSet need not exist.
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": f"{deployment}-5d8f", "uid": deployment}
        labels = template["metadata"]["labels"]
        metadata = {"name": name, "namespace": group.namespace, "labels": labels, "ownerReferences": [owner]}
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
        with suppress(ConflictError):
            await until_answered(partial(self.api.create, PODS, group.namespace, manifest))
        containers = [
            {
                "name": container["name"],
                "image": container["image"],
                "imageID": "simulated",
                "ready": True,
                "restartCount": 0,
                "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
            }
            for container in template["spec"]["containers"]
        ]
        conditions = [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")]
        status = {"phase": "Running", "podIP": address, "conditions": conditions, "containerStatuses": containers}
        patch = partial(self.api.patch, PODS, group.namespace, name, {"status": status}, status=True)
        live = await until_answered(patch)
        return str(live["metadata"]["uid"])

    async def _end(self, group: Group) -> None:
        members = self._groups.pop(group, None)
        for name in members.pods if members is not None else ():
            await until_answered(partial(self.api.delete, PODS, group.namespace, name))
            self._addresses.pop((group.namespace, name), None)
            if name in self._sites:
                await self._sites.pop(name).cleanup()

    async def _report_on(self, group: Group, members: Members) -> None:
        said: dict[str, str] = {}
        while self._groups.get(group) is members:
            await members.news.wait()
            members.news.clear()
            if len(members.shards) < SHARDS:
                continue  # neither an agent nor a sidecar begins before it has read them all
            report = _followed(members) if group.name == GATEWAY else _held(members)
            packed = {name: pack({"uid": uid, **report}) for name, uid in members.pods.items() if uid}
            if packed != said and not await self._send(group, packed):
                members.news.set()
                await asyncio.sleep(RETRY_S)
                continue
            said = packed
            await asyncio.sleep(REPORTS_S)

    async def _send(self, group: Group, packed: dict[str, str]) -> bool:
        try:
            for pod, text in packed.items():
                patch = {"binaryData": {pod: text}}
                await self.api.patch(CONFIG_MAPS, group.namespace, reports_name(group.pool, group.name), patch)
        except NotFoundError:
            return False
        except ApiError:
            log.exception("a report of %s was refused", group)
            return False
        return True


def _group(found: Json) -> Group | None:
    labels = found["metadata"].get("labels") or {}
    name = GATEWAY if labels.get(COMPONENT_LABEL) == GATEWAY else labels.get(GROUP_LABEL)
    return Group(found["metadata"]["namespace"], labels[POOL_LABEL], name) if name else None


def _shard(group: Group, name: str) -> int | None:
    for shard in range(SHARDS):
        told = plan_name(group.pool, shard) if group.name == GATEWAY else assignment_name(group.pool, group.name, shard)
        if told == name:
            return shard
    return None


def _followed(members: Members) -> Json:
    return {"shards": {str(shard): version_of(text) for shard, text in sorted(members.shards.items())}, "draining": []}


def _held(members: Members) -> Json:
    told = [model for shard in sorted(members.shards) for model in unpack(members.shards[shard])]
    return {"serverReady": True, "models": [_proved(model) for model in told]}


def _proved(told: Json) -> Json:
    digest = told["revision"].rpartition("-")[2]
    report = ModelReport(
        model=told["pipeline"]["model"],
        revision=told["revision"],
        state=ModelState.READY,
        artifact_verified=True,
        loaded=True,
        proof="golden",
        steps=tuple(f"segserve--{step}--{digest}" for step in ("pre", "net", "post")),
    )
    return report.model_dump(mode="json", by_alias=True)


def _load(route: Json, served_s: float) -> Counters:
    """Return what a gateway counts of a steady load that is split as its route says."""
    counts = {}
    for share in route["shares"]:
        attempts = int(served_s * CALLS_PER_S * share["weight"] / 100)
        counts[Series(share["group"], "http")] = SeriesCounts(attempts=attempts, latencies=((10.0, attempts),))
    return Counters("0", served_s, counts)


async def _listen(group: str, address: str) -> web.AppRunner:
    async def answer(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(text=group)

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, address, HTTP_PORT).start()
    return runner


async def _run(real_gateways: str | None, *, counts: bool) -> None:
    kubeconfig = Path(os.environ["KUBECONFIG"])
    async with AsyncKubeClient.connect(kubeconfig) as api:
        around = Around(api, kubeconfig, real_gateways)
        if counts:
            await around.count()
        await around.run()


def main(arguments: list[str]) -> None:
    """Run until ended."""
    logging.basicConfig(level=logging.WARNING)
    parser = argparse.ArgumentParser()
    parser.add_argument("--real-gateways", metavar="NAMESPACE")
    parser.add_argument("--counts", action="store_true")
    told = parser.parse_args(arguments)
    asyncio.run(_run(told.real_gateways, counts=told.counts))


if __name__ == "__main__":
    main(sys.argv[1:])
