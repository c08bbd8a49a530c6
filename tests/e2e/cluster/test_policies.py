"""Who reaches whom where something enforces the NetworkPolicies: kube-router, for the time of these tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from fakes.cluster import Cluster
from fakes.kube_router import policies_enforced
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


@pytest.fixture(scope="module")
def enforced(served: ServedNamespace) -> Iterator[ServedNamespace]:
    """The pools of the session, with their policies enforced."""
    with policies_enforced(served.cluster):
        yield served


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
