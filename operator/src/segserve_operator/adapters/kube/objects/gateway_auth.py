"""Secrets that authentication mounts into a gateway's pods, for the sidecar alone; Envoy has none of them."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from kubernetes.aio.client import V1Volume, V1VolumeMount

from segserve_common.kube.names import SECRETS_FOLDER
from segserve_operator.adapters.kube.objects import pods

if TYPE_CHECKING:
    from segserve_operator.adapters.kube.objects.context import PoolContext


def volumes(context: PoolContext) -> list[V1Volume]:
    """Return the volumes of the Secrets with callers' credentials."""
    # Optional: without the Secret the pod runs, and takes none of its credentials.
    return [pods.secret_volume(_volume(name), name, context.defaults.pod_user) for name in _secrets(context)]


def sync_mounts(context: PoolContext) -> list[V1VolumeMount]:
    """Return the mounts of the sidecar's container, each in a folder of the Secret's name."""
    return [
        V1VolumeMount(name=_volume(name), mount_path=f"{SECRETS_FOLDER}/{name}", read_only=True)
        for name in _secrets(context)
    ]


def options(context: PoolContext) -> dict[str, Any]:
    """Return the sidecar's settings."""
    auth = context.spec.gateway.auth
    if auth is None:
        return {}
    return {"auth": auth.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


def _secrets(context: PoolContext) -> list[str]:
    auth = context.spec.gateway.auth
    return [] if auth is None else auth.secrets()


def _volume(name: str) -> str:
    """Return a name for a volume; names of Secrets may be too long for one, and may have dots."""
    return f"auth-{hashlib.sha256(name.encode()).hexdigest()[:10]}"
