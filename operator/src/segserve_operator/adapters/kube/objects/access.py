"""ServiceAccounts and Roles of servers and gateways: they may read their assignment or plan, and write reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kubernetes.aio.client import RbacV1Subject, V1PolicyRule, V1Role, V1RoleBinding, V1RoleRef, V1ServiceAccount

from segserve_common.kube.kinds import ROLE_BINDINGS, ROLES, SERVICE_ACCOUNTS, Json
from segserve_operator.adapters.kube.objects.context import meta, rendered

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered


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
