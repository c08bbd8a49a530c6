"""Who reaches whom where something enforces the NetworkPolicies: kube-router, for the time of these tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from cluster.images import KUBE_ROUTER_IMAGE
from fakes.cluster import Cluster, Json
from fakes.served_namespace import ServedNamespace
from segserve_common.kube.names import (
    AGENT_PORT,
    COMPONENT_LABEL,
    GATEWAY,
    GRPC_PORT,
    HTTP_PORT,
    INTERNAL_PORT,
    METRICS_PORT,
    POOL_LABEL,
    SERVER,
    SYNC_PORT,
)

pytestmark = pytest.mark.cluster

LISTEN: Final = 8080
PORTS: Final = {
    GATEWAY: (LISTEN, SYNC_PORT, INTERNAL_PORT),
    SERVER: (HTTP_PORT, GRPC_PORT, METRICS_PORT, AGENT_PORT),
}
METRICS: Final = {(GATEWAY, SYNC_PORT), (SERVER, METRICS_PORT), (SERVER, AGENT_PORT)}
"""Prometheus may be in any namespace."""
KUBE_SYSTEM: Final = "kube-system"
LABELS: Final = {"app": "kube-router"}
CONNECT: Final = """
import socket, sys
for address in sys.argv[1:]:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        continue
    print(address)
"""


def router() -> list[Json]:
    """Return the objects of kube-router as a firewall alone."""
    metadata = {"name": "kube-router", "namespace": KUBE_SYSTEM}
    container = {
        "name": "kube-router",
        "image": KUBE_ROUTER_IMAGE,
        "args": ["--run-router=false", "--run-firewall=true", "--run-service-proxy=false"],
        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
        "securityContext": {"privileged": True},
        "volumeMounts": [{"name": "lock", "mountPath": "/run/xtables.lock"}],
    }
    spec = {
        "hostNetwork": True,
        "serviceAccountName": "kube-router",
        "containers": [container],
        "volumes": [{"name": "lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}}],
    }
    subject = {"kind": "ServiceAccount", "name": "kube-router", "namespace": KUBE_SYSTEM}
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
    template = {"metadata": {"labels": LABELS}, "spec": spec}
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
         "metadata": {"name": "kube-router"}, "roleRef": role, "subjects": [subject]},
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata,
         "spec": {"selector": {"matchLabels": LABELS}, "template": template}},
    ]  # fmt: skip


@pytest.fixture(scope="module")
def enforced(served: ServedNamespace) -> Iterator[ServedNamespace]:
    """The pools of the session, with their policies enforced."""
    cluster = served.cluster
    cluster.node.load([KUBE_ROUTER_IMAGE])
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": router()}))
    try:
        cluster.kubectl("-n", KUBE_SYSTEM, "rollout", "status", "daemonset/kube-router", "--timeout=60s")
        yield served
    finally:
        cluster.kubectl("-n", KUBE_SYSTEM, "delete", "daemonset/kube-router", "serviceaccount/kube-router", "--wait")
        cluster.kubectl("delete", "clusterrolebinding/kube-router")
        # What it has written stays in the node.
        cluster.node.run("iptables-save | grep -vE 'KUBE-(ROUTER|POD-FW|NWPLCY)' | iptables-restore")


def reached(cluster: Cluster, served: ServedNamespace, namespace: str) -> set[tuple[str, int]]:
    """Return (component, port) of all that a pod of a namespace reaches."""
    addresses = {
        f"{pod['status']['podIP']}:{port}": (component, port)
        for component, ports in PORTS.items()
        for pod in cluster.pods(served.name, f"{POOL_LABEL}=default,{COMPONENT_LABEL}={component}")[:1]
        for port in ports
    }
    printed = cluster.kubectl("-n", namespace, "exec", "stranger", "--", "python3", "-c", CONNECT, *addresses)
    return {addresses[line] for line in printed.splitlines()}


@pytest.fixture
def stranger(cluster: Cluster, namespace: str) -> str:
    """A namespace with a pod of somebody else's."""
    cluster.start_pod(namespace, "stranger", cluster.images.operator, "sleep", "1000")
    return namespace


def test_strangers_reach_the_data_port_and_metrics_and_nothing_else(
    cluster: Cluster, enforced: ServedNamespace, stranger: str
) -> None:
    expected = {(GATEWAY, LISTEN), *METRICS}
    cluster.wait("policies are enforced", lambda: reached(cluster, enforced, stranger) == expected, timeout_s=60)
    with enforced.load() as load:
        load.wait_for(enforced.stable("coins"), count=20)


def test_strangers_reach_no_metrics_where_the_chart_says_who_reads_them(
    cluster: Cluster, enforced: ServedNamespace, stranger: str
) -> None:
    def set_variable(text: str) -> None:
        cluster.kubectl("-n", enforced.operator.namespace, "set", "env", "deployment/segserve", text)

    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    set_variable(f"SEGSERVE_METRICS_FROM={json.dumps([monitoring])}")
    try:
        cluster.wait("metrics are closed", lambda: reached(cluster, enforced, stranger) == {(GATEWAY, LISTEN)}, 120)
        with enforced.load() as load:
            load.wait_for(enforced.stable("coins"), count=20)
    finally:
        set_variable("SEGSERVE_METRICS_FROM-")
