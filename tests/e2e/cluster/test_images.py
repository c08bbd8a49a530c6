"""The images that the cluster tests run, and the ways in which a test may break what runs: they are what they say."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fakes.artifact_server import ArtifactServer
from fakes.cluster import Cluster
from segserve_common.kube.kinds import PODS

pytestmark = pytest.mark.cluster

SERVE = "exec $SEGSERVE_TRITONSERVER --model-repository=/tmp --backend-directory=$SEGSERVE_BACKENDS --log-verbose=0 "
EXPLICIT = "--model-control-mode=explicit"
LOAD_KERNELS = """
from segserve_builder.kernels import cache
assert cache._is_complete(), "kernels would be compiled again"
"""


def start(cluster: Cluster, namespace: str, image: str, command: Sequence[str]) -> str:
    """Run a command in a pod that may do nothing but write to /tmp, and return the pod's name once it runs."""
    security = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "main",
        "image": image,
        "command": list(command),
        "securityContext": security,
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "fsGroup": 1000},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    cluster.client.create(PODS, {"metadata": {"name": "main"}, "spec": spec}, namespace=namespace)
    cluster.wait("the pod runs", lambda: cluster.get(namespace, "pod", "main")["status"].get("phase") == "Running")
    return "main"


def run_in(cluster: Cluster, namespace: str, pod: str, *command: str) -> str:
    return cluster.kubectl("-n", namespace, "exec", pod, "--", *command)


def test_the_server_image_runs_triton_as_nobody_special_on_a_root_that_is_read_only(
    cluster: Cluster, namespace: str
) -> None:
    pod = start(cluster, namespace, cluster.images.server, ["sh", "-c", SERVE + EXPLICIT])

    ready = "import urllib.request as r; print(r.urlopen('http://localhost:8000/v2/health/live').status)"
    assert cluster.wait("Triton is live", lambda: run_in(cluster, namespace, pod, "python3", "-c", ready)) == "200\n"
    assert "uid=1000" in run_in(cluster, namespace, pod, "id")
    run_in(cluster, namespace, pod, "python3", "-c", LOAD_KERNELS)
    run_in(cluster, namespace, pod, "python3", "-c", "import segserve_builder.agent.loop, segserve_builder.cluster")


def test_the_operator_image_has_operator_client_and_example(cluster: Cluster, namespace: str) -> None:
    pod = start(cluster, namespace, cluster.images.operator, ["sleep", "1000"])

    everything = (
        "import kopf, kubernetes.aio.client, prometheus_client, segserve_platform.cli.app, segserve_operator.service"
    )
    run_in(cluster, namespace, pod, "python3", "-c", everything)
    seen = run_in(cluster, namespace, pod, "sh", "-c", "ls ${SEGSERVE_ARTIFACT_BASE#file://}")
    assert {"model.yaml", "coins-unet.onnx", "golden"} <= set(seen.split())


def test_the_envoy_image_has_envoy(cluster: Cluster, namespace: str) -> None:
    pod = start(cluster, namespace, cluster.images.envoy, ["sleep", "1000"])

    assert "/RELEASE/" in run_in(cluster, namespace, pod, "envoy", "--version")


def test_pods_fetch_artifacts_from_the_test_and_see_it_fail(
    cluster: Cluster, namespace: str, artifacts: ArtifactServer
) -> None:
    (artifacts.folder / "model.onnx").write_bytes(b"network")
    pod = start(cluster, namespace, cluster.images.operator, ["sleep", "1000"])
    fetch = f"import urllib.request as r; print(r.urlopen('{artifacts.url}/model.onnx').read().decode())"

    assert run_in(cluster, namespace, pod, "python3", "-c", fetch) == "network\n"

    with artifacts.failing(503), pytest.raises(AssertionError, match="503"):
        run_in(cluster, namespace, pod, "python3", "-c", fetch)
    assert artifacts.requests["/model.onnx"] == 2


def test_a_killed_container_is_started_again(cluster: Cluster, namespace: str) -> None:
    pod = start(cluster, namespace, cluster.images.operator, ["sleep", "1000"])

    cluster.kill(namespace, pod, "main")

    cluster.wait("it was restarted", lambda: cluster.restarts(namespace, pod, "main") == 1)


def test_one_process_of_a_container_can_be_killed(cluster: Cluster, namespace: str) -> None:
    pod = start(
        cluster, namespace, cluster.images.operator, ["sh", "-c", "for n in 1001 1002; do sleep $n & done; wait"]
    )

    cluster.kill(namespace, pod, "main", running="sleep 1001")

    left = " ".join(process.command for process in cluster.processes(namespace, pod, "main"))
    assert "sleep 1001" not in left
    assert "sleep 1002" in left


def test_pods_go_on_while_the_kubelet_is_down(cluster: Cluster, namespace: str) -> None:
    pod = start(cluster, namespace, cluster.images.operator, ["sleep", "1000"])

    with cluster.kubelet_down():
        cluster.kill(namespace, pod, "main")
        assert cluster.restarts(namespace, pod, "main") == 0

    cluster.wait("the kubelet restarts the container", lambda: cluster.restarts(namespace, pod, "main") == 1)


def test_a_paused_api_server_answers_nobody(cluster: Cluster) -> None:
    asked = ("get", "--raw", "/readyz", "--request-timeout=1s")
    with cluster.api_paused(), pytest.raises(AssertionError):
        cluster.kubectl(*asked)

    assert cluster.wait("it answers again", lambda: cluster.kubectl(*asked)) == "ok"
