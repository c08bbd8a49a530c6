"""NetworkPolicies for ingress to the pods; egress is not restricted.

Artifacts come from object stores, registries and web servers anywhere, and the addresses of the API server and of
DNS differ between clusters, so one egress rule for all clusters would allow everything. A cluster can add its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1LabelSelector,
    V1NetworkPolicy,
    V1NetworkPolicyIngressRule,
    V1NetworkPolicyPeer,
    V1NetworkPolicyPort,
    V1NetworkPolicySpec,
)

from segserve_common.kube.kinds import NETWORK_POLICIES, Json
from segserve_common.kube.names import (
    AGENT_PORT,
    GRPC_PORT,
    HTTP_PORT,
    INTERNAL_PORT,
    METRICS_PORT,
    SYNC_PORT,
    object_name,
)
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, server_selector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered

# Any pod of the cluster, as metrics are scraped from another namespace. Probes of the kubelet are always allowed.
_CLUSTER: Final = V1NetworkPolicyPeer(namespace_selector=V1LabelSelector())


def server_policy(context: PoolContext, group: str) -> Json:
    """Return the V1NetworkPolicy of a group: only the pool's gateway may send it requests."""
    gateway = V1NetworkPolicyPeer(pod_selector=V1LabelSelector(match_labels=gateway_selector(context)))
    rules = [_rule((HTTP_PORT, GRPC_PORT), gateway), _rule((METRICS_PORT, AGENT_PORT), _CLUSTER)]
    return _policy(context, object_name(context.pool, group), server_selector(context, group), rules)


def gateway_policy(context: PoolContext, *listen_ports: int) -> Json:
    """Return the V1NetworkPolicy of the gateway: these ports open to all, its internal one only to the operator."""
    operator = V1NetworkPolicyPeer(
        namespace_selector=V1LabelSelector(match_labels=dict(context.defaults.operator_namespace_labels) or None),
        pod_selector=V1LabelSelector(match_labels=dict(context.defaults.operator_pod_labels)),
    )
    rules = [_rule(listen_ports), _rule((INTERNAL_PORT,), operator), _rule((SYNC_PORT,), _CLUSTER)]
    name = object_name(context.pool, "gateway")
    return _policy(context, name, gateway_selector(context), rules)


def _rule(ports: Sequence[int], peer: V1NetworkPolicyPeer | None = None) -> V1NetworkPolicyIngressRule:
    allowed = [V1NetworkPolicyPort(port=port, protocol="TCP") for port in ports]
    rule = V1NetworkPolicyIngressRule(ports=allowed)
    if peer is not None:
        rule.var_from = [peer]
    return rule


def _policy(
    context: PoolContext, name: str, selector: Mapping[str, str], rules: list[V1NetworkPolicyIngressRule]
) -> Json:
    spec = V1NetworkPolicySpec(
        pod_selector=V1LabelSelector(match_labels=dict(selector)), policy_types=["Ingress"], ingress=rules
    )
    return rendered(NETWORK_POLICIES, V1NetworkPolicy(metadata=meta(context, name, selector), spec=spec))
