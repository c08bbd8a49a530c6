"""What a group's servers, or a gateway's pods, may do at the API: read what they are told, write their report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightkube.models.rbac_v1 import PolicyRule, RoleRef, Subject
from lightkube.resources.core_v1 import ServiceAccount
from lightkube.resources.rbac_authorization_v1 import Role, RoleBinding

from segserve_operator.adapters.kube.objects.target import meta

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_operator.adapters.kube.objects.target import PoolContext


def access_objects(
    target: PoolContext,
    name: str,
    labels: Mapping[str, str],
    *,
    read: Iterable[str],
    written: str,
    annotations: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], ...]:
    """Return an account, and its right to read the ConfigMaps `read` and to patch the one called `written`.

    A list or watch is allowed where its field selector names one of them. The account alone has the annotations.
    """
    own = meta(target, name, labels)
    account = meta(target, name, labels)
    account.annotations = dict(annotations) if annotations else None
    rules = [
        PolicyRule(apiGroups=[""], resources=["configmaps"], resourceNames=list(read), verbs=["get", "list", "watch"]),
        PolicyRule(apiGroups=[""], resources=["configmaps"], resourceNames=[written], verbs=["get", "patch"]),
    ]
    subject = Subject(kind="ServiceAccount", name=name, namespace=target.namespace)
    reference = RoleRef(apiGroup="rbac.authorization.k8s.io", kind="Role", name=name)
    return (
        ServiceAccount(metadata=account, automountServiceAccountToken=False).to_dict(),
        Role(metadata=own, rules=rules).to_dict(),
        RoleBinding(metadata=own, roleRef=reference, subjects=[subject]).to_dict(),
    )
