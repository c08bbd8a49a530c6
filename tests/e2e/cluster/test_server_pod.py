"""A server pod's two containers as processes, told and heard through the real API alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.agent_group import assigned, picture, wait_for, with_golden, write_network
from fakes.cluster import Cluster
from fakes.kube_connection import write_config_map
from fakes.server_pod import ServerPod
from fakes.waiting import HANG_S
from segserve_builder.agent.protocol import AssignedModel, ModelReport, ModelState
from segserve_common.kube.kinds import CONFIG_MAPS
from segserve_common.kube.names import SHARDS, assignment_name, reports_name
from segserve_common.kube.shards import CONTENT_KEY, pack, shard_of, unpack
from segserve_operator.adapters.local.files import cache_folder
from segserve_operator.adapters.local.runtime import ensure_runtime

pytestmark = pytest.mark.cluster

POOL, GROUP = "pool", "main-1"


class World:
    """A pod, and the ConfigMaps of its group."""

    def __init__(self, cluster: Cluster, namespace: str, pod: ServerPod) -> None:
        self.pod = pod
        self._client = cluster.client
        self._namespace = namespace
        self._write(reports_name(POOL, GROUP), None)

    def assign(self, *models: AssignedModel) -> None:
        for shard in range(SHARDS):
            mine = [model for model in models if shard_of(model.model) == shard]
            told = [model.model_dump(mode="json", by_alias=True, exclude_none=True) for model in mine]
            self._write(assignment_name(POOL, GROUP, shard), {CONTENT_KEY: pack(told)})

    def report(self) -> dict[str, Any]:
        stored = (
            self._client.get(CONFIG_MAPS, reports_name(POOL, GROUP), namespace=self._namespace).get("binaryData") or {}
        )
        found: dict[str, Any] = unpack(stored["pod"]) if "pod" in stored else {}
        return found

    def of(self, told: AssignedModel) -> ModelReport | None:
        models = [ModelReport.model_validate(model) for model in self.report().get("models", ())]
        return next((model for model in models if model.revision == told.revision), None)

    def wait(self, told: AssignedModel, state: ModelState) -> ModelReport:
        def reached() -> ModelReport | None:
            seen = self.of(told)
            return seen if seen and seen.state is state else None

        return wait_for(reached, lambda: f"{state}; {self.report()}; {self.pod.describe()}")

    def _write(self, name: str, binary: dict[str, str] | None) -> None:
        write_config_map(self._client, self._namespace, name, binary)


@pytest.fixture
def world(cluster: Cluster, namespace: str, tmp_path: Path) -> Iterator[World]:
    run = tmp_path / "run"
    run.mkdir()
    more = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "POD_NAMESPACE": namespace,
        "SEGSERVE_ARTIFACT_BASE": tmp_path.as_uri(),
    }
    pod = ServerPod(run, ensure_runtime(cache_folder()), more)
    try:
        pod.start("triton")
        pod.start("agent")
        yield World(cluster, namespace, pod)
    finally:
        pod.stop()


@pytest.fixture
def coins(tmp_path: Path) -> AssignedModel:
    """A model whose artifact and golden set are named relative to the pod's base."""
    made = assigned("coins", tmp_path / "a.onnx", write_network(tmp_path / "a.onnx", 100.0))
    told = with_golden(made, tmp_path / "golden", 24).model_dump(by_alias=True, exclude_none=True)
    told["artifact"]["uri"] = "a.onnx"
    told["golden"]["uri"] = "golden"
    return AssignedModel.model_validate(told)


def test_what_is_assigned_is_proved_and_reported_and_the_pod_is_ready_from_then_on(
    world: World, coins: AssignedModel
) -> None:
    wait_for(lambda: world.report().get("serverReady"), world.pod.describe)
    assert world.pod.probe("/ready")[0] == 503
    world.assign(coins)
    report = world.wait(coins, ModelState.READY)
    assert (report.proof, report.loaded, world.report()["uid"]) == ("golden", True, "uid")
    wait_for(lambda: world.pod.probe("/ready")[0] == 200, world.pod.describe)
    assert world.pod.probe("/live")[0] == 200
    assert 'segserve_agent_models{state="Ready"} 1.0' in world.pod.probe("/metrics")[1]
    server = world.pod.server(knows_the_word=False)
    assert set(server.infer("coins", picture(), {}, 30.0)) >= {"LABELS", "REVISION"}
    server.close()


def test_a_killed_agent_and_a_killed_server_come_back_to_what_was_assigned(world: World, coins: AssignedModel) -> None:
    world.assign(coins)
    world.wait(coins, ModelState.READY)
    before = world.pod.triton.pid
    world.pod.processes["agent"].kill()
    world.pod.processes["agent"].wait()
    world.pod.start("agent")
    wait_for(lambda: world.pod.probe("/ready")[0] == 200, world.pod.describe)
    assert world.pod.triton.pid == before

    world.pod.triton.kill()
    assert world.pod.processes["triton"].wait(HANG_S) == 128 + signal.SIGKILL
    wait_for(lambda: world.report()["serverReady"] is False, world.pod.describe)
    assert world.pod.probe("/ready")[0] == 503
    world.pod.start("triton")
    world.wait(coins, ModelState.READY)
    wait_for(lambda: world.pod.probe("/ready")[0] == 200, world.pod.describe)
