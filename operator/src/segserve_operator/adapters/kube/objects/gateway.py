"""All objects of a pool's gateway except its plan: Envoy, the sidecar that configures it, and the comparator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import (
    V1Container,
    V1ContainerPort,
    V1Lifecycle,
    V1ObjectMeta,
    V1PodSpec,
    V1PodTemplateSpec,
    V1Service,
    V1ServicePort,
    V1ServiceSpec,
    V1VolumeMount,
)

from segserve_common.kube.kinds import SERVICES, Json
from segserve_common.kube.names import (
    ENVOY_CONTAINER,
    GATEWAY,
    INTERNAL_PORT,
    MANAGED_LABELS,
    REDIRECT_PORT,
    RUN_FOLDER,
    SHARDS,
    SYNC_CONTAINER,
    SYNC_PORT,
    object_name,
    plan_name,
    reports_name,
)
from segserve_operator.adapters.kube.objects import copies, gateway_auth, gateway_tls, pods
from segserve_operator.adapters.kube.objects.access import access_objects
from segserve_operator.adapters.kube.objects.config_maps import gateway_reports
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, stamped
from segserve_operator.adapters.kube.objects.group import deployment
from segserve_operator.adapters.kube.objects.network import gateway_policy
from segserve_operator.adapters.kube.objects.pods import disruption_budget
from segserve_operator.adapters.traffic.envoy_config import command
from segserve_operator.api.meta import ApiValue
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext, rendered

LISTEN_PORT: Final = 8080
"""Port of Envoy in its pod, unprivileged and independent of the Service's port."""

_ENVOY_REQUESTS: Final = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "128Mi"}
_SYNC_REQUESTS: Final = {"cpu": "20m", "memory": "96Mi", "ephemeral-storage": "64Mi"}
_HOOK_S: Final = 5
"""Additional wait of Envoy's hook, since the sidecar's hook may start late on a busy machine."""
_GRACE_S: Final = 15
"""Part of the grace period beside the drain: start of the hooks, and end of the two processes."""
_SYNC: Final = ("python3", "-m", "segserve_operator.gateway_sync")


def gateway_objects(context: PoolContext) -> tuple[Json, ...]:
    """Return the gateway's objects in the order of their creation; the Deployment is last, as pods need the others."""
    return context.once("gateway", lambda: _gateway_objects(context))


def _gateway_objects(context: PoolContext) -> tuple[Json, ...]:
    name = object_name(context.pool, GATEWAY)
    selector = gateway_selector(context)
    read = [plan_name(context.pool, shard) for shard in range(SHARDS)]
    manifests = (
        *access_objects(context, name, selector, read=read, written=reports_name(context.pool, GATEWAY)),
        gateway_reports(context),
        gateway_policy(context, LISTEN_PORT, *((REDIRECT_PORT,) if gateway_tls.redirects(context) else ())),
        disruption_budget(context, name, selector),
        _service(context),
        deployment(context, name, selector, replicas=context.spec.gateway.replicas, template=_template(context)),
    )
    return tuple(map(stamped, manifests))


def _service(context: PoolContext) -> Json:
    gateway = context.spec.gateway
    own = meta(context, object_name(context.pool), gateway_selector(context))
    own.annotations = dict(gateway.service_annotations) or None
    # Envoy takes HTTP/1.1 and HTTP/2 on the same port; gRPC through the cluster's gateways needs the latter.
    plain = "kubernetes.io/h2c" if gateway.provider == "gatewayApi" else None
    protocol = "https" if gateway.tls is not None else plain
    port = V1ServicePort(
        name="inference", port=gateway.port, target_port=LISTEN_PORT, protocol="TCP", app_protocol=protocol
    )
    ports = [port, *gateway_tls.service_ports(context)]
    spec = V1ServiceSpec(type=gateway.service_type, selector=gateway_selector(context), ports=ports)
    return rendered(SERVICES, V1Service(metadata=own, spec=spec))


def _template(context: PoolContext) -> Json:
    gateway, given = context.spec.gateway, context.spec.gateway.pod_template
    selector = gateway_selector(context)
    spec = V1PodSpec(
        service_account_name=object_name(context.pool, GATEWAY),
        automount_service_account_token=False,
        enable_service_links=False,
        termination_grace_period_seconds=gateway.drain_seconds + _GRACE_S,
        security_context=pods.pod_security(context.defaults.pod_user),
        **pods.placement(given, selector, context.defaults.image_pull_secrets),
        init_containers=[_sync_container(context, "prepare", "prepare")],
        containers=[_envoy(context), _sync(context), *copies.containers(context)],
        volumes=[
            *(pods.folder("run"), pods.folder("tmp"), pods.token_volume()),
            *gateway_tls.volumes(context),
            *gateway_auth.volumes(context),
            *copies.volumes(context),
        ],
    )
    annotations = {**given.metadata.annotations, "kubectl.kubernetes.io/default-container": ENVOY_CONTAINER}
    labels = {**given.metadata.labels, **MANAGED_LABELS, **selector}
    template = V1PodTemplateSpec(metadata=V1ObjectMeta(labels=labels, annotations=annotations), spec=spec)
    return pods.placed(template, selector, given)


def _envoy(context: PoolContext) -> V1Container:
    # Its probes do not need the API server, as Envoy itself works without it.
    gateway = context.spec.gateway
    return V1Container(
        name=ENVOY_CONTAINER,
        image=context.defaults.envoy_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=command(
            "envoy",
            Path(RUN_FOLDER),
            workers=gateway.workers,
            drain_s=gateway.drain_seconds,
            access_log=gateway.access_log is not None,
        ),
        ports=[
            V1ContainerPort(name="inference", container_port=LISTEN_PORT, protocol="TCP"),
            V1ContainerPort(name="internal", container_port=INTERNAL_PORT, protocol="TCP"),
            *gateway_tls.container_ports(context),
        ],
        resources=pods.requirements(gateway.pod_template.container(ENVOY_CONTAINER).resources, _ENVOY_REQUESTS),
        security_context=pods.container_security(),
        startup_probe=pods.tcp_probe(LISTEN_PORT, period_s=1, timeout_s=2, failures=60),
        liveness_probe=pods.tcp_probe(LISTEN_PORT, period_s=5, timeout_s=5, failures=6),
        # The sidecar's hook makes callers disconnect; this one keeps Envoy running while they do.
        lifecycle=V1Lifecycle(pre_stop=pods.run_first("sleep", str(gateway.drain_seconds + _HOOK_S))),
        volume_mounts=[
            V1VolumeMount(name="run", mount_path=RUN_FOLDER),
            V1VolumeMount(name="tmp", mount_path=pods.TMP_FOLDER),
            *gateway_tls.envoy_mounts(context),
            *copies.mounts(context),
        ],
    )


def _sync(context: PoolContext) -> V1Container:
    container = _sync_container(context, SYNC_CONTAINER, "follow")
    container.ports = [V1ContainerPort(name="sync", container_port=SYNC_PORT, protocol="TCP")]
    container.startup_probe = pods.http_probe("/live", SYNC_PORT, period_s=1, timeout_s=2, failures=120)
    container.liveness_probe = pods.http_probe("/live", SYNC_PORT, period_s=5, timeout_s=5, failures=6)
    container.readiness_probe = pods.http_probe("/ready", SYNC_PORT, period_s=1, timeout_s=2, failures=2)
    container.lifecycle = V1Lifecycle(pre_stop=pods.run_first(*_SYNC, "drain"))
    return container


def _sync_container(context: PoolContext, name: str, task: str) -> V1Container:
    gateway = context.spec.gateway
    limit = number(gateway.pod_template.container(ENVOY_CONTAINER).resources.limits.get("memory"))
    settings = {
        "port": LISTEN_PORT,
        "maxRequestBytes": gateway.max_request_bytes,
        "requestTimeoutSeconds": gateway.request_timeout_seconds,
        "workers": gateway.workers,
        **({"plainHttp": True} if gateway.plain_http else {}),
        **({"capture": True} if gateway.capture else {}),
        **({"heapBytes": pods.heap_bytes(limit)} if limit is not None else {}),
        **gateway_tls.options(context),
        **gateway_auth.options(context),
        **_option("sessionAffinity", gateway.session_affinity),
        **_option("accessLog", gateway.access_log),
        **_option("tracing", gateway.tracing),
    }
    return V1Container(
        name=name,
        image=context.defaults.operator_image,
        image_pull_policy=context.defaults.image_pull_policy,
        command=[*_SYNC, task],
        env=pods.variables(
            {
                "SEGSERVE_POOL": context.pool,
                "SEGSERVE_GATEWAY": json.dumps(settings),
                "SEGSERVE_DRAIN_SECONDS": str(gateway.drain_seconds),
                "HOME": pods.TMP_FOLDER,
                **context.defaults.logging.variables(),
            }
        ),
        resources=pods.requirements(gateway.pod_template.container(SYNC_CONTAINER).resources, _SYNC_REQUESTS),
        security_context=pods.container_security(),
        volume_mounts=[
            V1VolumeMount(name="run", mount_path=RUN_FOLDER),
            V1VolumeMount(name="tmp", mount_path=pods.TMP_FOLDER),
            pods.token_mount(),
            *gateway_tls.sync_mounts(context),
            *gateway_auth.sync_mounts(context),
            *copies.mounts(context),
        ],
    )


def _option(name: str, spec: ApiValue | None) -> dict[str, Any]:
    return {} if spec is None else {name: spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)}
