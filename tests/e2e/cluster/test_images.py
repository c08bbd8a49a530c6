"""The images that the cluster tests run, and the ways in which a test may break what runs: they are what they say."""

from __future__ import annotations

import pytest

from cluster import images
from fakes.cluster import Cluster

pytestmark = pytest.mark.cluster

POD = "main"
SERVE = "exec $SEGSERVE_TRITONSERVER --model-repository=/tmp --backend-directory=$SEGSERVE_BACKENDS --log-verbose=0 "
EXPLICIT = "--model-control-mode=explicit"
LOAD_KERNELS = """
from segserve_builder.kernels import cache
assert cache._is_complete(), "kernels would be compiled again"
"""


def run_in(cluster: Cluster, namespace: str, *command: str) -> str:
    return cluster.kubectl("-n", namespace, "exec", POD, "--", *command)


def test_the_server_image_runs_triton_as_nobody_special_on_a_root_that_is_read_only(
    cluster: Cluster, namespace: str
) -> None:
    cluster.start_pod(namespace, POD, cluster.images.server, "sh", "-c", SERVE + EXPLICIT)

    ready = "import urllib.request as r; print(r.urlopen('http://localhost:8000/v2/health/live').status)"
    assert cluster.wait("Triton is live", lambda: run_in(cluster, namespace, "python3", "-c", ready)) == "200\n"
    assert "uid=1000" in run_in(cluster, namespace, "id")
    run_in(cluster, namespace, "python3", "-c", LOAD_KERNELS)
    run_in(cluster, namespace, "python3", "-c", "import segserve_builder.agent.loop, segserve_builder.cluster")


def test_the_operator_image_has_operator_client_and_example(cluster: Cluster, namespace: str) -> None:
    cluster.start_pod(namespace, POD, cluster.images.operator, "sleep", "1000")

    run_in(cluster, namespace, "python3", "-c", "import segserve_operator.main, segserve_operator.gateway_sync")
    assert "0.1.0" in run_in(cluster, namespace, "segserve", "version")
    seen = run_in(cluster, namespace, "ls", "/opt/segserve/examples/coins/golden")
    assert seen.split()


@pytest.mark.parametrize(
    ("image", "base", "most_mb"),
    [(images.OPERATOR_IMAGE, images.PYTHON_IMAGE, 460), (images.SERVER_IMAGE, images.TRITON_IMAGE, 790)],
    ids=["operator", "server"],
)
def test_an_image_adds_little_to_its_base(cluster: Cluster, image: str, base: str, most_mb: int) -> None:
    assert images.size_mb(image, base) <= most_mb
