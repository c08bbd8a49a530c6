"""A pool on a real cluster has more servers in a burst of requests and fewer after it, and no request fails.

Kubernetes' HorizontalPodAutoscaler with metrics-server decides.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cluster.images import METRICS_SERVER_IMAGE
from fakes.cluster import Cluster, Json
from fakes.cluster_load import Load
from fakes.cluster_models import LITTLE_GATEWAY, LITTLE_SERVER
from fakes.cluster_pool import ClusterPool, coins_manifest, pool_manifest
from fakes.docs import ROOT, blocks
from fakes.operator_process import OperatorProcess

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

WHOLE_S = 300.0
SMALL = {"server": LITTLE_SERVER, "gateway": LITTLE_GATEWAY}


def metrics_server() -> list[Json]:
    """Return the objects of metrics-server, which may read all of this cluster."""
    metadata = {"name": "metrics-server", "namespace": "kube-system"}
    labels = {"app": "metrics-server"}
    options = (
        "--secure-port=10250",
        "--cert-dir=/tmp",
        "--kubelet-insecure-tls",
        "--metric-resolution=15s",
        "--kubelet-preferred-address-types=InternalIP",
    )
    container = {"name": "main", "image": METRICS_SERVER_IMAGE, "command": ["/metrics-server", *options]}
    template = {"metadata": {"labels": labels},
                "spec": {"serviceAccountName": "metrics-server", "containers": [container]}}  # fmt: skip
    subject = {"kind": "ServiceAccount", **metadata}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    service = {"name": "metrics-server", "namespace": "kube-system", "port": 10250}
    version = {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
         "metadata": {"name": "metrics-server"}, "roleRef": role, "subjects": [subject]},
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
         "spec": {"selector": {"matchLabels": labels}, "template": template}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata,
         "spec": {"selector": labels, "ports": [{"port": 10250}]}},
        {"apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
         "metadata": {"name": "v1beta1.metrics.k8s.io"},
         "spec": {**version, "service": service, "insecureSkipTLSVerify": True}},
    ]  # fmt: skip


@pytest.fixture
def measured(cluster: Cluster) -> Iterator[None]:
    """A cluster with metrics-server."""
    cluster.node.load([METRICS_SERVER_IMAGE])
    objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": metrics_server()})
    cluster.kubectl("apply", "-f", "-", stdin=objects)
    try:
        cluster.wait("pods are measured", lambda: cluster.kubectl("top", "pods", "-n", "kube-system"))
        yield
    finally:
        cluster.kubectl("delete", "-f", "-", stdin=objects)


def test_an_autoscaler_of_kubernetes_sets_the_number_of_servers_and_no_request_fails(
    cluster: Cluster, namespace: str, measured: None, tmp_path: Path
) -> None:
    (shown,) = [block.text for block in blocks(ROOT / "docs/how-to/scale.md", "yaml") if "Autoscaler" in block.text]
    autoscaler = yaml.safe_load(shown.replace('averageValue: "3"', "averageValue: 150m").replace("8", "2"))
    autoscaler["spec"]["behavior"] = {"scaleDown": {"stabilizationWindowSeconds": 0}}
    operator = OperatorProcess(cluster.kubeconfig, (namespace,), cluster.images, tmp_path / "operator.log")
    pool = ClusterPool(cluster, namespace, operator.tail)
    with operator.running():
        pool.apply(pool_manifest(replicas=1, **SMALL), coins_manifest(keepPrevious="0s"), autoscaler)
        pool.wait("the pool is whole", lambda: pool.is_whole(1, 2), WHOLE_S)
        with Load(pool.url, pause_s=0.0) as burst:
            pool.wait("two servers answer", lambda: pool.is_whole(2, 2), WHOLE_S)
            burst.answers_go_on()
        with Load(pool.url, pause_s=2.0, clients=1) as calm:
            pool.wait("one server answers", lambda: pool.is_whole(1, 2), WHOLE_S)
            calm.answers_go_on(2)

    assert burst.failures == []
    assert calm.failures == []
