"""What servers use is read where it is: processes here, the kubelet's counts and the agents' metrics on a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from aiohttp import web

from fakes.waiting import HANG_S
from segserve_builder.render.tritonserver import Ports
from segserve_common.kube.kinds import PODS, Json
from segserve_common.kube.names import GROUP_LABEL, MANAGED_LABELS, POOL_LABEL
from segserve_operator.adapters.kube import resources as cluster
from segserve_operator.adapters.kube.resources import ClusterResources
from segserve_operator.adapters.kube.view import PoolKey, View
from segserve_operator.adapters.local import processes
from segserve_operator.adapters.local.files import StateFolder
from segserve_operator.adapters.local.fleet import GroupFolder, LocalResources
from segserve_operator.core.gates.checks import ResourceSample

MIB = 2**20
# Its child holds 64 MiB, as a step of Triton does.
PARENT = """\
import subprocess, sys
child = "held = bytearray(b'x' * 64 * 2**20); print('held', flush=True); import time; time.sleep(60)"
subprocess.Popen([sys.executable, '-c', child]).wait()
"""
METRICS = """\
nv_inference_request_success{model="coins",version="1"} 8
nv_inference_queue_duration_us{model="segserve--network--0f",version="1"} 2000000
segserve_agent_server_memory_bytes 1.5e+09
"""


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFolder]:
    yield StateFolder(tmp_path)
    processes.end_marked_processes(tmp_path, grace_s=1)


def start(state: StateFolder, group: str) -> GroupFolder:
    folder = GroupFolder(state.groups / group)
    folder.root.mkdir(parents=True, exist_ok=True)
    folder.ports.write_text(json.dumps(asdict(Ports(1, 2, 3))))
    processes.start(
        [sys.executable, "-c", PARENT],
        record=folder.record("triton"),
        log=folder.log("triton"),
        environment=os.environ,
        state=state.root,
    )
    return folder


async def held(folder: GroupFolder) -> None:
    async with asyncio.timeout(HANG_S):
        while "held" not in folder.log("triton").read_text():
            await asyncio.sleep(0.02)


async def test_memory_is_that_of_the_server_and_all_that_it_started(state: StateFolder) -> None:
    folder = start(state, "own")
    await held(folder)

    seen = await LocalResources(state).look("own")

    assert seen.memory_bytes["own"] > 64 * MIB
    assert seen.restarts == {"own": 0}
    assert (seen.queued_s, seen.requests) == (None, None)


async def test_each_new_process_is_a_restart(state: StateFolder) -> None:
    source = LocalResources(state)
    folder = start(state, "own")
    await source.look("own")
    processes.end(processes.read_record(folder.record("triton")), grace_s=1)
    assert (await source.look("own")).memory_bytes == {}
    start(state, "own")

    assert (await source.look("own")).restarts == {"own": 1}


async def test_of_a_group_that_is_not_there_nothing_is_known(state: StateFolder) -> None:
    assert await LocalResources(state).look("other") == ResourceSample()


def pod(name: str, group: str, restarts: int, ip: str = "127.0.0.1") -> Json:
    labels = {**MANAGED_LABELS, POOL_LABEL: "default", GROUP_LABEL: group}
    metadata = {"name": name, "namespace": "ml", "uid": name, "resourceVersion": "1", "labels": labels}
    said = [{"name": "triton", "restartCount": restarts}, {"name": "agent", "restartCount": 40}]
    return {"metadata": metadata, "status": {"phase": "Running", "podIP": ip, "containerStatuses": said}}


async def test_pods_tell_restarts_memory_and_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    async def metrics(_: web.Request) -> web.Response:
        return web.Response(text=METRICS)

    app = web.Application()
    app.router.add_get("/metrics", metrics)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    monkeypatch.setattr(cluster, "AGENT_PORT", port)
    monkeypatch.setattr(cluster, "METRICS_PORT", port)
    view = View((PODS,))
    for member in (pod("a", "own", 3), pod("b", "own", 0, ip="127.0.0.2"), pod("c", "main", 9)):
        view.take(PODS, member)
    try:
        seen = await ClusterResources(view, PoolKey("ml", "default")).look("own")
    finally:
        await runner.cleanup()

    assert seen == ResourceSample({"a": 1.5e9}, {"a": 3, "b": 0}, queued_s=2.0, requests=8.0)
