"""NetworkPolicies of the pods, and the ServiceAccounts and Roles of servers and gateways.

Ingress is limited always, egress if the chart says what may be reached. Artifacts come from object stores, registries
and web servers anywhere, and the addresses of the API server and of DNS differ between clusters, so egress rules that
fit all clusters would allow everything. Pods may read their assignment or plan, and write reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    RbacV1Subject,
    V1LabelSelector,
    V1NetworkPolicy,
    V1NetworkPolicyEgressRule,
    V1NetworkPolicyIngressRule,
    V1NetworkPolicyPeer,
    V1NetworkPolicyPort,
    V1NetworkPolicySpec,
    V1PolicyRule,
    V1Role,
    V1RoleBinding,
    V1RoleRef,
    V1ServiceAccount,
)

from segserve_common.kube.kinds import NETWORK_POLICIES, ROLE_BINDINGS, ROLES, SERVICE_ACCOUNTS, Json
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
    from collections.abc import Iterable, Mapping, Sequence

    from segserve_operator.adapters.kube.objects.context import PoolContext

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


def access_objects(
    context: PoolContext,
    name: str,
    labels: Mapping[str, str],
    *,
    read: Iterable[str],
    written: str,
    annotations: Mapping[str, str] | None = None,
) -> tuple[Json, ...]:
    """Return a ServiceAccount with the right to read the ConfigMaps `read` and to patch the one called `written`.

    A list or watch is allowed if its field selector names one of them. Only the account gets the annotations.
    """
    account = meta(context, name, labels)
    account.annotations = dict(annotations) if annotations else None
    rules = [
        V1PolicyRule(
            api_groups=[""], resources=["configmaps"], resource_names=list(read), verbs=["get", "list", "watch"]
        ),
        V1PolicyRule(api_groups=[""], resources=["configmaps"], resource_names=[written], verbs=["get", "patch"]),
    ]
    # The Role and its binding must not carry annotations meant for the account, such as a cloud identity.
    return (
        rendered(SERVICE_ACCOUNTS, V1ServiceAccount(metadata=account, automount_service_account_token=False)),
        *_role(context, name, name, labels, rules),
    )


def own_reports_access(
    context: PoolContext, name: str, account: str, labels: Mapping[str, str], written: Sequence[str]
) -> tuple[Json, ...]:
    """Return a Role `name` with the right of an account to read and patch the ConfigMaps `written`, at least one."""
    if not written:
        raise ValueError("a rule without names would be about all ConfigMaps")
    rule = V1PolicyRule(api_groups=[""], resources=["configmaps"], resource_names=list(written), verbs=["get", "patch"])
    return _role(context, name, account, labels, [rule])


def _role(
    context: PoolContext, name: str, account: str, labels: Mapping[str, str], rules: list[V1PolicyRule]
) -> tuple[Json, Json]:
    own = meta(context, name, labels)
    subject = RbacV1Subject(kind="ServiceAccount", name=account, namespace=context.namespace)
    reference = V1RoleRef(api_group="rbac.authorization.k8s.io", kind="Role", name=name)
    return (
        rendered(ROLES, V1Role(metadata=own, rules=rules)),
        rendered(ROLE_BINDINGS, V1RoleBinding(metadata=own, role_ref=reference, subjects=[subject])),
    )
