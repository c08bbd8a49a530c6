"""A gateway pod's containers, here as processes, in front of a real API server that may go away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from fakes.cluster import Cluster
from fakes.gateway_clients import served
from fakes.gateway_pod import GatewayPod, PlanObjects, versions_of
from fakes.tcp_relay import TcpRelay
from fakes.triton import StubTriton
from fakes.waiting import HANG_S

pytestmark = pytest.mark.cluster


@pytest.fixture
def old() -> Iterator[StubTriton]:
    with StubTriton("old") as triton:
        yield triton


@pytest.fixture
def new() -> Iterator[StubTriton]:
    with StubTriton("new") as triton:
        yield triton


@pytest.fixture
def plans(cluster: Cluster, namespace: str) -> PlanObjects:
    objects = PlanObjects(cluster.client, namespace)
    objects.make_reports()
    return objects


@pytest.fixture
def relay(cluster: Cluster) -> Iterator[TcpRelay]:
    """What is between the pod and the API."""
    parts = urlsplit(cluster.client.server)
    made = TcpRelay((str(parts.hostname), parts.port or 443))
    yield made
    made.close()


@pytest.fixture
def pod(tmp_path: Path, cluster: Cluster, namespace: str, relay: TcpRelay) -> Iterator[GatewayPod]:
    """A pod of which nothing runs yet."""
    made = GatewayPod(tmp_path, cluster.kubeconfig, namespace, server=f"https://127.0.0.1:{relay.port}")
    yield made
    made.close()


@pytest.fixture
def serving(cluster: Cluster, plans: PlanObjects, pod: GatewayPod, old: StubTriton) -> GatewayPod:
    """A pod that is ready; `old` answers."""
    plans.write(served(old))
    assert pod.prepare().wait(HANG_S) == 0
    pod.envoy()
    pod.sync()
    cluster.wait("the pod is ready", pod.is_ready)
    cluster.wait("the plan is followed", lambda: plans.report(pod.name).get("shards") == versions_of(served(old)))
    return pod


def test_a_weight_in_the_api_moves_requests_and_is_reported(
    cluster: Cluster, plans: PlanObjects, serving: GatewayPod, old: StubTriton, new: StubTriton
) -> None:
    assert serving.infer() == "old"

    plans.write(served(old, new, 100))
    cluster.wait("it answers", lambda: serving.infer() == "new")
    cluster.wait(
        "it is reported", lambda: plans.report(serving.name).get("shards") == versions_of(served(old, new, 100))
    )

    assert plans.report(serving.name)["draining"] == []
    assert plans.report(serving.name)["uid"] == "uid-0"


def test_probes_and_metrics_are_answered(serving: GatewayPod) -> None:
    assert serving.infer() == "old"

    metrics = serving.ask("/metrics")
    live = serving.ask("/live")

    assert metrics is not None
    assert "segserve_gateway_shifts_total 1.0" in metrics.text
    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="coins/main/infer/http"} 1' in metrics.text
    assert live is not None
    assert live.status_code == 200


def test_envoy_and_sidecar_start_again_without_the_api_and_follow_it_once_it_is_back(
    cluster: Cluster, plans: PlanObjects, serving: GatewayPod, relay: TcpRelay, old: StubTriton, new: StubTriton
) -> None:
    relay.pause()
    serving.end("envoy")
    serving.end("sync")
    plans.write(served(old, new, 100))

    serving.envoy()
    cluster.wait("the last plan is served", lambda: serving.infer() == "old")
    serving.sync()
    cluster.wait("the pod is ready", serving.is_ready)
    relay.resume()

    cluster.wait("the plan of now is followed", lambda: serving.infer() == "new")


def test_a_pod_that_starts_again_without_the_api_serves_the_last_plan(
    cluster: Cluster, serving: GatewayPod, relay: TcpRelay
) -> None:
    relay.pause()
    serving.end("envoy")
    serving.end("sync")

    assert serving.prepare().wait(HANG_S) == 0
    serving.envoy()

    cluster.wait("the last plan is served", lambda: serving.infer() == "old")


def test_a_pod_waits_for_the_first_plan(cluster: Cluster, pod: GatewayPod, plans: PlanObjects, old: StubTriton) -> None:
    preparing = pod.prepare()
    cluster.wait("it has looked twice", lambda: pod.log("prepare").count("cannot be read") >= 2)
    assert preparing.poll() is None

    plans.write(served(old))

    assert preparing.wait(HANG_S) == 0


def test_a_sidecar_ends_when_it_is_told_to(serving: GatewayPod) -> None:
    assert serving.end("sync", how=signal.SIGTERM) == 0
    assert serving.infer() == "old"


def test_a_pod_without_envoy_is_not_ready_but_alive(cluster: Cluster, serving: GatewayPod) -> None:
    serving.end("envoy")

    cluster.wait("it is not ready", lambda: not serving.is_ready())

    live, metrics = serving.ask("/live"), serving.ask("/metrics")
    assert live is not None
    assert live.status_code == 200
    assert metrics is not None
    assert "segserve_gateway_shifts_total" in metrics.text


def test_an_envoy_that_is_busy_with_a_change_stays_ready(serving: GatewayPod) -> None:
    assert serving.is_ready()

    serving.signal("envoy", signal.SIGSTOP)
    still = serving.is_ready()
    serving.signal("envoy", signal.SIGCONT)

    assert still
