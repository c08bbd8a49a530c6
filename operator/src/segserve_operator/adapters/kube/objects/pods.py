"""Parts of the pods of servers and gateways: security, environment, volumes, probes, placement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kubernetes.aio.client import (
    V1Capabilities,
    V1ConfigMapProjection,
    V1DownwardAPIProjection,
    V1DownwardAPIVolumeFile,
    V1EmptyDirVolumeSource,
    V1EnvVar,
    V1EnvVarSource,
    V1ExecAction,
    V1HTTPGetAction,
    V1KeyToPath,
    V1LabelSelector,
    V1LifecycleHandler,
    V1LocalObjectReference,
    V1ObjectFieldSelector,
    V1ObjectMeta,
    V1PodDisruptionBudget,
    V1PodDisruptionBudgetSpec,
    V1PodSecurityContext,
    V1PodTemplateSpec,
    V1Probe,
    V1ProjectedVolumeSource,
    V1ResourceRequirements,
    V1SeccompProfile,
    V1SecretVolumeSource,
    V1SecurityContext,
    V1ServiceAccountTokenProjection,
    V1TCPSocketAction,
    V1Toleration,
    V1TopologySpreadConstraint,
    V1Volume,
    V1VolumeMount,
    V1VolumeProjection,
)

from segserve_common.kube.kinds import DISRUPTION_BUDGETS, Json
from segserve_common.kube.names import MANAGED_LABELS
from segserve_operator.adapters.kube.objects.context import dumped, meta, rendered
from segserve_operator.api import pod_template as api

if TYPE_CHECKING:
    from collections.abc import Mapping

    from segserve_operator.adapters.kube.objects.context import PoolContext

Value = TypeVar("Value")

TMP_FOLDER: Final = "/tmp"
TOKEN_VOLUME: Final = "token"
_TOKEN_FOLDER: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
_TOKEN_SECONDS: Final = 3607  # as in the volume that Kubernetes itself adds to pods; the kubelet renews it
_HEAP_SHARE: Final = Decimal("0.8")
_LEAST_HEAP_BYTES: Final = 2**26


def pod_security(user: int | None) -> V1PodSecurityContext:
    """Return the security context of the `restricted` Pod Security profile; volumes are writable by the pod's user.

    Without a user the cluster's admission chooses one, and the group of the volumes, as OpenShift's does.
    """
    return V1PodSecurityContext(
        run_as_non_root=True,
        run_as_user=user,
        run_as_group=user,
        fs_group=user,
        fs_group_change_policy="OnRootMismatch" if user is not None else None,
        seccomp_profile=V1SeccompProfile(type="RuntimeDefault"),
    )


def container_security(user: int | None = None) -> V1SecurityContext:
    """Return the security context of the `restricted` profile, with a read-only root file system.

    Without a user of its own, the container's processes run as the pod's.
    """
    return V1SecurityContext(
        run_as_user=user,
        allow_privilege_escalation=False,
        capabilities=V1Capabilities(drop=["ALL"]),
        read_only_root_filesystem=True,
        run_as_non_root=True,
    )


def metadata(given: api.PodTemplate, selector: Mapping[str, str], container: str) -> V1ObjectMeta:
    """Return a pod's labels and annotations; kubectl shows the logs of `container` by default.

    Policies of clusters ask for a label with the pod's name, which a pool may choose.
    """
    labels = {"app.kubernetes.io/name": "segserve", **given.metadata.labels, **MANAGED_LABELS, **selector}
    annotations = {**given.metadata.annotations, "kubectl.kubernetes.io/default-container": container}
    return V1ObjectMeta(labels=labels, annotations=annotations)


def variables(values: Mapping[str, str | None]) -> list[V1EnvVar]:
    """Return variables of the pod's name, uid, namespace and address, then `values` without those that are None."""
    own = {
        "POD_NAME": "metadata.name",
        "POD_UID": "metadata.uid",
        "POD_NAMESPACE": "metadata.namespace",
        "POD_IP": "status.podIP",
    }
    return [
        *(
            V1EnvVar(
                name=name, value_from=V1EnvVarSource(field_ref=V1ObjectFieldSelector(api_version="v1", field_path=path))
            )
            for name, path in own.items()
        ),
        *(V1EnvVar(name=name, value=value) for name, value in values.items() if value is not None),
    ]


def token_volume() -> V1Volume:
    """Return the token of the pod's ServiceAccount as a volume."""
    # Mounted explicitly, so that Triton and Envoy, which need no access to the API, have no token.
    return V1Volume(
        name=TOKEN_VOLUME,
        projected=V1ProjectedVolumeSource(
            sources=[
                V1VolumeProjection(
                    service_account_token=V1ServiceAccountTokenProjection(
                        path="token", expiration_seconds=_TOKEN_SECONDS
                    )
                ),
                V1VolumeProjection(
                    config_map=V1ConfigMapProjection(
                        name="kube-root-ca.crt", items=[V1KeyToPath(key="ca.crt", path="ca.crt")]
                    )
                ),
                V1VolumeProjection(
                    downward_api=V1DownwardAPIProjection(
                        items=[
                            V1DownwardAPIVolumeFile(
                                path="namespace",
                                field_ref=V1ObjectFieldSelector(api_version="v1", field_path="metadata.namespace"),
                            )
                        ]
                    )
                ),
            ]
        ),
    )


def token_mount() -> V1VolumeMount:
    """Return the mount of `token_volume` at the standard path of API clients."""
    return V1VolumeMount(name=TOKEN_VOLUME, mount_path=_TOKEN_FOLDER, read_only=True)


def folder(name: str, size: str | None = None, *, memory: bool = False) -> V1Volume:
    """Return an empty folder with the lifetime of the pod, in memory or on disk."""
    return V1Volume(name=name, empty_dir=V1EmptyDirVolumeSource(size_limit=size, medium="Memory" if memory else None))


def secret_volume(name: str, secret: str, user: int | None) -> V1Volume:
    """Return a Secret as a volume of a pod that runs as `user`, which runs even if there is no such Secret."""
    # The group of the volumes may read them; without one, the reading user is unknown before the pod runs.
    mode = 0o440 if user is not None else 0o444
    source = V1SecretVolumeSource(secret_name=secret, optional=True, default_mode=mode)
    return V1Volume(name=name, secret=source)


def requirements(
    resources: api.Resources, requests: Mapping[str, str], limits: Mapping[str, str] | None = None
) -> V1ResourceRequirements:
    """Return a container's resources, with default `requests` and `limits` of what the pool says nothing of."""
    given = {**dict(resources.limits), **dict(resources.requests)}
    missing = {name: amount for name, amount in requests.items() if name not in given}
    most = {name: amount for name, amount in (limits or {}).items() if name not in given}
    return V1ResourceRequirements(
        limits={**dict(resources.limits), **most} or None,
        requests={**dict(resources.requests), **missing} or None,
    )


def heap_bytes(limit: Decimal) -> int:
    """Return Envoy's heap below `limit` bytes of its container's memory, so that it acts before the kernel kills it."""
    return max(int(limit * _HEAP_SHARE), _LEAST_HEAP_BYTES)


def placement(template: api.PodTemplate, selector: Mapping[str, str], pull_secrets: Iterable[str]) -> dict[str, Any]:
    """Return the arguments of a V1PodSpec that place a pod and let its images be pulled, as a pool's template says.

    `pull_secrets` are the operator's own. What is None or empty in the template is left to the cluster.
    """
    given = template.spec
    names = dict.fromkeys([*(secret.name for secret in given.image_pull_secrets), *pull_secrets])
    return {
        "image_pull_secrets": listed(V1LocalObjectReference(name=name) for name in names),
        "node_selector": dict(given.node_selector) or None,
        "tolerations": listed(V1Toleration(**item.model_dump()) for item in given.tolerations),
        "topology_spread_constraints": spread(selector),
        "scheduler_name": given.scheduler_name,
        "runtime_class_name": given.runtime_class_name,
        "priority_class_name": given.priority_class_name,
    }


def placed(template: V1PodTemplateSpec, selector: Mapping[str, str], given: api.PodTemplate) -> Json:
    """Return a template's JSON with its affinity and its topology spread constraints, each as the user wrote it.

    The API server may have fields that the package's models lack. A constraint without a selector is about the pods
    that `selector` selects; without constraints these prefer different nodes and zones.
    """
    manifest = dumped(template)
    own = {"matchLabels": dict(selector)}
    if given.spec.affinity:
        manifest["spec"]["affinity"] = dict(given.spec.affinity)
    if constraints := [{"labelSelector": own, **item} for item in given.spec.topology_spread_constraints]:
        manifest["spec"]["topologySpreadConstraints"] = constraints
    return manifest


def spread(selector: Mapping[str, str]) -> list[V1TopologySpreadConstraint]:
    """Return constraints that prefer different nodes and zones, but do not require them."""
    return [
        V1TopologySpreadConstraint(
            max_skew=1,
            topology_key=key,
            when_unsatisfiable="ScheduleAnyway",
            label_selector=V1LabelSelector(match_labels=dict(selector)),
        )
        for key in ("kubernetes.io/hostname", "topology.kubernetes.io/zone")
    ]


def listed(items: Iterable[Value]) -> list[Value] | None:
    """Return a list, None if it is empty: the API server does not store empty lists."""
    return list(items) or None


def http_probe(path: str, port: int, *, period_s: int, timeout_s: int, failures: int) -> V1Probe:
    """Return a probe that passes if a GET of `path` has a status of 200 to 399."""
    return V1Probe(
        http_get=V1HTTPGetAction(path=path, port=port, scheme="HTTP"),
        period_seconds=period_s,
        timeout_seconds=timeout_s,
        failure_threshold=failures,
        success_threshold=1,
    )


def tcp_probe(port: int, *, period_s: int, timeout_s: int, failures: int) -> V1Probe:
    """Return a probe that passes if the port accepts connections."""
    return V1Probe(
        tcp_socket=V1TCPSocketAction(port=port),
        period_seconds=period_s,
        timeout_seconds=timeout_s,
        failure_threshold=failures,
        success_threshold=1,
    )


def run_first(*command: str) -> V1LifecycleHandler:
    """Return a hook that runs a command in the container."""
    handler = V1LifecycleHandler()
    handler.var_exec = V1ExecAction(command=list(command))  # the constructor ignores this argument
    return handler


def started_again(module: str, name: str, *arguments: str) -> list[str]:
    """Return the command that runs a Python module, and again whenever it ends by itself; it has no probes either.

    A pod with a container that has ended is not ready, and gets no requests: what stands beside callers' way must take
    nothing from them.
    """
    script = f'trap "exit 0" TERM; while true; do python3 -m {module} "$@" & wait $!; sleep 1; done'
    return ["sh", "-c", script, name, *arguments]


def disruption_budget(context: PoolContext, name: str, selector: Mapping[str, str]) -> Json:
    """Return the V1PodDisruptionBudget that allows one eviction at a time."""
    # Not min_available: a single pod could then never be evicted, and would block the drain of its node.
    spec = V1PodDisruptionBudgetSpec(max_unavailable=1, selector=V1LabelSelector(match_labels=dict(selector)))
    return rendered(DISRUPTION_BUDGETS, V1PodDisruptionBudget(metadata=meta(context, name, selector), spec=spec))
