"""kube-router as the firewall of the tests' cluster, which by itself enforces no NetworkPolicies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from cluster.images import KUBE_ROUTER_IMAGE
from fakes.cluster import Cluster, Json

KUBE_SYSTEM: Final = "kube-system"
LABELS: Final = {"app": "kube-router"}


@contextmanager
def policies_enforced(cluster: Cluster) -> Iterator[None]:
    """Have the policies of all namespaces enforced for the time of the block."""
    cluster.node.load([KUBE_ROUTER_IMAGE])
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": router()}))
    try:
        cluster.kubectl("-n", KUBE_SYSTEM, "rollout", "status", "daemonset/kube-router", "--timeout=60s")
        yield
    finally:
        cluster.kubectl("-n", KUBE_SYSTEM, "delete", "daemonset/kube-router", "serviceaccount/kube-router", "--wait")
        cluster.kubectl("delete", "clusterrolebinding/kube-router")
        # What it has written stays in the node.
        cluster.node.run("iptables-save | grep -vE 'KUBE-(ROUTER|POD-FW|NWPLCY)' | iptables-restore")


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
