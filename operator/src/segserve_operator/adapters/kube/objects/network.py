"""NetworkPolicies of the pods: ingress always, egress if the chart says what may be reached.

Artifacts come from object stores, registries and web servers anywhere, and the addresses of the API server and of
DNS differ between clusters, so egress rules that fit all clusters would allow everything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1LabelSelector,
    V1NetworkPolicy,
    V1NetworkPolicyEgressRule,
    V1NetworkPolicyIngressRule,
    V1NetworkPolicyPeer,
    V1NetworkPolicyPort,
    V1NetworkPolicySpec,
)

from segserve_common.kube.kinds import NETWORK_POLICIES, Json
from segserve_common.kube.names import (
    AGENT_PORT,
    COMPONENT_LABEL,
    GRPC_PORT,
    HTTP_PORT,
    INTERNAL_PORT,
    METRICS_PORT,
    POOL_LABEL,
    SERVER,
    SYNC_PORT,
    object_name,
)
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, server_selector

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered

_INFERENCE_PORTS: Final = (HTTP_PORT, GRPC_PORT)
# Any pod: Prometheus may be in any namespace. Probes of the kubelet are always allowed.
_CLUSTER: Final = V1NetworkPolicyPeer(namespace_selector=V1LabelSelector())


def server_policy(context: PoolContext, group: str) -> Json:
    """Return the V1NetworkPolicy of a group: only the pool's gateway may send it requests."""
    gateway = V1NetworkPolicyPeer(pod_selector=V1LabelSelector(match_labels=gateway_selector(context)))
    readers = context.defaults.metrics_from or (_CLUSTER,)
    rules = [_rule(_INFERENCE_PORTS, gateway), _rule((METRICS_PORT, AGENT_PORT), *readers)]
    egress = None if context.defaults.egress is None else context.defaults.egress.of_servers()
    return _policy(context, object_name(context.pool, group), server_selector(context, group), rules, egress)


def gateway_policy(context: PoolContext, *listen_ports: int) -> Json:
    """Return the V1NetworkPolicy of the gateway: these ports open to all, its internal one only to the operator."""
    operator = V1NetworkPolicyPeer(
        namespace_selector=V1LabelSelector(match_labels=dict(context.defaults.operator_namespace_labels) or None),
        pod_selector=V1LabelSelector(match_labels=dict(context.defaults.operator_pod_labels)),
    )
    readers = (operator, *context.defaults.metrics_from) if context.defaults.metrics_from else (_CLUSTER,)
    rules = [_rule(listen_ports), _rule((INTERNAL_PORT,), operator), _rule((SYNC_PORT,), *readers)]
    name = object_name(context.pool, "gateway")
    servers = {POOL_LABEL: context.pool, COMPONENT_LABEL: SERVER}
    allowed = context.defaults.egress
    egress = None if allowed is None else allowed.of_gateways(servers, _INFERENCE_PORTS)
    return _policy(context, name, gateway_selector(context), rules, egress)


def _rule(ports: Sequence[int], *peers: V1NetworkPolicyPeer) -> V1NetworkPolicyIngressRule:
    allowed = [V1NetworkPolicyPort(port=port, protocol="TCP") for port in ports]
    rule = V1NetworkPolicyIngressRule(ports=allowed)
    if peers:
        rule.var_from = list(peers)
    return rule


def _policy(
    context: PoolContext,
    name: str,
    selector: Mapping[str, str],
    ingress: list[V1NetworkPolicyIngressRule],
    egress: list[V1NetworkPolicyEgressRule] | None,
) -> Json:
    spec = V1NetworkPolicySpec(
        pod_selector=V1LabelSelector(match_labels=dict(selector)),
        policy_types=["Ingress"] if egress is None else ["Ingress", "Egress"],
        ingress=ingress,
        egress=egress,
    )
    return rendered(NETWORK_POLICIES, V1NetworkPolicy(metadata=meta(context, name, selector), spec=spec))
