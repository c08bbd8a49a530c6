"""All objects of a pool's gateway except its plan: Envoy, the sidecar that configures it, and the comparator.

Secrets of TLS and of authentication are mounted only for the sidecar. Envoy reads certificates from a folder in memory
that the sidecar writes to. By routes of the Gateway API a cluster's own gateways send requests to a pool's gateway.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

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
    V1Volume,
    V1VolumeMount,
)
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from segserve_common.kube.kinds import GRPC_ROUTES, HTTP_ROUTES, SERVICES, Json
from segserve_common.kube.names import (
    CERTIFICATE_FOLDER,
    CLIENT_CA_FOLDER,
    ENVOY_CONTAINER,
    GATEWAY,
    INTERNAL_PORT,
    REDIRECT_PORT,
    RUN_FOLDER,
    SECRETS_FOLDER,
    SHARDS,
    SYNC_CONTAINER,
    SYNC_PORT,
    object_name,
    plan_name,
    reports_name,
)
from segserve_operator.adapters.kube.objects import copies, pods
from segserve_operator.adapters.kube.objects.context import gateway_selector, meta, rendered, stamped
from segserve_operator.adapters.kube.objects.group import deployment, gateway_reports
from segserve_operator.adapters.kube.objects.network import access_objects, gateway_policy
from segserve_operator.adapters.kube.objects.pods import disruption_budget
from segserve_operator.adapters.traffic.envoy_config import command
from segserve_operator.adapters.traffic.envoy_listener import NAME_FIELDS
from segserve_operator.adapters.traffic.envoy_routes import SERVER_METHODS, SERVICE
from segserve_operator.api.meta import ApiValue
from segserve_operator.mapping.quantities import number

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_TLS_FOLDER: Final = "tls"
LISTEN_PORT: Final = 8080
"""Port of Envoy in its pod, unprivileged and independent of the Service's port."""

_ENVOY_REQUESTS: Final = {"cpu": "100m", "memory": "128Mi", "ephemeral-storage": "128Mi"}
_SYNC_REQUESTS: Final = {"cpu": "20m", "memory": "96Mi", "ephemeral-storage": "64Mi"}
_HOOK_S: Final = 5
"""Additional wait of Envoy's hook, since the sidecar's hook may start late on a busy machine."""
_GRACE_S: Final = 15
"""Part of the grace period beside the drain: start of the hooks, and end of the two processes."""
_SYNC: Final = ("python3", "-m", "segserve_operator.gateway_sync")
_REPLY_S: Final = 5
"""Time beyond the pool's own limit of a request, so that callers get its 504 and not the cluster gateway's."""


def _redirects(context: PoolContext) -> bool:
    """Return whether plain HTTP is redirected."""
    tls = context.spec.gateway.tls
    return tls is not None and tls.redirect_port is not None


def _redirect_service_ports(context: PoolContext) -> list[V1ServicePort]:
    """Return the Service's port that redirects, if there is one."""
    tls = context.spec.gateway.tls
    if tls is None or tls.redirect_port is None:
        return []
    return [V1ServicePort(name="redirect", port=tls.redirect_port, target_port=REDIRECT_PORT, protocol="TCP")]


def _redirect_container_ports(context: PoolContext) -> list[V1ContainerPort]:
    """Return Envoy's port that redirects, if there is one."""
    if not _redirects(context):
        return []
    return [V1ContainerPort(name="redirect", container_port=REDIRECT_PORT, protocol="TCP")]


def _tls_volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the Secrets, and of what the sidecar gives to Envoy."""
    if context.spec.gateway.tls is None:
        return []
    return [
        pods.folder(_TLS_FOLDER, "8Mi", memory=True),
        *(
            # Optional: without the Secret the pod runs, and the sidecar reports what is missing.
            pods.secret_volume(name, secret, context.defaults.pod_user)
            for name, secret, _ in _tls_secrets(context)
        ),
    ]


def _tls_envoy_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of Envoy's container."""
    if context.spec.gateway.tls is None:
        return []
    return [V1VolumeMount(name=_TLS_FOLDER, mount_path=f"{RUN_FOLDER}/tls")]


def _tls_sync_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the sidecar's container."""
    secrets = [V1VolumeMount(name=name, mount_path=folder, read_only=True) for name, _, folder in _tls_secrets(context)]
    return [*_tls_envoy_mounts(context), *secrets]


def _tls_settings(context: PoolContext) -> dict[str, Any]:
    """Return the sidecar's settings."""
    gateway = context.spec.gateway
    if gateway.tls is None:
        return {}
    settings: dict[str, Any] = {"publicPort": gateway.port, "minVersion": gateway.tls.min_version}
    if gateway.tls.redirect_port is not None:
        settings["redirectPort"] = REDIRECT_PORT
    if gateway.auth is not None and gateway.auth.mtls is not None:
        settings["clientCa"] = f"{CLIENT_CA_FOLDER}/{gateway.auth.mtls.ca_secret_ref.key}"
        settings["clientCertificates"] = gateway.auth.client_certificates
    return {"tls": settings}


def _tls_secrets(context: PoolContext) -> list[tuple[str, str, str]]:
    """Return (name of the volume, name of the Secret, folder of its mount) for each Secret."""
    gateway = context.spec.gateway
    if gateway.tls is None:
        return []
    own = [("certificate", gateway.tls.secret_name, CERTIFICATE_FOLDER)]
    if gateway.auth is None or gateway.auth.mtls is None:
        return own
    return [*own, ("client-ca", gateway.auth.mtls.ca_secret_ref.name, CLIENT_CA_FOLDER)]


def _auth_volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the Secrets with callers' credentials."""
    # Optional: without the Secret the pod runs, but without its credentials.
    return [pods.secret_volume(_auth_volume(name), name, context.defaults.pod_user) for name in _auth_secrets(context)]


def _auth_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the sidecar's container, each in a folder of the Secret's name."""
    return [
        V1VolumeMount(name=_auth_volume(name), mount_path=f"{SECRETS_FOLDER}/{name}", read_only=True)
        for name in _auth_secrets(context)
    ]


def _auth_settings(context: PoolContext) -> dict[str, Any]:
    """Return the sidecar's settings."""
    auth = context.spec.gateway.auth
    if auth is None:
        return {}
    return {"auth": auth.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


def _auth_secrets(context: PoolContext) -> list[str]:
    auth = context.spec.gateway.auth
    return [] if auth is None else auth.secrets()


def _auth_volume(name: str) -> str:
    """Return a name for a volume; names of Secrets may be too long for one, and may have dots."""
    return f"auth-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


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
        gateway_policy(context, LISTEN_PORT, *((REDIRECT_PORT,) if _redirects(context) else ())),
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
    ports = [port, *_redirect_service_ports(context)]
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
            *_tls_volumes(context),
            *_auth_volumes(context),
            *copies.volumes(context),
        ],
    )
    template = V1PodTemplateSpec(metadata=pods.metadata(given, selector, ENVOY_CONTAINER), spec=spec)
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
            *_redirect_container_ports(context),
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
            *_tls_envoy_mounts(context),
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
        **_tls_settings(context),
        **_auth_settings(context),
        **_option("sessionAffinity", gateway.session_affinity),
        **_option("cors", gateway.cors),
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
            *_tls_sync_mounts(context),
            *_auth_mounts(context),
            *copies.mounts(context),
        ],
    )


def _option(name: str, spec: ApiValue | None) -> dict[str, Any]:
    return {} if spec is None else {name: spec.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


class _Part(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True)


class _Parent(_Part):
    group: str = "gateway.networking.k8s.io"
    kind: str = "Gateway"
    name: str
    namespace: str | None
    section_name: str | None
    port: int | None


class _Backend(_Part):
    group: str = ""
    kind: str = "Service"
    name: str
    port: int
    weight: int = 1


class _PathMatch(_Part):
    type: Literal["PathPrefix"] = "PathPrefix"
    value: str


class _HttpMatch(_Part):
    path: _PathMatch


class _Timeouts(_Part):
    request: str


class _HttpRule(_Part):
    matches: tuple[_HttpMatch, ...]
    backend_refs: tuple[_Backend, ...]
    timeouts: _Timeouts


class _MethodMatch(_Part):
    type: Literal["Exact"] = "Exact"
    service: str = SERVICE
    method: str


class _GrpcMatch(_Part):
    method: _MethodMatch


class _GrpcRule(_Part):
    matches: tuple[_GrpcMatch, ...]
    backend_refs: tuple[_Backend, ...]


class _RouteSpec(_Part):
    parent_refs: tuple[_Parent, ...]
    hostnames: tuple[str, ...]
    rules: tuple[_HttpRule | _GrpcRule, ...]


class _Route(_Part):
    metadata: V1ObjectMeta
    spec: _RouteSpec


def route_objects(context: PoolContext) -> tuple[Json, ...]:
    """Return the HTTPRoute and the GRPCRoute of a pool that specifies them; each only if it has host names."""
    return context.once("routes", lambda: _route_objects(context))


def _route_objects(context: PoolContext) -> tuple[Json, ...]:
    gateway = context.spec.gateway
    if gateway.provider != "gatewayApi":
        return ()
    backends = (_Backend(name=object_name(context.pool), port=gateway.port),)
    prefixes = ("/v2", "/v1/models") if gateway.plain_http else ("/v2",)
    http = _HttpRule(
        matches=tuple(_HttpMatch(path=_PathMatch(value=prefix)) for prefix in prefixes),
        backend_refs=backends,
        timeouts=_Timeouts(request=f"{gateway.request_timeout_seconds + _REPLY_S}s"),
    )
    methods = sorted({*NAME_FIELDS, *SERVER_METHODS})  # Contour takes no service without a method
    grpc = _GrpcRule(
        matches=tuple(_GrpcMatch(method=_MethodMatch(method=each)) for each in methods), backend_refs=backends
    )
    # Contour keeps the status of one route of each name, of whichever kind.
    http_name, grpc_name = object_name(context.pool), f"{object_name(context.pool)}-grpc"
    routes = (
        (HTTP_ROUTES, http_name, gateway.hostnames, http),
        (GRPC_ROUTES, grpc_name, gateway.grpc_hostnames, grpc),
    )
    return tuple(
        stamped(rendered(kind, _route(context, name, hostnames, rule)))
        for kind, name, hostnames, rule in routes
        if hostnames
    )


def _route(context: PoolContext, name: str, hostnames: tuple[str, ...], rule: _HttpRule | _GrpcRule) -> _Route:
    parents = tuple(
        _Parent(name=parent.name, namespace=parent.namespace, section_name=parent.section_name, port=parent.port)
        for parent in context.spec.gateway.parent_refs
    )
    return _Route(
        metadata=meta(context, name, gateway_selector(context)),
        spec=_RouteSpec(parent_refs=parents, hostnames=hostnames, rules=(rule,)),
    )
