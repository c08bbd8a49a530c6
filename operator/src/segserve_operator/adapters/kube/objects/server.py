"""The pods of a group: Triton, and the agent that makes it hold what the group was assigned."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, cast

from lightkube.models.core_v1 import (
    Affinity,
    Container,
    ContainerPort,
    HostPathVolumeSource,
    Lifecycle,
    PersistentVolumeClaimVolumeSource,
    PodSpec,
    PodTemplateSpec,
    Volume,
    VolumeMount,
)
from lightkube.models.meta_v1 import ObjectMeta

from segserve_builder.sources.access import ACCESS_VARIABLE
from segserve_common.canonical import canonical_json
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    AGENT_PORT,
    CACHE_FOLDER,
    GRPC_PORT,
    HTTP_PORT,
    MANAGED_LABELS,
    METRICS_PORT,
    RUN_FOLDER,
    TRITON_CONTAINER,
    object_name,
)
from segserve_operator.adapters.kube.objects import artifacts, pods
from segserve_operator.adapters.kube.objects.target import server_selector
from segserve_operator.api.pod_template import Resources

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.target import PoolContext
    from segserve_operator.api.triton_pool import Server

_AGENT_RESOURCES: Final = Resources(requests={"cpu": "50m", "memory": "256Mi"})
_GRACE_S: Final = 5
"""Beside the drain and Triton's own exit timeout: for the start of the hook and the end of the stubs."""
_START_S: Final = 1800
"""An image's first pull does not count, but loading CUDA on a slow disk does: rather wait than restart."""

_MAX_REQUEST_BYTES: Final = 2**31 - 1
"""The gateway's own limit is the one that counts, and can change without new servers."""


def main_group(target: PoolContext) -> str:
    """Return the name of the group that models settle in: another one as soon as servers are to differ."""
    return f"main-{template_digest(target)}"


def template_digest(target: PoolContext) -> str:
    """Return 8 hex digits of all that servers of any group of the pool are made of."""
    return hashlib.sha256(canonical_json(server_template(target)).encode()).hexdigest()[:8]


def server_template(target: PoolContext, group: str = "") -> dict[str, Any]:
    """Return the PodTemplateSpec of a group's servers; without a group, what all groups' have in common."""
    server = target.spec.server
    selector = server_selector(target, group)
    labels = {**server.pod_labels, **MANAGED_LABELS, **selector}
    spec = PodSpec(
        serviceAccountName=object_name(target.pool, group) if group else None,
        automountServiceAccountToken=False,
        enableServiceLinks=False,
        shareProcessNamespace=True,
        terminationGracePeriodSeconds=server.drain_seconds + server.exit_timeout_seconds + _GRACE_S,
        securityContext=pods.pod_security(),
        imagePullSecrets=pods.pull_secrets(server.image_pull_secrets),
        nodeSelector=dict(server.node_selector) or None,
        tolerations=pods.tolerations(server.tolerations),
        # The API server knows the fields, also those that this client does not know.
        affinity=cast("Affinity", dict(server.affinity)) if server.affinity else None,
        topologySpreadConstraints=pods.spread(selector),
        runtimeClassName=server.runtime_class_name,
        priorityClassName=server.priority_class_name,
        containers=[_triton(target, group), _agent(target, group)],
        volumes=[*_volumes(server), *artifacts.volumes(target.spec.artifacts)],
    )
    annotations = {**server.pod_annotations, "kubectl.kubernetes.io/default-container": TRITON_CONTAINER}
    template = PodTemplateSpec(metadata=ObjectMeta(labels=labels, annotations=annotations), spec=spec)
    return template.to_dict()


def _triton(target: PoolContext, group: str) -> Container:
    server = target.spec.server
    live, ready = "/v2/health/live", "/v2/health/ready"
    return Container(
        name=TRITON_CONTAINER,
        image=server.image or target.defaults.server_image,
        imagePullPolicy=server.image_pull_policy or target.defaults.image_pull_policy,
        command=["python3", "-m", "segserve_builder.cluster.triton"],
        env=pods.variables(
            {
                **_common(target, group),
                "SEGSERVE_EXIT_TIMEOUT_SECONDS": str(server.exit_timeout_seconds),
                "SEGSERVE_MAX_REQUEST_BYTES": str(_MAX_REQUEST_BYTES),
                **_own(server),
            }
        ),
        ports=[
            ContainerPort(name="http", containerPort=HTTP_PORT, protocol="TCP"),
            ContainerPort(name="grpc", containerPort=GRPC_PORT, protocol="TCP"),
            ContainerPort(name="metrics", containerPort=METRICS_PORT, protocol="TCP"),
        ],
        resources=pods.requirements(server.resources),
        securityContext=pods.container_security(),
        startupProbe=pods.http_probe(live, HTTP_PORT, period_s=1, timeout_s=2, failures=_START_S),
        # A restart loses all that is loaded, so that only a server that is silent for half a minute gets one.
        livenessProbe=pods.http_probe(live, HTTP_PORT, period_s=5, timeout_s=5, failures=6),
        readinessProbe=pods.http_probe(ready, HTTP_PORT, period_s=1, timeout_s=2, failures=3),
        lifecycle=Lifecycle(
            preStop=pods.run_first("python3", "-c", f"import time; time.sleep({server.drain_seconds})")
        ),
        volumeMounts=[
            VolumeMount(name="run", mountPath=RUN_FOLDER),
            VolumeMount(name="cache", mountPath=CACHE_FOLDER, readOnly=True),
            VolumeMount(name="shm", mountPath="/dev/shm"),
            VolumeMount(name="tmp", mountPath=pods.TMP_FOLDER),
        ],
    )


def _agent(target: PoolContext, group: str) -> Container:
    server = target.spec.server
    return Container(
        name=AGENT_CONTAINER,
        image=server.image or target.defaults.server_image,
        imagePullPolicy=server.image_pull_policy or target.defaults.image_pull_policy,
        command=["python3", "-m", "segserve_builder.cluster.agent"],
        env=pods.variables(
            {
                **_common(target, group),
                "SEGSERVE_ARTIFACT_BASE": artifacts.base_of(target),
                ACCESS_VARIABLE: artifacts.access_of(target).model_dump_json(by_alias=True, exclude_defaults=True),
                **_own(server),
            }
        ),
        ports=[ContainerPort(name="agent", containerPort=AGENT_PORT, protocol="TCP")],
        resources=pods.requirements(server.agent_resources or _AGENT_RESOURCES),
        securityContext=pods.container_security(),
        startupProbe=pods.http_probe("/live", AGENT_PORT, period_s=1, timeout_s=2, failures=300),
        livenessProbe=pods.http_probe("/live", AGENT_PORT, period_s=5, timeout_s=5, failures=6),
        # It passes where all that is assigned answered its golden images, so that no further doubt is needed.
        readinessProbe=pods.http_probe("/ready", AGENT_PORT, period_s=1, timeout_s=2, failures=2),
        volumeMounts=[
            VolumeMount(name="run", mountPath=RUN_FOLDER),
            VolumeMount(name="cache", mountPath=CACHE_FOLDER),
            VolumeMount(name="tmp", mountPath=pods.TMP_FOLDER),
            pods.token_mount(),
            *artifacts.mounts(target.spec.artifacts),
        ],
    )


def _common(target: PoolContext, group: str) -> dict[str, str | None]:
    return {
        "SEGSERVE_POOL": target.pool,
        "SEGSERVE_GROUP": group or None,
        "SEGSERVE_TRITON_VERSION": target.spec.server.version or target.defaults.triton_version,
        "HOME": pods.TMP_FOLDER,
    }


def _own(server: Server) -> dict[str, str | None]:
    return {variable.name: variable.value for variable in server.env}


def _volumes(server: Server) -> list[Volume]:
    return [
        pods.folder("run"),
        _cache(server),
        pods.folder("shm", server.shared_memory, memory=True),
        pods.folder("tmp"),
        pods.token_volume(),
    ]


def _cache(server: Server) -> Volume:
    cache = server.cache
    if cache.persistent_volume_claim is not None:
        claim = PersistentVolumeClaimVolumeSource(claimName=cache.persistent_volume_claim)
        return Volume(name="cache", persistentVolumeClaim=claim)
    if cache.host_path is not None:
        return Volume(name="cache", hostPath=HostPathVolumeSource(path=cache.host_path, type="Directory"))
    return pods.folder("cache", cache.size)
