"""Parts of a gateway's pods and Service for TLS: mounted Secrets, which the sidecar reads, and a port that redirects.

Envoy reads certificates from a folder in memory that the sidecar writes to; it has no Secret mounted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kubernetes.aio.client import V1ContainerPort, V1ServicePort, V1Volume, V1VolumeMount

from segserve_common.kube.names import CERTIFICATE_FOLDER, CLIENT_CA_FOLDER, REDIRECT_PORT, RUN_FOLDER
from segserve_operator.adapters.kube.objects import pods

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext

_FOLDER: Final = "tls"


def redirects(context: PoolContext) -> bool:
    """Return whether plain HTTP is redirected."""
    tls = context.spec.gateway.tls
    return tls is not None and tls.redirect_port is not None


def service_ports(context: PoolContext) -> list[V1ServicePort]:
    """Return the Service's port that redirects, if there is one."""
    tls = context.spec.gateway.tls
    if tls is None or tls.redirect_port is None:
        return []
    return [V1ServicePort(name="redirect", port=tls.redirect_port, target_port=REDIRECT_PORT, protocol="TCP")]


def container_ports(context: PoolContext) -> list[V1ContainerPort]:
    """Return Envoy's port that redirects, if there is one."""
    if not redirects(context):
        return []
    return [V1ContainerPort(name="redirect", container_port=REDIRECT_PORT, protocol="TCP")]


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the Secrets, and of what the sidecar gives to Envoy."""
    if context.spec.gateway.tls is None:
        return []
    return [
        pods.folder(_FOLDER, "8Mi", memory=True),
        *(
            # Optional: without the Secret the pod runs, and the sidecar reports what is missing.
            pods.secret_volume(name, secret, context.defaults.pod_user)
            for name, secret, _ in _secrets(context)
        ),
    ]


def envoy_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of Envoy's container."""
    if context.spec.gateway.tls is None:
        return []
    return [V1VolumeMount(name=_FOLDER, mount_path=f"{RUN_FOLDER}/tls")]


def sync_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the sidecar's container."""
    secrets = [V1VolumeMount(name=name, mount_path=folder, read_only=True) for name, _, folder in _secrets(context)]
    return [*envoy_mounts(context), *secrets]


def options(context: PoolContext) -> dict[str, Any]:
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


def _secrets(context: PoolContext) -> list[tuple[str, str, str]]:
    """Return (name of the volume, name of the Secret, folder of its mount) for each Secret."""
    gateway = context.spec.gateway
    if gateway.tls is None:
        return []
    own = [("certificate", gateway.tls.secret_name, CERTIFICATE_FOLDER)]
    if gateway.auth is None or gateway.auth.mtls is None:
        return own
    return [*own, ("client-ca", gateway.auth.mtls.ca_secret_ref.name, CLIENT_CA_FOLDER)]
