"""The port to a Kubernetes API server: kinds, calls, and one error for each thing that can go wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Mapping

Json: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of object; `group` is empty for the core group."""

    group: str
    version: str
    name: str
    plural: str

    @property
    def api_version(self) -> str:
        """`group/version` as manifests have it."""
        return f"{self.group}/{self.version}" if self.group else self.version


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
OLD_DISRUPTION_BUDGETS: Final = Kind("policy", "v1beta1", "PodDisruptionBudget", "poddisruptionbudgets")
SECRETS: Final = Kind("", "v1", "Secret", "secrets")
EVENTS: Final = Kind("", "v1", "Event", "events")
LEASES: Final = Kind("coordination.k8s.io", "v1", "Lease", "leases")

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
"""What segserve makes (and the pods that come of it), all with `MANAGED_LABELS`."""


class ApiError(Exception):
    """A call that did not do what it should; a later pass tries again. `retry_after_s` is what the server asked for."""

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class NotFoundError(ApiError):
    """There is no such object (404)."""


class ConflictError(ApiError):
    """The object is another than the one that was looked at, or exists already (409)."""


class GoneError(ApiError):
    """What a watch or a list wanted to go on from is too old (410)."""


class InvalidError(ApiError):
    """The server refuses the content (400, 422)."""


class ForbiddenError(ApiError):
    """The server refuses the caller (401, 403)."""


class ThrottledError(ApiError):
    """The server asks for patience (429)."""


class UnavailableError(ApiError):
    """The server failed (5xx), does not answer, or not in time."""


class NotLeaderError(ApiError):
    """The write was refused here, before it was sent: this process does not hold the operator's lease."""


class Api(Protocol):
    """The calls that the operator makes. Each ends within a bounded time, and raises an `ApiError` where it fails.

    Objects are JSON values as the server sends them, without `managedFields`; a list's have `apiVersion` and `kind`
    too. A `metadata.resourceVersion` or `metadata.uid` in what is sent is a precondition: `ConflictError` where the
    object has another now. Of these, only a uid keeps `apply` from making an object anew that is gone, and only a
    resourceVersion keeps a status from being written to another object of the name.
    """

    async def has(self, kind: Kind) -> bool:
        """Return whether the server serves this kind."""
        ...

    async def list(self, kind: Kind, namespace: str | None, labels: Mapping[str, str]) -> list[Json]:
        """Return all objects of a kind with these labels as they are now; of all namespaces where that is None."""
        ...

    async def versions(
        self, kind: Kind, namespace: str | None, labels: Mapping[str, str]
    ) -> dict[tuple[str, str], str]:
        """Return the resourceVersion of each by (namespace, name): all that a look for missed changes needs."""
        ...

    async def get(self, kind: Kind, namespace: str, name: str) -> Json:
        """Return one object."""
        ...

    async def create(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Create an object; `ConflictError` where there is one of that name."""
        ...

    async def apply(self, kind: Kind, namespace: str, manifest: Json) -> Json:
        """Make an object have all that the manifest says, by server-side apply, and return it."""
        ...

    async def patch(self, kind: Kind, namespace: str, name: str, patch: Json, *, status: bool = False) -> Json:
        """Merge a patch into an object, or into its status, and return it."""
        ...

    async def delete(self, kind: Kind, namespace: str, name: str, *, uid: str | None = None) -> None:
        """Delete an object, in the background what it owns; one that is gone, or of another uid, is left alone."""
        ...
