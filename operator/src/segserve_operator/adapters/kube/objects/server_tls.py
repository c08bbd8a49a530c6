"""Parts of mutual TLS between gateway and servers in the pods of both.

In a server's pod Triton listens on loopback, and an Envoy at the pod's address. That one alone has the servers' Secret
mounted, and is yet another user than the agent and Triton. The kubelet starts no pod whose Secret lacks a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import (
    V1Container,
    V1ContainerPort,
    V1DownwardAPIProjection,
    V1DownwardAPIVolumeFile,
    V1Lifecycle,
    V1ObjectFieldSelector,
    V1ProjectedVolumeSource,
    V1Volume,
    V1VolumeMount,
    V1VolumeProjection,
)

from segserve_common.kube.names import (
    DOMAIN,
    GRPC_PORT,
    HTTP_PORT,
    IDENTITY_ANNOTATION,
    METRICS_PORT,
    SERVER_TLS_FOLDER,
    TLS_CONTAINER,
)
from segserve_operator.adapters.kube.objects import pods
from segserve_operator.adapters.traffic.envoy_sidecar import PROOF_PATH, SidecarSettings, command, secret_files
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext
    from segserve_operator.api.pod_template import Resources
    from segserve_operator.api.triton_pool import TlsParty

_SECRET: Final = "server-tls"
_FILES: Final = "server-tls-files"
_FILES_FOLDER: Final = "/etc/segserve/tls"
_KEYS: Final = ("tls.crt", "tls.key", "ca.crt")
_REQUESTS: Final = {"cpu": "50m", "memory": "64Mi", "ephemeral-storage": "32Mi"}
_LIMITS: Final = {"memory": "256Mi"}
# Envoy goes on for as long as Triton finishes requests: it ends once nothing listens at the port of the metrics.
_END: Final = f"while (: > /dev/tcp/127.0.0.1/{METRICS_PORT}) 2> /dev/null; do sleep 0.2; done"


def pod_annotations(context: PoolContext) -> dict[str, str]:
    """Return the annotations of a server's pod: its identity, for the operator, and the files, for its Envoy."""
    tls = context.spec.server_tls
    if tls is None:
        return {}
    identity = _identity(context, tls.servers, "servers")
    return {IDENTITY_ANNOTATION: identity, **{_annotation(name): text for name, text in _files().items()}}


def triton_variables(context: PoolContext) -> dict[str, str]:
    """Return the variables by which Triton listens on loopback only, which its image has otherwise."""
    return {} if context.spec.server_tls is None else {"SEGSERVE_TRITON_LISTENS": "loopback"}


def probe_port(context: PoolContext) -> int:
    """Return the port at which the kubelet, who has no certificate, asks for Triton's health."""
    return HTTP_PORT if context.spec.server_tls is None else METRICS_PORT


def containers(context: PoolContext, ports: list[V1ContainerPort]) -> list[V1Container]:
    """Return the container of a server's Envoy, which has the pod's `ports`, if there is one."""
    tls = context.spec.server_tls
    if tls is None:
        return []
    resources = context.spec.server.pod_template.container(TLS_CONTAINER).resources
    settings = SidecarSettings(
        address="$(POD_IP)",
        http=(HTTP_PORT, HTTP_PORT),
        grpc=(GRPC_PORT, GRPC_PORT),
        metrics=(METRICS_PORT, METRICS_PORT),
        gateway=_identity(context, tls.gateway, "gateway"),
        secrets=Path(_FILES_FOLDER),
        heap_bytes=_heap_bytes(resources),
    )
    user = context.defaults.pod_user
    container = V1Container(
        name=TLS_CONTAINER,
        image=context.defaults.envoy_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=command("envoy", settings),
        env=pods.variables({}),
        ports=ports,
        resources=pods.requirements(resources, _REQUESTS, _LIMITS),
        security_context=pods.container_security(user + 2 if user is not None else None),
        # Ready once the certificate can be used; if the first one cannot, a restart reads the one that came meanwhile.
        startup_probe=pods.http_probe(PROOF_PATH, METRICS_PORT, period_s=1, timeout_s=2, failures=60),
        liveness_probe=pods.tcp_probe(HTTP_PORT, period_s=5, timeout_s=5, failures=6),
        lifecycle=V1Lifecycle(
            pre_stop=pods.run_first("bash", "-c", f"sleep {context.spec.server.drain_seconds}; {_END}")
        ),
        volume_mounts=[
            V1VolumeMount(name=_SECRET, mount_path=SERVER_TLS_FOLDER, read_only=True),
            V1VolumeMount(name=_FILES, mount_path=_FILES_FOLDER, read_only=True),
        ],
    )
    return [container]


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of a server's Envoy."""
    tls = context.spec.server_tls
    if tls is None:
        return []
    files = [
        V1DownwardAPIVolumeFile(
            path=name,
            field_ref=V1ObjectFieldSelector(
                api_version="v1", field_path=f"metadata.annotations['{_annotation(name)}']"
            ),
        )
        for name in _files()
    ]
    projection = V1VolumeProjection(downward_api=V1DownwardAPIProjection(items=files))
    return [
        pods.secret_volume(_SECRET, tls.servers.secret_name, context.defaults.pod_user, keys=_KEYS),
        V1Volume(name=_FILES, projected=V1ProjectedVolumeSource(sources=[projection])),
    ]


def gateway_volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volume of the gateway's Secret."""
    tls = context.spec.server_tls
    # Optional: without the Secret the pod runs, and the sidecar reports what is missing.
    return [] if tls is None else [pods.secret_volume(_SECRET, tls.gateway.secret_name, context.defaults.pod_user)]


def gateway_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the gateway's sidecar."""
    if context.spec.server_tls is None:
        return []
    return [V1VolumeMount(name=_SECRET, mount_path=SERVER_TLS_FOLDER, read_only=True)]


def gateway_options(context: PoolContext) -> dict[str, Any]:
    """Return the settings of the gateway's sidecar."""
    return {} if context.spec.server_tls is None else {"serverTls": SERVER_TLS_FOLDER}


def _files() -> dict[str, str]:
    return secret_files(Path(SERVER_TLS_FOLDER))


def _annotation(file: str) -> str:
    return f"{DOMAIN}/tls-{file.removesuffix('.json').replace('_', '-')}"


def _heap_bytes(resources: Resources) -> int:
    limit = number(resources.limits.get("memory") or _LIMITS["memory"])
    assert limit is not None
    return pods.heap_bytes(limit)


def _identity(context: PoolContext, party: TlsParty, role: str) -> str:
    return party.identity or f"{role}.{context.pool}.{context.namespace}.svc"
