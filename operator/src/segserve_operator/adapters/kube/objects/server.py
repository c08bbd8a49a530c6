"""Pods of a group: Triton, and the agent that loads the group's assignment into it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from kubernetes.aio.client import (
    V1Container,
    V1ContainerPort,
    V1HostPathVolumeSource,
    V1Lifecycle,
    V1PersistentVolumeClaimVolumeSource,
    V1PodSpec,
    V1PodTemplateSpec,
    V1Volume,
    V1VolumeMount,
)

from segserve_builder.cpus import CPUS_VARIABLE
from segserve_builder.sources.access import ACCESS_VARIABLE
from segserve_builder.spec.names import TRACES_VARIABLE
from segserve_common.canonical import json_digest
from segserve_common.kube.kinds import Json
from segserve_common.kube.names import (
    AGENT_CONTAINER,
    AGENT_PORT,
    CACHE_FOLDER,
    GRPC_PORT,
    HTTP_PORT,
    METRICS_PORT,
    RUN_FOLDER,
    TRITON_CONTAINER,
    object_name,
)
from segserve_common.logs import LogSettings
from segserve_operator.adapters.kube.objects import artifacts, pods
from segserve_operator.adapters.kube.objects.context import server_selector
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext
    from segserve_operator.api.pod_template import ContainerTemplate
    from segserve_operator.api.triton_pool import Server

_TRITON_REQUESTS: Final = {"cpu": "100m", "memory": "1Gi", "ephemeral-storage": "1Gi"}
_TRITON_LIMITS: Final = {"memory": "32Gi"}
"""Limits of a Triton that the pool does not configure: a network that takes ever more does not also take the node."""
_AGENT_REQUESTS: Final = {"cpu": "50m", "memory": "256Mi", "ephemeral-storage": "1Gi"}
_AGENT_LIMITS: Final = {"memory": "4Gi"}
"""Limits of an agent that the pool does not configure: a network of 2 GiB, the largest in ONNX, is parsed in it."""
_AGENT_FOLDER: Final = "/run/segserve-agent"
_GRACE_S: Final = 5
"""Part of the grace period beside the drain and Triton's exit timeout: start of the hook, end of the steps."""
_START_S: Final = 1800
"""Time for Triton to start; loading CUDA from a slow disk takes long, and a restart would begin it again."""

_NO_GPUS: Final = {"NVIDIA_VISIBLE_DEVICES": "void"}
"""The image's value is `all`: where NVIDIA's runtime is the default one, that is every GPU of the node."""
_MAX_REQUEST_BYTES: Final = 2**31 - 1
"""Triton's largest; the gateway enforces the pool's limit, which can change without new servers."""


def main_group(context: PoolContext) -> str:
    """Return the name of the group that serves stable revisions; it changes with the server template."""
    return f"main-{template_digest(context)}"


def template_digest(context: PoolContext) -> str:
    """Return a digest, of 8 hex digits, of the server template that all groups of the pool share."""
    return context.once("template", lambda: json_digest(server_template(context), 8))


def server_template(context: PoolContext, group: str = "") -> Json:
    """Return the V1PodTemplateSpec of a group's servers; without a group, the part that all groups share."""
    server, given = context.spec.server, context.spec.server.pod_template
    selector = server_selector(context, group)
    spec = V1PodSpec(
        service_account_name=object_name(context.pool, group) if group else None,
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=server.drain_seconds + server.exit_timeout_seconds + _GRACE_S,
        security_context=pods.pod_security(context.defaults.pod_user),
        **pods.placement(given, selector, context.defaults.image_pull_secrets),
        containers=[_triton(context, group), _agent(context, group)],
        volumes=[*_volumes(server), *artifacts.volumes(context)],
    )
    template = V1PodTemplateSpec(metadata=pods.metadata(given, selector, TRITON_CONTAINER), spec=spec)
    return pods.placed(template, selector, given)


def _triton(context: PoolContext, group: str) -> V1Container:
    server, tracing = context.spec.server, context.spec.gateway.tracing
    live, ready = "/v2/health/live", "/v2/health/ready"
    ports = {"http": HTTP_PORT, "grpc": GRPC_PORT, "metrics": METRICS_PORT}
    return V1Container(
        name=TRITON_CONTAINER,
        image=server.image or context.defaults.server_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=["python3", "-m", "segserve_builder.cluster.triton"],
        env=pods.variables(
            {
                **_common(context, group),
                **({} if server.resources.has_gpus else _NO_GPUS),
                "SEGSERVE_EXIT_TIMEOUT_SECONDS": str(server.exit_timeout_seconds),
                "SEGSERVE_MAX_REQUEST_BYTES": str(_MAX_REQUEST_BYTES),
                **_own(server.pod_template.container(TRITON_CONTAINER)),
                TRACES_VARIABLE: tracing.server_traces_url if tracing is not None else None,
                **LogSettings(context.defaults.server_log_format).variables(),
            }
        ),
        ports=[V1ContainerPort(name=name, container_port=port, protocol="TCP") for name, port in ports.items()],
        resources=pods.requirements(server.resources, _TRITON_REQUESTS, _TRITON_LIMITS),
        # An intruder in Triton is not the user whose credentials the agent has.
        security_context=pods.container_security(_triton_user(context)),
        startup_probe=pods.http_probe(live, HTTP_PORT, period_s=1, timeout_s=2, failures=_START_S),
        # A restart loses all loaded models, so it takes half a minute without an answer.
        liveness_probe=pods.http_probe(live, HTTP_PORT, period_s=5, timeout_s=5, failures=6),
        readiness_probe=pods.http_probe(ready, HTTP_PORT, period_s=1, timeout_s=2, failures=3),
        lifecycle=V1Lifecycle(
            pre_stop=pods.run_first("python3", "-c", f"import time; time.sleep({server.drain_seconds})")
        ),
        volume_mounts=[
            V1VolumeMount(name="run", mount_path=RUN_FOLDER),
            _cache_mount(context, read_only=True),
            V1VolumeMount(name="shm", mount_path="/dev/shm"),
            V1VolumeMount(name="tmp", mount_path=pods.TMP_FOLDER),
        ],
    )


def _agent(context: PoolContext, group: str) -> V1Container:
    server = context.spec.server
    given = server.pod_template.container(AGENT_CONTAINER)
    return V1Container(
        name=AGENT_CONTAINER,
        image=server.image or context.defaults.server_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=["python3", "-m", "segserve_builder.cluster.agent"],
        env=pods.variables(
            {
                **_common(context, group),
                **_NO_GPUS,
                "SEGSERVE_ARTIFACT_BASE": artifacts.base_of(context),
                "SEGSERVE_AGENT_FOLDER": _AGENT_FOLDER,
                **context.defaults.logging.variables(),
                ACCESS_VARIABLE: artifacts.access_of(context).model_dump_json(by_alias=True, exclude_defaults=True),
                **_own(given),
            }
        ),
        ports=[V1ContainerPort(name="agent", container_port=AGENT_PORT, protocol="TCP")],
        resources=pods.requirements(
            server.pod_template.container(AGENT_CONTAINER).resources, _AGENT_REQUESTS, _AGENT_LIMITS
        ),
        security_context=pods.container_security(),
        startup_probe=pods.http_probe("/live", AGENT_PORT, period_s=1, timeout_s=2, failures=300),
        liveness_probe=pods.http_probe("/live", AGENT_PORT, period_s=5, timeout_s=5, failures=6),
        # It passes once all assigned models have passed their golden tests, so two failures are enough.
        readiness_probe=pods.http_probe("/ready", AGENT_PORT, period_s=1, timeout_s=2, failures=2),
        volume_mounts=[
            V1VolumeMount(name="run", mount_path=RUN_FOLDER),
            _cache_mount(context),
            V1VolumeMount(name="agent-run", mount_path=_AGENT_FOLDER),
            V1VolumeMount(name="agent-tmp", mount_path=pods.TMP_FOLDER),
            pods.token_mount(),
            *artifacts.mounts(context.spec.artifacts),
        ],
    )


def _triton_user(context: PoolContext) -> int | None:
    """Return the user of Triton beside the pod's, who is the agent's; None if the cluster chooses one for both."""
    # The agent keeps the pod's: caches that outlive a pod have files of that user.
    return context.defaults.pod_user + 1 if context.defaults.pod_user is not None else None


def _common(context: PoolContext, group: str) -> dict[str, str | None]:
    return {
        "SEGSERVE_POOL": context.pool,
        "SEGSERVE_GROUP": group or None,
        "SEGSERVE_TRITON_VERSION": context.spec.server.version or context.defaults.triton_version,
        CPUS_VARIABLE: _cpus(context.spec.server),
        "HOME": pods.TMP_FOLDER,
    }


def _cpus(server: Server) -> str | None:
    """Return Triton's limit of processors, rounded up; its processes and the agent see all of the node."""
    limit = number(server.resources.limits.get("cpu", ""))
    return str(math.ceil(limit)) if limit else None


def _own(container: ContainerTemplate) -> dict[str, str | None]:
    return {variable.name: variable.value for variable in container.env}


def _volumes(server: Server) -> list[V1Volume]:
    return [
        pods.folder("run"),
        _cache(server),
        pods.folder("shm", server.shared_memory, memory=True),
        pods.folder("tmp"),
        pods.folder("agent-run"),
        pods.folder("agent-tmp"),
        pods.token_volume(),
    ]


def _cache_mount(context: PoolContext, *, read_only: bool | None = None) -> V1VolumeMount:
    """Return where the cache is mounted; of a folder of the node, only the part of the pool's namespace."""
    part = context.namespace if context.spec.server.cache.host_path is not None else None
    return V1VolumeMount(name="cache", mount_path=CACHE_FOLDER, sub_path=part, read_only=read_only)


def _cache(server: Server) -> V1Volume:
    cache = server.cache
    if cache.persistent_volume_claim is not None:
        claim = V1PersistentVolumeClaimVolumeSource(claim_name=cache.persistent_volume_claim)
        return V1Volume(name="cache", persistent_volume_claim=claim)
    if cache.host_path is not None:
        return V1Volume(name="cache", host_path=V1HostPathVolumeSource(path=cache.host_path, type="Directory"))
    return pods.folder("cache", cache.size)
