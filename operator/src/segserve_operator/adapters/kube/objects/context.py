"""The context from which a pool's objects are rendered, and their common metadata: names, labels, an owner."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kubernetes.aio.client import V1NetworkPolicyPeer, V1ObjectMeta, V1OwnerReference
from pydantic import BaseModel

from segserve_builder.sources.access import Signatures
from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import POOLS, Json, Kind
from segserve_common.kube.names import (
    COMPONENT_LABEL,
    DOMAIN,
    GATEWAY,
    GROUP_LABEL,
    MANAGED_LABELS,
    POD_USER,
    POOL_LABEL,
    SERVER,
    object_name,
)
from segserve_common.logs import LogFormat, LogSettings
from segserve_operator.adapters.kube.objects.egress import Egress

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Mapping

    from segserve_operator.api.triton_pool import TritonPoolSpec


T = TypeVar("T")
MAX_RENDERED: Final = 64
MANIFEST_ANNOTATION: Final = f"{DOMAIN}/manifest"


@dataclass(frozen=True, slots=True)
class Defaults:
    """Settings of the operator for fields that a pool's spec leaves out.

    `operator_namespace_labels` and `operator_pod_labels` select, in network policies, the pods that may call a
    gateway's internal port. Artifacts come only from `artifact_schemes` and `artifact_hosts` (all if empty), and may
    come from `artifact_private_hosts`; they have the signatures that `artifact_signatures` requires. A cache may be a
    folder of the node if `allow_host_path`. Images are pulled with the Secrets `image_pull_secrets` beside the pool's
    own. Pods run as `pod_user`, or as a user that the cluster chooses if it is None. Pods reach what `egress` says,
    anything if it is None. Metrics are for `metrics_from`, for any pod if it is empty.
    """

    server_image: str
    triton_version: str
    envoy_image: str
    operator_image: str
    image_pull_policy: str | None = None
    image_pull_secrets: tuple[str, ...] = ()
    pod_user: int | None = POD_USER
    logging: LogSettings = field(default_factory=LogSettings)
    server_log_format: LogFormat = "text"
    artifact_base: str | None = None
    artifact_schemes: tuple[str, ...] = ()
    artifact_hosts: tuple[str, ...] = ()
    artifact_private_hosts: tuple[str, ...] = ()
    artifact_signatures: Signatures = field(default_factory=Signatures)
    allow_host_path: bool = False
    cluster_domain: str = "cluster.local"
    operator_namespace_labels: Mapping[str, str] = field(default_factory=dict)
    operator_pod_labels: Mapping[str, str] = field(
        default_factory=lambda: {"app.kubernetes.io/part-of": "segserve", COMPONENT_LABEL: "operator"}
    )
    egress: Egress | None = None
    metrics_from: tuple[V1NetworkPolicyPeer, ...] = ()


@dataclass(frozen=True, slots=True)
class PoolContext:
    """The pool whose objects are rendered; with its `uid` it becomes their owner."""

    namespace: str
    pool: str
    uid: str
    spec: TritonPoolSpec
    defaults: Defaults
    _rendered: dict[Hashable, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Hashable, render: Callable[[], T]) -> T:
        """Return the cached result of `render` for this key; callers must not change it.

        Every pass over a pool without changes would otherwise render the same objects.
        """
        if key not in self._rendered:
            if len(self._rendered) >= MAX_RENDERED:
                self._rendered.clear()  # groups come and go
            self._rendered[key] = render()
        rendered: T = self._rendered[key]
        return rendered


def server_selector(context: PoolContext, group: str) -> dict[str, str]:
    """Return the labels that select the pods of a group."""
    return {POOL_LABEL: context.pool, GROUP_LABEL: group, COMPONENT_LABEL: SERVER}


def gateway_selector(context: PoolContext) -> dict[str, str]:
    """Return the labels that select the pods of the gateway."""
    return {POOL_LABEL: context.pool, COMPONENT_LABEL: GATEWAY}


def meta(context: PoolContext, name: str, labels: Mapping[str, str]) -> V1ObjectMeta:
    """Return the metadata of an object that is owned by its pool, and deleted with it."""
    owner = V1OwnerReference(
        api_version=POOLS.api_version,
        kind=POOLS.name,
        name=context.pool,
        uid=context.uid,
        controller=True,
        block_owner_deletion=False,
    )
    return V1ObjectMeta(
        name=name, namespace=context.namespace, labels={**MANAGED_LABELS, **labels}, owner_references=[owner]
    )


def rendered(kind: Kind, model: BaseModel) -> Json:
    """Return the manifest of a model of the `kubernetes` package."""
    return dict(sorted({"apiVersion": kind.api_version, "kind": kind.name, **dumped(model)}.items()))


def dumped(model: BaseModel) -> Json:
    """Return the JSON value of a model of the `kubernetes` package, without fields that are None."""
    return model.model_dump(mode="json", by_alias=True, exclude_none=True)


def stamped(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest with a digest of itself among its annotations.

    Fields of a live object that the manifest does not have count as another client's. The digest makes an object
    differ after a field is removed from its manifest, so that it is applied again and loses the field.
    """
    own = manifest["metadata"]
    content = json_digest(manifest, 16)
    return {
        **manifest,
        "metadata": {**own, "annotations": {**own.get("annotations", {}), MANIFEST_ANNOTATION: content}},
    }


def gateway_url(context: PoolContext) -> str:
    """Return the URL of the pool's models within the cluster; gRPC clients use its host and port."""
    service = f"{object_name(context.pool)}.{context.namespace}.svc.{context.defaults.cluster_domain}"
    scheme = "http" if context.spec.gateway.tls is None else "https"
    return f"{scheme}://{service}:{context.spec.gateway.port}"


def scale_selector(context: PoolContext, idle: Iterable[str] = ()) -> str:
    """Return the selector of a pool's servers, without servers of `idle` groups, in the text form of its scale."""
    labels = {POOL_LABEL: context.pool, COMPONENT_LABEL: SERVER}
    terms = [f"{key}={value}" for key, value in sorted(labels.items())]
    names = ",".join(sorted(idle))
    return ",".join([*terms, f"{GROUP_LABEL} notin ({names})"] if names else terms)
