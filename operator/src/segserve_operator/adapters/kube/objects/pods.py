"""What the pods of servers and gateways have in common: security, environment, volumes, placement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

from lightkube.models.core_v1 import (
    Capabilities,
    ConfigMapProjection,
    DownwardAPIProjection,
    DownwardAPIVolumeFile,
    EmptyDirVolumeSource,
    EnvVar,
    EnvVarSource,
    ExecAction,
    HTTPGetAction,
    KeyToPath,
    LifecycleHandler,
    LocalObjectReference,
    ObjectFieldSelector,
    PodSecurityContext,
    Probe,
    ProjectedVolumeSource,
    ResourceRequirements,
    SeccompProfile,
    SecurityContext,
    ServiceAccountTokenProjection,
    TCPSocketAction,
    Toleration,
    TopologySpreadConstraint,
    Volume,
    VolumeMount,
    VolumeProjection,
)
from lightkube.models.meta_v1 import LabelSelector

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from segserve_operator.api import pod_template as api

Value = TypeVar("Value")

USER: Final = 1000
TMP_FOLDER: Final = "/tmp"
TOKEN_VOLUME: Final = "token"
_TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_SECONDS: Final = 3607  # as Kubernetes' own: that many, and it is renewed in time
_NODES: Final = "kubernetes.io/hostname"
_ZONES: Final = "topology.kubernetes.io/zone"


def pod_security() -> PodSecurityContext:
    """Return what the restricted profile of Pod Security asks of a pod; volumes are writable by its user."""
    return PodSecurityContext(
        runAsNonRoot=True,
        runAsUser=USER,
        runAsGroup=USER,
        fsGroup=USER,
        fsGroupChangePolicy="OnRootMismatch",
        seccompProfile=SeccompProfile(type="RuntimeDefault"),
    )


def container_security() -> SecurityContext:
    """Return what the restricted profile asks of a container, and a root folder that nobody writes to."""
    return SecurityContext(
        allowPrivilegeEscalation=False,
        capabilities=Capabilities(drop=["ALL"]),
        readOnlyRootFilesystem=True,
        runAsNonRoot=True,
    )


def variables(values: Mapping[str, str | None]) -> list[EnvVar]:
    """Return the pod's own name, uid and namespace, then the given variables; those that are None are left out."""
    own = {"POD_NAME": "metadata.name", "POD_UID": "metadata.uid", "POD_NAMESPACE": "metadata.namespace"}
    return [
        *(
            EnvVar(name=name, valueFrom=EnvVarSource(fieldRef=ObjectFieldSelector(apiVersion="v1", fieldPath=path)))
            for name, path in own.items()
        ),
        *(EnvVar(name=name, value=value) for name, value in values.items() if value is not None),
    ]


def token_volume() -> Volume:
    """Return the token of the pod's account as a volume, for those of its containers that call the API."""
    return Volume(
        name=TOKEN_VOLUME,
        projected=ProjectedVolumeSource(
            sources=[
                VolumeProjection(
                    serviceAccountToken=ServiceAccountTokenProjection(path="token", expirationSeconds=_TOKEN_SECONDS)
                ),
                VolumeProjection(
                    configMap=ConfigMapProjection(
                        name="kube-root-ca.crt", items=[KeyToPath(key="ca.crt", path="ca.crt")]
                    )
                ),
                VolumeProjection(
                    downwardAPI=DownwardAPIProjection(
                        items=[
                            DownwardAPIVolumeFile(
                                path="namespace",
                                fieldRef=ObjectFieldSelector(apiVersion="v1", fieldPath="metadata.namespace"),
                            )
                        ]
                    )
                ),
            ]
        ),
    )


def token_mount() -> VolumeMount:
    """Return the mount of `token_volume` where clients of the API look for it."""
    return VolumeMount(name=TOKEN_VOLUME, mountPath=_TOKEN_FOLDER, readOnly=True)


def folder(name: str, size: str | None = None, *, memory: bool = False) -> Volume:
    """Return an empty folder that ends with the pod."""
    return Volume(name=name, emptyDir=EmptyDirVolumeSource(sizeLimit=size, medium="Memory" if memory else None))


def requirements(resources: api.Resources) -> ResourceRequirements | None:
    """Return a container's resources."""
    if not resources.limits and not resources.requests:
        return None
    return ResourceRequirements(
        limits=dict(resources.limits) or None,
        requests=dict(resources.requests) or None,
    )


def tolerations(items: Iterable[api.Toleration]) -> list[Toleration] | None:
    """Return a pod's tolerations."""
    return listed(
        Toleration(
            key=item.key,
            operator=item.operator,
            value=item.value,
            effect=item.effect,
            tolerationSeconds=item.toleration_seconds,
        )
        for item in items
    )


def pull_secrets(names: Iterable[str]) -> list[LocalObjectReference] | None:
    """Return references to the secrets that images are pulled with."""
    return listed(LocalObjectReference(name=name) for name in names)


def spread(selector: Mapping[str, str]) -> list[TopologySpreadConstraint]:
    """Return the wish for different nodes and zones; where there are too few, pods run nevertheless."""
    return [
        TopologySpreadConstraint(
            maxSkew=1,
            topologyKey=key,
            whenUnsatisfiable="ScheduleAnyway",
            labelSelector=LabelSelector(matchLabels=dict(selector)),
        )
        for key in (_NODES, _ZONES)
    ]


def listed(items: Iterable[Value]) -> list[Value] | None:
    """Return a list, None instead of an empty one: the API drops those, and a manifest has to say what is stored."""
    return list(items) or None


def http_probe(path: str, port: int, *, period_s: int, timeout_s: int, failures: int) -> Probe:
    """Return a probe that passes where a GET of `path` gets 200 to 399."""
    return Probe(
        httpGet=HTTPGetAction(path=path, port=port, scheme="HTTP"),
        periodSeconds=period_s,
        timeoutSeconds=timeout_s,
        failureThreshold=failures,
        successThreshold=1,
    )


def tcp_probe(port: int, *, period_s: int, timeout_s: int, failures: int) -> Probe:
    """Return a probe that passes where something listens."""
    return Probe(
        tcpSocket=TCPSocketAction(port=port),
        periodSeconds=period_s,
        timeoutSeconds=timeout_s,
        failureThreshold=failures,
        successThreshold=1,
    )


def run_first(*command: str) -> LifecycleHandler:
    """Return a hook that runs a command in the container."""
    return LifecycleHandler(exec=ExecAction(command=list(command)))
