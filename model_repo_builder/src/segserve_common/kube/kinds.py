"""The kinds of Kubernetes objects that segserve reads and writes, and the paths of their collections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias
from urllib.parse import quote

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object; `group` is empty for the core group."""

    group: str
    version: str
    name: str
    plural: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`group/version` as manifests have it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def root(self) -> str:
        """The path of the group and version."""
        return f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"

    def path(self, namespace: str | None, *names: str) -> str:
        """Return the path of the objects, of all namespaces if that is None, or of one object and its subresources."""
        within = ("namespaces", namespace) if namespace is not None and self.namespaced else ()
        return "/".join((self.root, *(quote(part, safe="") for part in (*within, self.plural, *names))))


MODELS: Final = Kind("segserve.dev", "v1alpha1", "SegmentationModel", "segmentationmodels")
POOLS: Final = Kind("segserve.dev", "v1alpha1", "TritonPool", "tritonpools")
ROLLOUTS: Final = Kind("segserve.dev", "v1alpha1", "SegmentationRollout", "segmentationrollouts")
REVISIONS: Final = Kind("apps", "v1", "ControllerRevision", "controllerrevisions")
DEPLOYMENTS: Final = Kind("apps", "v1", "Deployment", "deployments")
PODS: Final = Kind("", "v1", "Pod", "pods")
CONFIG_MAPS: Final = Kind("", "v1", "ConfigMap", "configmaps")
SERVICES: Final = Kind("", "v1", "Service", "services")
SERVICE_ACCOUNTS: Final = Kind("", "v1", "ServiceAccount", "serviceaccounts")
ROLES: Final = Kind("rbac.authorization.k8s.io", "v1", "Role", "roles")
ROLE_BINDINGS: Final = Kind("rbac.authorization.k8s.io", "v1", "RoleBinding", "rolebindings")
NETWORK_POLICIES: Final = Kind("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies")
DISRUPTION_BUDGETS: Final = Kind("policy", "v1", "PodDisruptionBudget", "poddisruptionbudgets")
HTTP_ROUTES: Final = Kind("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes")
GRPC_ROUTES: Final = Kind("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes")
SECRETS: Final = Kind("", "v1", "Secret", "secrets")
EVENTS: Final = Kind("", "v1", "Event", "events")
LEASES: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")
NAMESPACES: Final = Kind("", "v1", "Namespace", "namespaces", namespaced=False)
NODES: Final = Kind("", "v1", "Node", "nodes", namespaced=False)
CUSTOM_RESOURCE_DEFINITIONS: Final = Kind(
    "apiextensions.k8s.io", "v1", "CustomResourceDefinition", "customresourcedefinitions", namespaced=False
)
SELF_REVIEWS: Final = Kind("authentication.k8s.io", "v1", "SelfSubjectReview", "selfsubjectreviews", namespaced=False)
CHILDREN: Final = (
    REVISIONS,
    DEPLOYMENTS,
    PODS,
    CONFIG_MAPS,
    SERVICES,
    SERVICE_ACCOUNTS,
    ROLES,
    ROLE_BINDINGS,
    NETWORK_POLICIES,
    DISRUPTION_BUDGETS,
)
"""The objects that segserve creates, and the pods that follow from them; all have `MANAGED_LABELS`."""

GATEWAY_ROUTES: Final = (HTTP_ROUTES, GRPC_ROUTES)
"""What it creates in addition if the cluster has the Gateway API and a pool requests it."""
